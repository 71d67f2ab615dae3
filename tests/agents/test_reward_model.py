"""The reward model by itself: losses of a batch, statistics, what it refuses."""

import copy
import math
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from rl_lightning import MLPEncoder, RewardModel
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.rewards.network import RewardNetwork
from rl_lightning.rewards.statistics import check_statistics, quantile, statistics_of

SPEC = EnvSpec(gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(3, start=1), "Test")


def linear(**kwargs):
    """r(s) = s₀."""
    model = RewardModel(SPEC, hidden=(), **kwargs)
    with torch.no_grad():
        model.network.head.weight.copy_(torch.tensor([[1.0, 0.0]]))
    return model


def batch(values, labels):
    """Observations (v, 0), `[N, K]`."""
    value = torch.tensor(values)
    obs = torch.stack([value, torch.zeros_like(value)], dim=-1)
    label = torch.tensor(labels)[:, None].expand(value.shape)
    return TensorDict({"next_obs": obs, "label": label}, batch_size=value.shape)


def test_preferences_by_hand():
    loss = linear().loss(batch([[0.0, math.log(3.0)], [2.0, 1.0], [1.0, 1.0]], [1.0, 1.0, 0.5]))
    expected = (-math.log(0.75) - math.log(1 / (1 + math.e)) - math.log(0.5)) / 3
    assert loss.value.item() == pytest.approx(expected)
    assert loss.metrics["train/accuracy"].item() == 0.5  # of two, the tie is left out
    assert loss.metrics["loss/reward"].item() == pytest.approx(expected)
    ties = linear().loss(batch([[0.0, 1.0]], [0.5]))
    assert ties.metrics["train/accuracy"].item() == 0.5  # chance, and no nan


def test_regression_and_classification_by_hand():
    loss = linear(objective="regression").loss(batch([[1.0], [3.0]], [0.0, 5.0]))
    assert loss.value.item() == pytest.approx((1 + 4) / 2)
    assert loss.metrics["train/error"].item() == pytest.approx(1.5)
    loss = linear(objective="classification").loss(batch([[math.log(3)], [-1.0]], [1.0, 1.0]))
    expected = (-math.log(0.75) - math.log(1 / (1 + math.e))) / 2
    assert loss.value.item() == pytest.approx(expected)
    assert loss.metrics["train/accuracy"].item() == 0.5


def test_transitions_read_what_was_done_where():
    model = RewardModel(SPEC, inputs="transition", hidden=())
    weight = torch.tensor([[1.0, 0, 10, 20, 30, 100, 0]])  # obs, action one-hot, next_obs
    with torch.no_grad():
        model.network.head.weight.copy_(weight)
    obs, after = np.array([[1.0, 9], [2, 9]], np.float32), np.array([[3.0, 9], [4, 9]], np.float32)
    r = model.score(after, obs, np.array([1, 3]))
    assert r.tolist() == [1 + 10 + 300, 2 + 30 + 400]
    with pytest.raises(ConfigurationError, match="inputs: transition judges steps"):
        model.score(after)
    box = EnvSpec(SPEC.observation_space, gym.spaces.Box(-1, 1, (2,)), "Box")
    assert RewardNetwork(box, inputs="transition").trunk[0].in_features == 6
    many = EnvSpec(SPEC.observation_space, gym.spaces.MultiDiscrete([2, 3]), "Many")
    network = RewardNetwork(many, inputs="transition", hidden=(4,))
    assert network(torch.zeros(5, 2), torch.zeros(5, 2), torch.ones(5, 2)).shape == (5,)
    text = EnvSpec(SPEC.observation_space, gym.spaces.Text(3), "Text")
    with pytest.raises(ConfigurationError, match="reads no actions"):
        RewardNetwork(text, inputs="transition")


def test_scores_come_in_eval_mode_without_gradient():
    model = RewardModel(SPEC, dropout=0.9)
    model.train()
    obs = np.ones((64, 2), np.float32)
    first = model.score(obs)
    assert model.training
    assert not first.requires_grad
    torch.testing.assert_close(model.score(obs), first)
    model.train()
    rows = batch(np.ones((64, 1)).tolist(), [0.0] * 64)
    assert model.rewards(rows.float()).std() > 0  # there dropout is on
    torch.testing.assert_close(model.score(obs[:1]), first[:1])  # batched = single


def test_statistics_by_hand():
    model = linear()
    rows = [batch([[float(v)] for v in part], [0.0] * len(part)) for part in ((3, 1), (2, 0, 4))]
    model.measure_over(lambda: rows)
    model.measure()
    found = model.statistics
    assert found is not None
    assert (found["mean"], found["count"]) == (2.0, 5)
    assert found["std"] == pytest.approx(math.sqrt(2.0))
    assert [quantile(found, q) for q in (0.0, 0.25, 0.5, 0.6, 1.0)] == pytest.approx(
        [0, 1, 2, 2.4, 4]
    )
    many = torch.randn(1000).double()
    expected = torch.quantile(many, torch.linspace(0, 1, 101, dtype=torch.float64))
    torch.testing.assert_close(statistics_of(many)["quantiles"], expected)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": math.nan},
        {"std": -1.0},
        {"quantiles": torch.ones(3)},
        {"quantiles": torch.linspace(1, 0, 101)},
        {"mean": "1"},
    ],
)
def test_changed_statistics_are_refused(change):
    good = statistics_of(torch.randn(10))
    assert check_statistics(good) == good
    with pytest.raises(ConfigurationError, match="it was changed"):
        check_statistics({**good, **change})
    assert check_statistics(None) is None


def test_it_does_not_act():
    model = RewardModel(SPEC)
    assert model.mask_dim == 0
    with pytest.raises(ConfigurationError, match="judges and does not act"):
        model.predict(np.zeros(2, np.float32))


def test_wrong_arguments_get_a_sentence():
    for kwargs, told in (
        ({"objective": "ranking"}, "objective must be"),
        ({"inputs": "obs"}, "inputs must be"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"hidden": (0,)}, "positive widths"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"gamma": 0.9}, "has no argument 'gamma'"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            RewardModel(SPEC, **kwargs)


def test_arguments_reach_the_network():
    network = RewardModel(
        SPEC, partial(MLPEncoder, hidden=(5,)), hidden=(7, 3), activation="tanh", dropout=0.25
    ).network
    assert [layer.in_features for layer in network.trunk if hasattr(layer, "in_features")] == [5, 7]
    assert network.head.in_features == 3
    assert network.dropout.p == 0.25
    assert any(isinstance(layer, torch.nn.Tanh) for layer in network.trunk)


def test_a_copy_judges_alike_and_belongs_to_no_run():
    model = linear()
    model.measure_over(lambda: [])
    twin = copy.deepcopy(model)
    assert twin._rows is None
    obs = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    torch.testing.assert_close(twin.score(obs), model.score(obs))
