"""MLPEncoder: what it makes of each kind of vector, and that every argument does something."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from rl_lightning import MLPEncoder
from rl_lightning.core.types import EnvSpec

s = gym.spaces


def build(space, **kwargs):
    return MLPEncoder(EnvSpec(space, s.Discrete(2)), **kwargs)


def encode(space, obs, **kwargs):
    encoder = build(space, **kwargs)
    x = encoder.preprocess(np.asarray(obs))
    assert x.dtype == torch.float32
    assert encoder(x).shape == (len(obs), encoder.out_dim)
    return x.tolist()


def test_boxes_are_flattened():
    assert encode(s.Box(-1, 1, (2,)), [[0.5, -1.0]]) == [[0.5, -1.0]]
    assert encode(s.Box(-1, 1, (2, 2)), [[[1, 2], [3, 4]]]) == [[1, 2, 3, 4]]
    assert encode(s.Box(-1, 1, ()), np.array([0.5, -0.5])) == [[0.5], [-0.5]]
    assert encode(s.Box(0, 255, (2,), np.uint8), [[0, 255]]) == [[0, 255]]


def test_discrete_observations_become_one_hot():
    assert encode(s.Discrete(3), [0, 2]) == [[1, 0, 0], [0, 0, 1]]
    assert encode(s.Discrete(3, start=5), [5, 7]) == [[1, 0, 0], [0, 0, 1]]


def test_multi_discrete_observations_become_several_one_hots():
    assert encode(s.MultiDiscrete([2, 3]), [[1, 0], [0, 2]]) == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]
    shifted = s.MultiDiscrete([2, 3], start=[1, -1])
    assert encode(shifted, [[1, -1], [2, 1]]) == [[1, 0, 1, 0, 0], [0, 1, 0, 0, 1]]
    assert encode(s.MultiDiscrete([[2], [2]]), [[[1], [0]]]) == [[0, 1, 1, 0]]


def test_bits_stay_bits():
    assert encode(s.MultiBinary(3), [[1, 0, 1]]) == [[1, 0, 1]]
    assert encode(s.MultiBinary((2, 2)), [[[1, 0], [0, 1]]]) == [[1, 0, 0, 1]]


def test_without_hidden_layers_features_are_the_observation():
    encoder = build(s.Box(-1, 1, (2,)))
    x = encoder.preprocess(np.array([[0.5, -1.0]]))
    assert torch.equal(encoder(x), x)
    assert not list(encoder.parameters())
    assert encoder.out_dim == 2


@pytest.mark.parametrize("hidden", [(5,), (6, 7)])
def test_hidden(hidden):
    encoder = build(s.Box(-1, 1, (2,)), hidden=hidden)
    assert [m.out_features for m in encoder.trunk if isinstance(m, nn.Linear)] == list(hidden)
    assert encoder.out_dim == hidden[-1]


@pytest.mark.parametrize(
    ("name", "kind"), [("tanh", nn.Tanh), ("relu", nn.ReLU), ("silu", nn.SiLU)]
)
def test_activation(name, kind):
    assert isinstance(build(s.Box(-1, 1, (2,)), hidden=(3,), activation=name).trunk[1], kind)


def test_normalize_subtracts_the_mean_and_divides_by_the_deviation():
    encoder = build(s.Box(-9, 9, (2,)), normalize=True)
    obs = np.array([[1.0, 0.0], [3.0, 4.0], [5.0, 2.0]], np.float32)
    for row in obs:
        encoder.observe(row[None])
    mean, std = obs.mean(0), obs.std(0)
    torch.testing.assert_close(
        encoder.preprocess(obs), torch.from_numpy((obs - mean) / std), rtol=1e-5, atol=1e-6
    )
    plain = build(s.Box(-9, 9, (2,)))
    plain.observe(obs)
    assert torch.equal(plain.preprocess(obs), torch.from_numpy(obs))


def test_preprocessing_alone_changes_no_statistics():
    encoder = build(s.Box(-9, 9, (1,)), normalize=True)
    encoder.observe(np.array([[1.0], [3.0]]))
    before = encoder.norm.running.moments.clone()
    encoder.preprocess(np.array([[100.0]]))
    assert torch.equal(encoder.norm.running.moments, before)


def test_clip_limits_normalised_values():
    for clip in (0.5, 2.0):
        encoder = build(s.Box(-9, 9, (1,)), normalize=True, clip=clip)
        encoder.observe(np.array([[-1.0], [1.0]]))
        assert encoder.preprocess(np.array([[-50.0], [50.0], [0.25]])).tolist() == pytest.approx(
            np.array([[-clip], [clip], [0.25]])
        )


def test_statistics_are_part_of_the_state_dict():
    one, other = (build(s.Box(-9, 9, (1,)), normalize=True) for _ in range(2))
    one.observe(np.array([[1.0], [5.0]]))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.preprocess(np.array([[2.0]])), other.preprocess(np.array([[2.0]])))


@pytest.mark.parametrize("space", [s.Discrete(3), s.MultiBinary(2)])
def test_only_boxes_can_be_normalised(space):
    with pytest.raises(ValueError, match="normalize needs a Box"):
        build(space, normalize=True)


@pytest.mark.parametrize("space", [s.Text(5), s.Dict({"a": s.Discrete(2)}), s.Tuple([])])
def test_other_spaces_are_refused_with_a_way_out(space):
    with pytest.raises(ValueError, match=r"LLMEncoder for Text, DictEncoder for Dict"):
        build(space)
