"""Which texts a frozen model reads together."""

import random

import pytest

from rl_lightning.llm.chunks import like_lengths


def chunks(lengths, *args, **kwargs):
    return [[lengths[i] for i in rows] for rows in like_lengths(lengths, *args, **kwargs)]


def test_by_hand():
    assert chunks([3, 1, 2], 2) == [[1, 2], [3]]
    assert chunks([5, 5, 5], 8) == [[5, 5, 5]]
    assert chunks([], 8) == []
    # [9, 10]: 1 of 20 is padding; [9, 10, 20]: 21 of 60.
    assert chunks([20, 9, 10], 8, fewest=1) == [[9, 10], [20]]
    assert chunks([20, 9, 10], 8, fewest=3) == [[9, 10, 20]]
    assert chunks([20, 9, 10], 8, padding=1.0, fewest=1) == [[9, 10, 20]]


@pytest.mark.parametrize("seed", range(5))
def test_every_text_once_and_padding_within_bounds(seed):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 128) for _ in range(draw.randint(1, 300))]
    rows = list(like_lengths(lengths, 32))
    assert sorted(i for part in rows for i in part) == list(range(len(lengths)))
    for part in rows:
        longest = max(lengths[i] for i in part)
        padding = 1 - sum(lengths[i] for i in part) / (longest * len(part))
        assert len(part) <= 32
        assert padding <= 0.1 or len(part) <= 8
