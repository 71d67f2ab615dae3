import pytest
import torch

from rl_lightning.errors import ConfigurationError
from rl_lightning.llm import TextCache


class Rows:
    """Row of a text: its numeric value, twice. Remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked.append(list(texts))
        return torch.tensor([[float(t), -float(t)] for t in texts])


def values(cache, texts, compute):
    out = cache.get(texts, compute)
    assert torch.equal(out[:, 1], -out[:, 0])
    return out[:, 0].tolist()


def test_computes_each_text_once_and_keeps_the_order():
    cache, compute = TextCache(10, 2), Rows()
    assert values(cache, ("3", "1", "3"), compute) == [3, 1, 3]
    assert values(cache, ("1", "2", "3", "2"), compute) == [1, 2, 3, 2]
    assert values(cache, ("2", "1"), compute) == [2, 1]
    assert compute.asked == [["3", "1"], ["2"]]
    assert (cache.hits, cache.lookups, len(cache)) == (1 + 3 + 2, 9, 3)
    assert values(cache, (), compute) == []


def test_drops_the_least_recently_used():
    cache, compute = TextCache(3, 2), Rows()
    values(cache, ("1", "2", "3"), compute)
    assert values(cache, ("4", "1"), compute) == [4, 1]  # 2 goes, not 1
    assert len(cache) == 3
    assert values(cache, ("3", "4", "1"), compute) == [3, 4, 1]
    assert compute.asked == [["1", "2", "3"], ["4"]]
    assert values(cache, ("2",), compute) == [2]
    assert compute.asked[-1] == ["2"]


def test_a_batch_larger_than_the_cache():
    cache, compute = TextCache(2, 2), Rows()
    assert values(cache, ("1", "2"), compute) == [1, 2]
    assert values(cache, ("2", "3", "4", "5", "1"), compute) == [2, 3, 4, 5, 1]
    assert len(cache) == 2
    assert cache.state()[0] == ["4", "5"]


def test_size_zero_spares_only_duplicates():
    cache, compute = TextCache(0, 2), Rows()
    assert values(cache, ("1", "1"), compute) == [1, 1]
    assert values(cache, ("1",), compute) == [1]
    assert compute.asked == [["1"], ["1"]]
    assert (cache.hits, len(cache)) == (1, 0)


def test_grows_and_never_beyond_its_size():
    cache, compute = TextCache(3000, 2), Rows()
    for start in range(0, 5000, 500):
        texts = [str(i) for i in range(start, start + 500)]
        assert values(cache, texts, compute) == list(range(start, start + 500))
    assert len(cache) == len(cache._rows) == 3000
    assert values(cache, ("2000", "4999"), compute) == [2000, 4999]
    assert len(compute.asked) == 10


def test_against_a_dict_with_random_use():
    import random

    rng = random.Random(0)
    cache, compute = TextCache(20, 2), Rows()
    for _ in range(300):
        texts = [str(rng.randrange(40)) for _ in range(rng.randrange(1, 30))]
        assert values(cache, texts, compute) == [float(t) for t in texts]
    assert len(cache) == 20


def test_state_keeps_order_of_use():
    cache, compute = TextCache(3, 2), Rows()
    values(cache, ("1", "2", "3"), compute)
    values(cache, ("1",), compute)
    texts, rows = cache.state()
    assert texts == ["2", "3", "1"]
    other = TextCache(3, 2)
    other.load_state(texts, rows)
    values(other, ("4",), compute)
    assert other.state()[0] == ["3", "1", "4"]
    smaller = TextCache(2, 2)
    smaller.load_state(texts, rows)
    assert smaller.state()[0] == ["3", "1"]
    assert values(smaller, ("3", "1"), Rows()) == [3, 1]


def test_what_is_added_in_inference_mode_can_be_overwritten_outside_it():
    cache, compute = TextCache(2, 2), Rows()
    with torch.inference_mode():
        values(cache, ("1", "2"), compute)
    assert values(cache, ("3", "2"), compute) == [3, 2]


def test_negative_size():
    with pytest.raises(ConfigurationError, match="cache_size=-1"):
        TextCache(-1, 2)
