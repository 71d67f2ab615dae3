"""Entries that repeat, stored once each: features of texts, and their tokens."""

import numpy as np
import pytest
import torch
from replay_tools import Game, features, tokens

from rl_lightning.data.replay.arrays import Arena
from rl_lightning.data.replay.columns import make_column
from rl_lightning.data.replay.once import OnceColumn

KINDS = ["features", "half", "tokens"]


def make(kind, **kwargs):
    if kind == "tokens":
        return Game(preprocess=tokens, repeats=True, **kwargs)
    half = np.float16 if kind == "half" else None
    return Game(preprocess=features, repeats=True, dtype=half, **kwargs)


def live(game):
    """Rows of the ring that hold an observation, by the tables' own count."""
    slots = game.buffer.columns["obs"].slot
    return slots[slots > 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("next_step", [False, True])
def test_what_is_stored_once_comes_back(kind, next_step):
    game = make(kind, frames=60, next_step=next_step)
    rng = np.random.default_rng(0)
    for _ in range(25):
        game.play(int(rng.integers(1, 12)))
        game.check(n_step=3, rounded=torch.float16 if kind == "half" else None)
        column, used = game.buffer.columns["obs"], live(game)
        # Only what some row still shows is there, and it counts its rows.
        assert len(column) == len(np.unique(used))
        counts = np.bincount(used, minlength=len(column._uses))
        assert counts.tolist() == column._uses
        assert sorted(column._free) == np.flatnonzero(counts == 0)[1:].tolist()
    assert len(column) <= 23


def write(column, row, *numbers):
    x = torch.tensor([[float(n), 0.5] for n in numbers])
    column.write(np.arange(row, row + len(numbers)), x)


def test_entries_by_hand():
    column: OnceColumn = OnceColumn(Arena(), "x", 3, torch.zeros(1, 2))
    write(column, 0, 7, 7, 8)
    assert len(column) == 2
    assert column.read(torch.tensor([2, 0, 1]))[:, 0].tolist() == [8, 7, 7]
    write(column, 0, 9)  # row 1 still shows 7
    assert (len(column), column._uses[1:]) == (3, [1, 1, 1])
    write(column, 1, 8)  # the last 7 is gone
    assert (len(column), column._free) == (2, [1])
    write(column, 2, 5)  # and 5 takes its place
    assert (len(column), column.slot.tolist()) == (3, [3, 2, 1])
    assert column.read(torch.arange(3))[:, 0].tolist() == [9, 8, 5]
    write(column, 0, 9)  # the same again
    assert column.read(torch.arange(3))[:, 0].tolist() == [9, 8, 5]


@pytest.mark.parametrize("ragged", [False, True])
def test_tables_never_grow_beyond_the_rows_and_one(ragged):
    rows, rng = 10, np.random.default_rng(0)
    dtype = torch.int32 if ragged else torch.float32
    column: OnceColumn = OnceColumn(Arena(), "x", rows, torch.zeros(1, 2, dtype=dtype))
    naive = np.zeros((rows, 2))
    for number in range(500):  # all of them different
        row = int(rng.integers(rows)) if number > rows else number % rows
        naive[row] = number, number + 1
        column.write(np.array([row]), torch.tensor(naive[row : row + 1]).to(dtype))
        used = np.flatnonzero(column.slot)
        assert column.read(torch.from_numpy(used)).tolist() == naive[used].tolist()
    assert len(column) == rows
    assert len(column._digests) <= rows + 2  # the unused first one, and one while it is replaced
    assert column.slot.max() <= rows + 1


def test_tokens_are_kept_at_their_own_length():
    column: OnceColumn = OnceColumn(Arena(), "x", 4, torch.zeros(1, 100, dtype=torch.int32))
    x = torch.zeros(4, 100, dtype=torch.int32)
    x[0, :3] = torch.tensor([5, 0, 7])  # a zero in between is no end
    x[1, 99] = 1
    x[3, 0] = 9
    column.write(np.arange(4), x)
    assert [len(row) // 4 for row in column.tables[""].rows[1:]] == [3, 100, 0, 1]
    assert torch.equal(column.read(torch.arange(4)), x)
    assert torch.equal(column.read(torch.tensor([3, 2, 3])), x[[3, 2, 3]])


def test_repeating_features_cost_little():
    plain = Game(preprocess=lambda obs: features(obs).repeat(1, 100), frames=300)
    once = Game(preprocess=lambda obs: features(obs).repeat(1, 100), frames=300, repeats=True)
    for game in (plain, once):
        game.play(140)
        game.check()
    share = len(once.buffer) / once.buffer.used
    assert plain.buffer.bytes_per_frame * share == pytest.approx(1200 + 6)
    table = len(once.buffer.columns["obs"]) * (1200 + 160)
    assert once.buffer.bytes_per_frame * share == pytest.approx(4 + 6 + table / once.buffer.used)


def test_an_encoder_says_for_each_entry_whether_it_repeats():
    x = {"text": torch.zeros(2, 3), "image": torch.zeros(2, 4), "deep": {"text": torch.zeros(2, 3)}}
    column = make_column(
        Arena(), "obs", 6, x, repeats={"text": True, "image": False, "deep": {"text": True}}
    )
    kinds = {key: type(part).__name__ for key, part in column.parts.items()}
    assert kinds == {"text": "OnceColumn", "image": "DenseColumn", "deep": "NestedColumn"}
    assert type(column.parts["deep"].parts["text"]).__name__ == "OnceColumn"
    assert isinstance(make_column(Arena(), "obs", 6, x["deep"], repeats=True), OnceColumn)
