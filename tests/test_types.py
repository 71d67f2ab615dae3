"""Spaces in checkpoints: what is loaded is what was saved."""

import io

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl_lightning.core.types import EnvSpec, OpaqueSpace, space_from_data, space_to_data

s = gym.spaces
INNER = s.Box(-1, 1, (2,), np.float64)
SPACES = {
    "discrete": s.Discrete(3, start=1, dtype=np.int32),
    "discrete of bytes": s.Discrete(3, dtype=np.uint8),
    "multi_discrete": s.MultiDiscrete([2, 3], dtype=np.int32, start=[1, 0]),
    "multi_binary": s.MultiBinary((2, 3)),
    "box": s.Box(0, 255, (2, 2), np.uint8),
    "text": s.Text(5, charset="abc"),
    "sequence": s.Sequence(INNER, stack=True),
    "graph": s.Graph(INNER, s.Discrete(3, dtype=np.int32)),
    "graph without edges": s.Graph(INNER, None),
    "one of": s.OneOf([s.Discrete(2), INNER]),
    "nested": s.Dict(a=s.Tuple([s.Sequence(s.Discrete(2)), s.Dict(b=s.Discrete(2))])),
}


def through_a_checkpoint(spec):
    file = io.BytesIO()
    torch.save({"spec": spec}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)["spec"]


@pytest.mark.parametrize("kind", SPACES)
def test_spaces_come_back_with_their_dtypes(kind):
    spec = EnvSpec(SPACES[kind], s.Discrete(4, dtype=np.int16))
    again = through_a_checkpoint(spec)
    assert again.observation_space == SPACES[kind]
    assert again.observation_space.dtype == SPACES[kind].dtype
    assert again.action_space.dtype == np.int16
    assert again == spec


def test_specs_of_other_dtypes_differ():
    one, other = (EnvSpec(INNER, s.Discrete(2, dtype=kind)) for kind in (np.int64, np.int32))
    assert one != other


@pytest.mark.parametrize(
    ("space", "key"), [(s.Discrete(3), "dtype"), (s.MultiDiscrete([2, 3]), "dtype")]
)
def test_checkpoints_of_earlier_versions_say_no_dtype(space, key):
    data = space_to_data(space)
    del data[key]
    assert space_from_data(data) == space


class Mystery(gym.Space):
    """A third party's."""


class Talkative(Mystery):
    def __init__(self, text):
        super().__init__()
        self.text = text

    def __repr__(self):
        return self.text


@pytest.mark.parametrize("space", [Mystery(), Talkative("a mystery")])
@pytest.mark.parametrize("where", ["alone", "dict", "tuple", "sequence"])
def test_a_stranger_space_leaves_its_name(space, where):
    place = {
        "alone": lambda x: x,
        "dict": lambda x: s.Dict(a=x, b=INNER),
        "tuple": lambda x: s.Tuple([INNER, x]),
        "sequence": s.Sequence,
    }[where]
    spec = EnvSpec(place(space), s.Discrete(2))
    again = through_a_checkpoint(spec)
    assert again == spec == through_a_checkpoint(again)
    assert type(space).__name__ in repr(again) or "a mystery" in repr(again)
    other = EnvSpec(place(Talkative("another")), s.Discrete(2))
    assert other != again


def test_an_opaque_space_has_no_elements():
    space = OpaqueSpace("Mystery", "Mystery()")
    assert not space.contains(0)
    assert not space.is_np_flattenable
    with pytest.raises(NotImplementedError, match="no samples"):
        space.sample()
