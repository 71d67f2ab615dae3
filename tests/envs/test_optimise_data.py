"""Data and target networks of the tasks that optimise models."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.trust import loading_stranger
from rl_lightning.envs import make_env
from rl_lightning.envs.optimise import data as data_module
from rl_lightning.envs.optimise import targets
from rl_lightning.envs.optimise.data import DATASETS, divide, load_data
from rl_lightning.envs.optimise.flat import FlatNetwork, flat_target, initial_vector
from rl_lightning.envs.optimise.targets import build_target, trained_target
from rl_lightning.envs.optimise.training import Recipe, accuracy_of, batches, train

HERE = __name__
ROWS = torch.arange(12.0).reshape(6, 2)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
FOUR = (ROWS.numpy(), LABELS.numpy(), ROWS[:2], [0, 1])
WRONG_SHAPE = (ROWS, LABELS, torch.zeros(2, 3), LABELS[:2])
NEGATIVE = (ROWS, LABELS - 1, ROWS[:2], LABELS[:2])
NOT_FINITE = (ROWS * float("nan"), LABELS, ROWS[:2], LABELS[:2])
ANYTHING = 3


def six(split):
    return (ROWS + split, LABELS, ROWS, LABELS, ROWS[:3], LABELS[:3])


def own_network(in_shape, classes, width, depth):
    hidden = [nn.Linear(width, width) for _ in range(depth)]
    return nn.Sequential(nn.Linear(in_shape[0], width), *hidden, nn.Linear(width, classes))


def own_dropout(in_shape, classes, width, depth):
    return nn.Sequential(nn.Linear(in_shape[0], width), nn.Dropout(0.5), nn.Linear(width, classes))


def own_batch_norm(in_shape, classes, width, depth):
    return nn.Sequential(nn.BatchNorm1d(in_shape[0]), nn.Linear(in_shape[0], classes))


def too_few_arguments(in_shape):
    return nn.Identity()


def no_module(in_shape, classes, width, depth):
    return 3


def no_logits(in_shape, classes, width, depth):
    return nn.Linear(in_shape[0], classes + 1)


class InPlace(nn.Module):
    """A linear network that does something in place to its inputs, or to a view of them."""

    def __init__(self, operation, in_shape, classes):
        super().__init__()
        self.operation, self.last = operation, nn.Linear(in_shape[0], classes)

    def forward(self, x):
        self.operation(x)
        return self.last(x)


def scales(in_shape, classes, width, depth):
    return InPlace(lambda x: x.mul_(1.1), in_shape, classes)


def clamps(in_shape, classes, width, depth):
    return InPlace(lambda x: x.view(-1).clamp_(-3, 3), in_shape, classes)


def adds_behind_autograd(in_shape, classes, width, depth):
    return InPlace(lambda x: x.numpy().__iadd__(1), in_shape, classes)


def begins_with_relu(in_shape, classes, width, depth):
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(in_shape[0], classes))


def copies_first(in_shape, classes, width, depth):
    return nn.Sequential(nn.Linear(in_shape[0], width), nn.ReLU(inplace=True),
                         nn.Linear(width, classes))  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RL_LIGHTNING_CACHE", str(tmp_path))
    return tmp_path / "targets"


@pytest.fixture(autouse=True)
def _global_generators_stay():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


# --- data ------------------------------------------------------------------------------------


def test_rows_are_divided_into_parts_that_have_nothing_in_common():
    x, y = np.arange(20.0).reshape(10, 2), np.arange(10)
    parts = divide(x, y, split=3)
    assert [len(part) for part in parts[1::2]] == [6, 2, 2]
    assert sorted(torch.cat(parts[1::2]).tolist()) == list(range(10))
    for inputs, labels in zip(parts[::2], parts[1::2], strict=True):
        assert torch.equal(inputs[:, 0], 2.0 * labels)
    assert not torch.equal(parts.y_train, divide(x, y, split=4).y_train)


def test_features_are_standardised_by_the_training_part():
    x, y = np.arange(10.0)[:, None], np.arange(10)
    parts = divide(x, y, split=0, standardise=True)
    rows = parts.y_train.numpy()
    mean, deviation = rows.mean(), rows.std()
    for inputs, labels in zip(parts[::2], parts[1::2], strict=True):
        assert np.allclose(inputs[:, 0], (labels.numpy() - mean) / deviation)


@pytest.mark.parametrize(
    ("name", "rows", "in_shape", "classes"),
    [
        ("digits", 1797, (64,), 10),
        ("digits-images", 1797, (1, 8, 8), 10),
        ("wine", 178, (13,), 3),
        ("breast-cancer", 569, (30,), 2),
    ],
)
def test_packaged_data(name, rows, in_shape, classes):
    found = load_data(name, 1)
    assert sum(len(y) for y in found[1::2]) == rows
    assert (found.in_shape, found.classes) == (in_shape, classes)
    assert [part.dtype for part in found] == [torch.float32, torch.int64] * 3
    assert found.digest() == load_data.__wrapped__(name, 1).digest()
    assert found.digest() != load_data(name, 2).digest()


def test_images_are_the_vectors_in_another_shape():
    flat, images = load_data("digits", 5), load_data("digits-images", 5)
    assert torch.equal(flat.x_val, images.x_val.flatten(1))
    assert flat.digest() != images.digest()
    assert 0 == flat.x_train.min() < flat.x_train.max() == 1


def test_data_of_the_user_s_own():
    found = load_data(f"{HERE}.FOUR", 7)
    assert torch.equal(found.x_train, ROWS)
    assert torch.equal(found.y_val, torch.tensor([0, 1]))
    assert found.x_test is None
    assert found.classes == 3
    found = load_data(f"{HERE}.six", 7)
    assert torch.equal(found.x_train, ROWS + 7)  # the function is told the split
    assert found.y_test is not None
    assert torch.equal(found.y_test, LABELS[:3])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mnist",
            "data='mnist': use one of digits, digits-images, wine, breast-cancer, maze-walls, ",
        ),
        (3, "data=3: use one of"),
        (f"{HERE}.nothing", "which is not there"),
        (f"{HERE}.ANYTHING", r"must be, or return, \(x_train"),
        (f"{HERE}.WRONG_SHAPE", r"x_val and its labels .* not \(2, 3\) and \(2,\)"),
        (f"{HERE}.NEGATIVE", "x_train and its labels must be finite"),
        (f"{HERE}.NOT_FINITE", "x_train and its labels must be finite"),
    ],
)
def test_what_are_no_data(name, message):
    with pytest.raises(ConfigurationError, match=message):
        load_data(name)
    with pytest.raises(ConfigurationError, match="split must be"):
        load_data("wine", -1)


def test_a_checkpoint_cannot_have_a_package_imported():
    with loading_stranger(), pytest.raises(ConfigurationError, match="--trust this"):
        load_data("this.s")
    with loading_stranger(), pytest.raises(ConfigurationError, match="--trust this"):
        build_target("this.s", (2,), 3)


def test_without_scikit_learn_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    data_module._packaged.cache_clear()
    with pytest.raises(ConfigurationError, match="pip install 'rl-lightning"):
        load_data.__wrapped__(DATASETS[0], 0)


# --- networks --------------------------------------------------------------------------------


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_networks_by_name():
    mlp = build_target("mlp", (64,), 10, width=4, depth=2)
    assert count(mlp) == (64 * 4 + 4) + (4 * 4 + 4) + (4 * 10 + 10)
    assert count(build_target("mlp", (64,), 10, width=4, depth=0)) == 64 * 10 + 10
    cnn = build_target("cnn", (1, 8, 8), 10, width=4, depth=2)
    assert count(cnn) == (9 * 4 + 4) + (9 * 4 * 4 + 4) + (4 * 10 + 10)
    assert cnn(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    deep = build_target("cnn", (1, 8, 8), 10, width=4, depth=8)
    assert [isinstance(layer, nn.MaxPool2d) for layer in deep].count(True) == 2  # 8, 4, 2 pixels
    assert deep(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert build_target("mlp", (1, 8, 8), 10)(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_initial_parameters_are_drawn_by_the_seed_within_bounds():
    first = build_target("mlp", (64,), 10, width=16, depth=1, seed=1)
    again, other = (build_target("mlp", (64,), 10, width=16, depth=1, seed=s) for s in (1, 2))
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c) == (a.dim() == 1)
    hidden, last = (6 / 64) ** 0.5, 16**-0.5
    assert 0.95 * hidden < first[0].weight.abs().max() <= hidden
    assert 0.95 * last < first[2].weight.abs().max() <= last
    assert not first[0].bias.any()


def half_frozen(in_shape, classes, width, depth):
    made = own_network(in_shape, classes, width, 0)
    made[0].weight.requires_grad_(False)
    return made


def all_frozen(in_shape, classes, width, depth):
    return own_network(in_shape, classes, width, 0).requires_grad_(False)


def test_frozen_parameters_stay_in_all_that_changes_a_vector():
    with pytest.raises(ConfigurationError, match="has no parameter to train"):
        build_target(f"{HERE}.all_frozen", (2,), 3)
    flat = FlatNetwork(build_target(f"{HERE}.half_frozen", (2,), 3, width=4))
    before, velocity = flat.vector.clone(), torch.zeros_like(flat.vector)
    for _ in range(2):
        flat.backward(ROWS, LABELS)
        flat.update(velocity, lr=0.1, momentum=0.9, weight_decay=0.1)
    moved = (flat.vector != before).tolist()
    assert moved == flat.trained.tolist() == [False] * 8 + [True] * 19

    name = {"model": f"{HERE}.half_frozen", "data": "wine"}
    control = make_env("TrainingControl-v0", {**name, "widths": [4], "weight_decay": 0.1})
    tuning = make_env("ParameterTuning-v0", {**name, "width": 4, "directions": 3})
    for env in (control, tuning):
        env.reset(seed=0)
    plain = control.unwrapped
    before = plain._weights.copy()
    control.step(2)
    assert ((plain._weights != before) == (np.arange(len(before)) >= 52)).all()
    moved = tuning.unwrapped._parameters(np.ones(3)) - tuning.unwrapped._start
    assert ((moved != 0) == (np.arange(len(moved)) >= 52)).all()
    assert np.allclose(np.linalg.norm(tuning.unwrapped._subspace(), axis=0), 1)


def no_statistics(in_shape, classes, width, depth):
    norm = nn.BatchNorm1d(in_shape[0], track_running_stats=False)
    return nn.Sequential(norm, nn.Linear(in_shape[0], classes))


def test_a_last_row_alone_joins_the_batch_before_where_batches_are_normalised():
    def sizes(count, size, joined=True):
        found = batches(torch.arange(count), size, joined)
        assert torch.cat(found).tolist() == list(range(count))
        return [len(rows) for rows in found]

    assert [sizes(*one) for one in ((5, 2), (6, 4), (1, 4), (2, 1))] == [
        [2, 3],
        [4, 2],
        [1],
        [1, 1],
    ]
    assert sizes(5, 2, joined=False) == [2, 2, 1]

    network = build_target(f"{HERE}.own_batch_norm", (2,), 3)
    x, y = ROWS[:5], LABELS[:5]
    train(network, x, y, Recipe(epochs=1, batch_size=2))
    assert network[0].num_batches_tracked == 2
    for rows, size in ((1, 64), (5, 1)):
        with pytest.raises(ConfigurationError, match="BatchNorm cannot be trained on one row"):
            train(network, x[:rows], y[:rows], Recipe(epochs=1, batch_size=size))
    with pytest.raises(ConfigurationError, match="logits of one input alone"):
        build_target(f"{HERE}.no_statistics", (2,), 3)


@pytest.mark.parametrize("name", ["scales", "clamps", "adds_behind_autograd", "begins_with_relu"])
def test_a_network_that_changes_the_shared_data_is_refused(name):
    with pytest.raises(ConfigurationError, match="changes its inputs in place"):
        build_target(f"{HERE}.{name}", (2,), 3, 4, 1)
    build_target(f"{HERE}.copies_first", (2,), 3, 4, 1)


def test_a_network_of_the_user_s_own():
    made = build_target(f"{HERE}.own_network", (64,), 10, width=5, depth=3, seed=1)
    assert len(made) == 5
    assert made[0].out_features == 5
    again, other = (build_target(f"{HERE}.own_network", (64,), 10, 5, 3, seed=s) for s in (1, 2))
    assert torch.equal(made[0].weight, again[0].weight)
    assert not torch.equal(made[0].weight, other[0].weight)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet", "model='resnet': use one of mlp, cnn, minilm, or the import path"),
        ("cnn", r"needs images \[C, H, W\], not inputs of the shape \[64\]"),
        (f"{HERE}.ANYTHING", "is a int, which cannot be called as"),
        (f"{HERE}.too_few_arguments", r"must be callable as \(in_shape, classes, width, depth\)"),
        (f"{HERE}.no_module", "must return a module, not 3"),
        (f"{HERE}.no_logits", r"must return logits \[N, 10\] .* it returns \[2, 11\]"),
    ],
)
def test_what_is_no_network(model, message):
    with pytest.raises(ConfigurationError, match=message):
        build_target(model, (64,), 10)


def test_a_flat_network_is_its_module():
    network = build_target("mlp", (2,), 3, width=4, depth=1)
    expected = F.cross_entropy(network(ROWS), LABELS)
    gradients = torch.autograd.grad(expected, list(network.parameters()))
    flat = FlatNetwork(build_target("mlp", (2,), 3, width=4, depth=1))
    for _ in range(2):  # gradients do not add up
        assert flat.backward(ROWS, LABELS) == expected.item()
        assert torch.equal(flat.gradient, torch.cat([g.flatten() for g in gradients]))
    loss, accuracy = flat.judge(ROWS, LABELS)
    assert loss == pytest.approx(expected.item())
    assert accuracy == accuracy_of(network(ROWS), LABELS)
    other = initial_vector("mlp", (2,), 3, 4, 1, seed=9)
    flat.load(other)
    expected = build_target("mlp", (2,), 3, 4, 1, seed=9)(ROWS)
    assert torch.equal(flat.network(ROWS), expected)
    assert flat.sizes == [8, 4, 12, 3]
    with pytest.raises(ConfigurationError, match=r"buffers \(0\.running_mean"):
        flat_target(f"{HERE}.own_batch_norm", (2,), 3, 4, 1)


def test_accuracy_counts_no_row_that_is_not_finite():
    logits = torch.tensor([[1.0, 0], [0, 1], [float("nan"), 0], [0, 1]])
    assert accuracy_of(logits, torch.tensor([0, 1, 0, 0])) == 0.5


# --- training --------------------------------------------------------------------------------


def trained(seed=0, model="mlp", **recipe):
    network = build_target(model, (2,), 3, 4, 1)
    loss = train(network, ROWS, LABELS, replace(Recipe(epochs=3, batch_size=2), **recipe), seed)
    return loss, torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize(
    "change",
    [{"epochs": 4}, {"batch_size": 3}, {"lr": 1e-2}, {"weight_decay": 0.5}, {"seed": 1}],
)
def test_every_part_of_the_recipe_counts(change):
    assert torch.equal(trained()[1], trained()[1])
    assert not torch.equal(trained()[1], trained(**change)[1])


def test_a_full_batch_is_one_update_of_adam_w_a_pass():
    network = build_target("mlp", (2,), 3, 4, 1)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.1)
    for rate in (3e-3, 1.5e-3):  # the cosine of 0 and of a half
        optimizer.param_groups[0]["lr"] = rate
        loss = F.cross_entropy(network(ROWS), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    last, found = trained(epochs=2, batch_size=None, weight_decay=0.1)
    expected = torch.cat([p.detach().flatten() for p in network.parameters()])
    assert torch.allclose(found, expected, atol=1e-6)
    assert last == pytest.approx(loss.item(), abs=1e-6)


def test_training_does_not_depend_on_the_caller_s_modes():
    expected = trained(model=f"{HERE}.own_dropout")[1]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(trained(model=f"{HERE}.own_dropout")[1], expected)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"weight_decay": float("nan")}, "weight_decay must be at least 0"),
    ],
)
def test_impossible_recipes(recipe, message):
    with pytest.raises(ConfigurationError, match=message):
        trained(**recipe)


@pytest.mark.parametrize(
    ("model", "data", "depth"), [("mlp", "digits", 1), ("cnn", "digits-images", 4)]
)
def test_a_target_is_trained_once(cache, monkeypatch, model, data, depth):
    recipe = Recipe(epochs=6, lr=1e-2)
    network, splits = trained_target(model, data, 16, depth, recipe=recipe)
    with torch.no_grad():
        assert accuracy_of(network(splits.x_test), splits.y_test) > 0.85
    (file,) = cache.iterdir()
    assert file.suffix == ".safetensors"

    def never(*args):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(targets, "train", never)
        again, _ = trained_target(model, data, 16, depth, recipe=recipe)
    assert not again.training
    assert torch.equal(network(splits.x_test), again(splits.x_test))


def test_a_damaged_file_is_replaced(cache):
    network, splits = trained_target("mlp", "wine", 4, 1, recipe=Recipe(epochs=1))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    again, _ = trained_target("mlp", "wine", 4, 1, recipe=Recipe(epochs=1))
    assert torch.equal(network(splits.x_val), again(splits.x_val))
    assert file.read_bytes() == whole


def test_all_that_decides_a_target_names_its_file(cache):
    one = Recipe(epochs=1)
    base = {"model": "mlp", "data": "wine", "width": 4, "depth": 1, "recipe": one}
    changes = [
        {},
        {"model": f"{HERE}.own_network"},
        {"data": "breast-cancer"},
        {"width": 5},
        {"depth": 2},
        {"split": 1},
        {"seed": 1},
        {"recipe": replace(one, lr=1e-2)},
    ]
    for change in changes:
        trained_target(**{**base, **change})
    assert len(list(cache.iterdir())) == len(changes)


@pytest.mark.parametrize("data", ["wine", f"{HERE}.six"])
def test_what_validation_loads_first_can_be_trained_on(data):
    load_data.cache_clear()
    with torch.inference_mode():
        splits = load_data(data, 7)
    network = build_target("mlp", splits.in_shape, splits.classes, 4, 1)
    network(splits.x_val).sum().backward()  # torch refuses that for tensors of inference mode


class FrozenNorm(nn.Module):
    """A norm that does not learn, behind a layer that does; and one without parameters."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(64, 5), nn.Linear(5, 3)
        self.norm = nn.BatchNorm1d(5).requires_grad_(False)
        self.plain = nn.BatchNorm1d(5, affine=False)

    def forward(self, x):
        return self.head(self.plain(self.norm(self.first(x.flatten(1)).relu())))


def test_statistics_of_a_frozen_norm_are_frozen():
    with torch.random.fork_rng(devices=[]):
        network, x = FrozenNorm(), torch.randn(20, 64)
    train(network, x, torch.arange(20) % 3, Recipe(epochs=1))
    assert network.norm.running_mean.abs().sum() == 0
    assert network.plain.running_mean.abs().sum() > 0
    assert not network.norm.training


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 3).requires_grad_(False)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(x.flatten(1))


def test_what_learns_nothing_is_refused():
    with torch.random.fork_rng(devices=[]):
        network = Unused()
    with pytest.raises(ConfigurationError, match="none of its parameters that learn takes part"):
        train(network, torch.zeros(20, 64), torch.arange(20) % 3)
