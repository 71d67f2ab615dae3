"""The short way of writing one row of a plain buffer, against the way of all others."""

import numpy as np
import pytest
import torch

from rl_lightning.core.errors import RunError
from rl_lightning.data.replay.buffer import ReplayBuffer


def episodes(buffer, general, count=9, seed=0, dtype=torch.float32, action=()):
    """Play into a buffer; `general`: by naming the environment, which is the long way."""
    rng = np.random.default_rng(seed)
    columns = (np.array([0]),) if general else ()

    def observation():
        return torch.from_numpy(rng.normal(size=(1, 3))).to(dtype)

    for episode in range(count):
        buffer.begin(observation())
        for step in range(1 + int(rng.integers(4))):
            last = step == 3 or rng.random() < 0.3
            ends = np.array([last and episode % 3 != 1]), np.array([last and episode % 3 != 0])
            taken = torch.from_numpy(rng.integers(0, 5, (1, *action)))
            buffer.act(taken, rng.random(1).astype(np.float32), *ends, *columns)
            buffer.push(observation(), *columns)
            if last:
                break
    return buffer


@pytest.mark.parametrize(
    "options", [{}, {"dtype": np.float16}, {"action_dtype": np.uint8}, {"folder": True}]
)
@pytest.mark.parametrize("action", [(), (2,)])
def test_both_ways_write_the_same(options, action, tmp_path):
    made = []
    for general in (False, True):
        folder = tmp_path / str(general)
        folder.mkdir()
        given = {**options, **({"folder": folder} if "folder" in options else {})}
        buffer = episodes(ReplayBuffer(12, 1, **given), general, action=action)  # goes round
        assert buffer._is_plain
        made.append(buffer)
    for name, array in made[0].arena.arrays.items():
        assert np.array_equal(array, made[1].arena.arrays[name]), name
    assert made[0].head == made[1].head
    index = torch.arange(made[0].size)
    for key, value in made[0].read(index, 0.9, 3).items():
        assert torch.equal(value, made[1].read(index, 0.9, 3)[key])


def test_what_does_not_fit_is_refused_on_the_short_way_too():
    buffer = ReplayBuffer(12, 1, dtype=np.float16)
    buffer.begin(torch.zeros(1, 2))
    assert buffer._is_plain
    buffer.act(torch.zeros(1, dtype=torch.int64), np.ones(1), np.zeros(1, bool), np.zeros(1, bool))
    with pytest.raises((RunError, ValueError, OverflowError), match="float16"):
        buffer.push(torch.full((1, 2), 1e6))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ReplayBuffer(12, 2),
        lambda: ReplayBuffer(12, 1, prioritized=True),
        lambda: ReplayBuffer(12, 1, episodes=True),
        lambda: ReplayBuffer(12, 1, repeats=True),
        lambda: ReplayBuffer(12, 1, stack=3),
    ],
)
def test_others_go_the_long_way(make):
    buffer = make()
    buffer.begin(torch.zeros(buffer.num_envs, 3))
    assert not buffer._is_plain


def test_masks_that_come_later_are_kept():
    buffer = episodes(ReplayBuffer(40, 1), False, count=1)
    assert buffer._is_plain
    buffer.begin(torch.ones(1, 3), mask=torch.tensor([[True, False]]))
    assert not buffer._is_plain
    buffer.act(torch.zeros(1, dtype=torch.int64), np.ones(1), np.zeros(1, bool), np.zeros(1, bool))
    buffer.push(torch.ones(1, 3), mask=torch.tensor([[False, True]]))
    row = int(buffer.head[0]) - 1
    read = buffer.read(torch.tensor([row]), 0.9)
    assert read["action_mask"].tolist() == [[True, False]]
    assert read["next_action_mask"].tolist() == [[False, True]]
