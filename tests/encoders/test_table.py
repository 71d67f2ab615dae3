"""TableEncoder: which observation gets which row, and what evaluating leaves as it was."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from probes import OBSERVATIONS, batch, stack

from rl_lightning import TableEncoder
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.encoders import table

s = gym.spaces
WORDS = s.Text(5)


def build(space, **kwargs):
    return TableEncoder(EnvSpec(space, s.Discrete(2), "Env-v0"), **kwargs)


def rows(encoder, obs):
    x = encoder.preprocess(obs)
    assert x.dtype == torch.int64
    assert x.shape == (len(x),)
    return x.tolist()


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (s.Discrete(5, start=3), 5),
        (s.MultiDiscrete([2, 3, 4]), 24),
        (s.MultiDiscrete([[2, 3], [1, 2]], start=[[1, 0], [5, -1]]), 12),
        (s.MultiBinary([2, 2]), 16),
        (s.Tuple((s.Discrete(3), s.MultiDiscrete([2, 2]), s.Discrete(2, start=1))), 24),
        (s.Dict({"b": s.Discrete(2), "a": s.Dict({"c": s.MultiBinary(3)})}), 16),
    ],
)
def test_finite_spaces_are_numbered_one_to_one(space, size):
    encoder = build(space)
    assert encoder.out_dim == size
    space.seed(0)
    seen = {}
    for _ in range(40 * size):
        item = space.sample()
        (row,) = rows(encoder, stack(space, [item]))
        assert seen.setdefault(row, repr(item)) == repr(item)
    assert sorted(seen) == list(range(size))
    assert not encoder.get_extra_state()


def test_arithmetic_by_hand():
    assert rows(build(s.Discrete(4, start=2)), np.array([2, 5, 3])) == [0, 3, 1]
    assert rows(build(s.MultiDiscrete([2, 3])), np.array([[0, 2], [1, 0]])) == [2, 3]


def test_a_row_outlives_the_vector_environments_buffer():
    obs = np.array([1, 2])
    x = build(s.Discrete(4)).preprocess(obs)
    obs[:] = 0
    assert x.tolist() == [1, 2]


def test_texts_get_the_next_free_row_when_training_sees_them():
    encoder = build(WORDS, capacity=3)
    assert encoder.out_dim == 4
    encoder.observe(("b", "a", "b"))
    assert rows(encoder, ("a", "b", "c")) == [1, 0, 3]  # looking up adds nothing
    assert encoder.metrics() == {"table/observations": 2}
    encoder.observe(("c",))
    assert rows(encoder, ("a", "b", "c", "d")) == [1, 0, 2, 3]


@pytest.mark.parametrize("kind", ["small_image", "text"])
def test_whatever_repeats_exactly_can_be_numbered(kind):
    encoder = build(OBSERVATIONS[kind])
    encoder.observe(batch(kind, 2, 0, 2, 1))
    assert rows(encoder, batch(kind, 0, 1, 2)) == [1, 2, 0]


def test_mixed_dictionaries_and_integers():
    space = s.Dict({"text": WORDS, "where": s.Box(-5, 5, (2,), np.int16), "key": s.Discrete(2)})
    item = {"text": "go", "where": np.array([1, -1], np.int16), "key": 1}
    others = [{**item, "text": "no"}, {**item, "where": -item["where"]}, {**item, "key": 0}]
    encoder = build(space)
    encoder.observe(stack(space, [item, *others, item]))
    assert rows(encoder, stack(space, [*others, item])) == [1, 2, 3, 0]


def test_the_parts_of_a_key_are_kept_apart():
    space = s.Tuple((WORDS, WORDS))
    encoder = build(space)
    encoder.observe((("ab", "a"), ("c", "bc")))
    assert encoder.metrics() == {"table/observations": 2}


def test_a_finite_space_beyond_the_capacity_is_numbered_as_it_comes():
    encoder = build(s.MultiDiscrete([1000, 1000]), capacity=10)
    assert encoder.out_dim == 11
    encoder.observe(np.array([[999, 7]]))
    assert rows(encoder, np.array([[999, 7], [7, 999]])) == [0, 10]


def test_a_full_table_names_the_way_out():
    encoder = build(WORDS, capacity=2)
    encoder.observe(("a", "b", "a"))
    with pytest.raises(ConfigurationError, match=r"capacity.*Env-v0 has shown more than 2 .*raise"):
        encoder.observe(("c",))


def test_ranks_cannot_number_texts_each_in_its_own_order(monkeypatch):
    monkeypatch.setattr(table, "world_size", lambda: 2)
    with pytest.raises(ConfigurationError, match=r"trainer\.devices: 1"):
        build(WORDS).observe(("a",))
    build(s.Discrete(3)).observe(np.array([1]))


@pytest.mark.parametrize("space", [OBSERVATIONS["vector"], OBSERVATIONS["tuple"]])
def test_what_hardly_repeats_is_refused(space):
    with pytest.raises(ValueError, match=r"cannot number .*Box.*DQN"):
        build(space)


def test_the_list_is_part_of_the_checkpoint(tmp_path):
    encoder = build(OBSERVATIONS["small_image"])
    encoder.observe(batch("small_image", 2, 0))
    torch.save(encoder.state_dict(), tmp_path / "state.pt")
    twin = build(OBSERVATIONS["small_image"])
    twin.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert rows(twin, batch("small_image", 0, 1, 2)) == [1, 100_000, 0]
    twin.observe(batch("small_image", 1))
    assert rows(twin, batch("small_image", 1)) == [2]


def test_features_are_one_hot():
    encoder = build(s.Discrete(3))
    assert encoder(encoder.preprocess(np.array([2, 0]))).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_capacity_must_be_positive():
    with pytest.raises(ConfigurationError, match="capacity must be at least 1, not 0"):
        build(WORDS, capacity=0)
