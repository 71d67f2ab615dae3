"""The sentence model as a network to be made smaller, and the mazes that it is asked about."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.envs import make_env
from rl_lightning.envs.optimise.data import load_data
from rl_lightning.envs.optimise.sentences import (
    LONGEST,
    MODEL,
    ROWS,
    answer_exit,
    answer_walls,
    sentences,
)
from rl_lightning.envs.optimise.targets import build_target, trained_target
from rl_lightning.envs.optimise.training import Recipe, accuracy_of, train_head, train_on
from rl_lightning.llm.load import load_backbone


@pytest.fixture(scope="module")
def splits():
    return load_data("maze-walls", 3)


@pytest.fixture
def reader(splits):
    return build_target("minilm", splits.in_shape, splits.classes, width=16, depth=1)


TEXT = "Wall north, new east, wall south, often west. The exit is far north, near east."


def test_answers_by_hand():
    assert answer_walls(TEXT) == 0b0101  # north is bit 0, east 1, south 2, west 3
    assert answer_walls(TEXT.replace("often west", "wall west")) == 0b1101
    answers = {
        answer_exit(f"Wall south, once west. The exit is {where}.")
        for where in ("far north", "near north, near east", "far east", "near south, far west",
                      "near west", "far north, far west", "far south", "near south, near east")
    }  # fmt: skip
    assert answers == set(range(8))
    assert answer_exit(TEXT) == answer_exit("The exit is near north, far east.")


def test_sentences_are_all_different_and_repeat_by_their_seed():
    texts = sentences(7, 200)
    assert len(set(texts)) == 200
    assert texts == sentences(7, 200)
    assert len(set(texts) & set(sentences(8, 200))) < 150


def test_rows_are_what_the_whole_tokenizer_reads(splits, reader):
    assert [len(y) for y in (splits.y_train, splits.y_val, splits.y_test)] == list(ROWS)
    assert splits.x_train.shape == (ROWS[0], LONGEST + 1)
    whole, tokenizer = load_backbone(MODEL, layers=1)
    texts = sentences(3, sum(ROWS))[: len(splits.x_train)]
    assert splits.y_train.tolist() == [answer_walls(text) for text in texts]
    batch = tokenizer(texts[:20], return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = whole(**batch).last_hidden_state
        weights = batch["attention_mask"].unsqueeze(-1).float()
        expected = (hidden * weights).sum(1) / weights.sum(1)
        found = reader.features(splits.x_train[:20])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_stands_on_padding_does_not_matter(splits, reader):
    rows = splits.x_val[splits.x_val[:, -1] < LONGEST][:4].clone()
    expected = reader(rows)
    for row in rows:
        row[int(row[-1]) : LONGEST] = 7.0
    torch.testing.assert_close(reader(rows), expected)


def test_a_head_of_stretched_features_takes_them_as_they_come(splits, reader):
    stretched, mean, deviation = reader.stretched(splits.x_val[:50], size=16)
    torch.testing.assert_close(stretched.mean(0), torch.zeros(384), rtol=0, atol=1e-4)
    expected = reader.head(stretched)
    reader.absorb(mean, deviation)
    torch.testing.assert_close(reader(splits.x_val[:50]), expected, rtol=1e-3, atol=1e-4)
    reader.release(mean, deviation)
    torch.testing.assert_close(reader.head(stretched), expected, rtol=1e-3, atol=1e-4)


def test_training_on_goes_on_from_what_the_head_has_learned(splits, reader):
    x, y, recipe = splits.x_train[:200], splits.y_train[:200], Recipe(epochs=30)
    train_head(reader, x, y, recipe, seed=0)
    with torch.no_grad():
        learned = F.cross_entropy(reader(x), y)
        train_on(reader, x, y, Recipe(epochs=1, lr=1e-6))
        torch.testing.assert_close(F.cross_entropy(reader(x), y), learned, rtol=1e-2, atol=1e-3)
        train_on(reader, x, y, Recipe(epochs=20))
        assert F.cross_entropy(reader(x), y) < 0.95 * learned


def test_training_leaves_the_transformer_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network, splits = trained_target("minilm", "maze-exit", 32, 1, recipe=Recipe(epochs=20))
    fresh = build_target("minilm", splits.in_shape, splits.classes, 32, 1)
    for name, tensor in fresh.reader.state_dict().items():
        assert torch.equal(network.reader.state_dict()[name], tensor)
    with torch.no_grad():
        assert accuracy_of(network(splits.x_test), splits.y_test) > 0.9
        assert accuracy_of(fresh(splits.x_test), splits.y_test) < 0.4


@pytest.mark.parametrize("depth", [0, 7])
def test_layers_that_it_has_not_are_refused(depth, splits):
    with pytest.raises(ConfigurationError, match=rf"depth={depth}.*1 to 6 layers.*depths: \[6\]"):
        build_target("minilm", splits.in_shape, splits.classes, 16, depth)


def test_other_data_are_refused():
    with pytest.raises(ConfigurationError, match=r"reads sentences.*'maze-walls' or 'maze-exit'"):
        build_target("minilm", (64,), 10, 16, 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PruneNet-v0", "QuantizeNet-v0"])
def test_episodes_of_the_sentence_model(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    env = make_env(
        name,
        {"data": "maze-walls", "model": "minilm", "widths": [32], "depths": [1], "epochs": 20},
    )
    env.reset(seed=0)
    steps, ended, info = 0, False, {}
    share = np.array([0.9], np.float32)
    while not ended:
        action = share if name == "PruneNet-v0" else 3  # 8 bits, of which the budget lowers some
        _, _, ended, _, info = env.step(action)
        steps += 1
    assert steps > 2
    assert info["original_accuracy"] > 0.8
    assert 0.05 < info["accuracy"] <= 1.0
    cost = info["cost"] if name == "PruneNet-v0" else info["size"]
    assert cost <= (0.5 if name == "PruneNet-v0" else 0.2)
