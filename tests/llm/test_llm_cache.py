import pytest
import torch

from rl_lightning.core.errors import ConfigurationError
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
    texts, rows, _ = cache.state()
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


# --- bounded in bytes -----------------------------------------------------------------------------


def test_rows_and_keys_stay_within_the_bytes_given():
    cache, compute = TextCache(10_000, 2, max_bytes=20_000), Rows()
    for start in range(0, 1000, 50):
        texts = [f"{i:0{1 + i % 300}d}" for i in range(start, start + 50)]
        assert values(cache, texts, compute) == [float(t) for t in texts]
        assert cache.nbytes <= 20_000
    assert 20 < len(cache) < 120
    newest = cache.state()[0][-1]
    asked = len(compute.asked)
    values(cache, (newest,), compute)
    assert len(compute.asked) == asked


def test_the_least_recently_used_go_first_by_bytes_too():
    room = TextCache(10, 2)
    values(room, ("1", "2", "3"), Rows())
    cache, compute = TextCache(10, 2, max_bytes=room.nbytes), Rows()
    values(cache, ("1", "2", "3"), compute)
    values(cache, ("1",), compute)
    values(cache, ("4",), compute)
    assert cache.state()[0] == ["3", "1", "4"]
    values(cache, ("0" * 100 + "5",), compute)  # needs the room of two
    assert cache.state()[0][-1] == "0" * 100 + "5"
    assert cache.state()[0][:-1] in (["4"], ["1", "4"])
    assert cache.nbytes <= room.nbytes


def test_what_is_larger_than_all_room_is_computed_and_not_kept():
    cache, compute = TextCache(10, 2, max_bytes=300), Rows()
    values(cache, ("1",), compute)
    assert values(cache, ("0" * 900 + "7", "2"), compute) == [7, 2]
    assert len(cache) == 1
    none = TextCache(10, 2, max_bytes=0)
    assert values(none, ("1", "1"), compute) == [1, 1]
    assert len(none) == 0
    with pytest.raises(ConfigurationError, match="cache_bytes=-1"):
        TextCache(1, 2, max_bytes=-1)


def test_a_long_text_is_known_by_a_digest():
    cache, compute = TextCache(10, 2), Rows()
    long, other = "0" * 2_000_000 + "1", "0" * 2_000_000 + "2"
    assert values(cache, (long, other, "3", long), compute) == [1, 2, 3, 1]
    assert values(cache, (other, long), compute) == [2, 1]
    assert len(compute.asked) == 1
    assert cache.hits == 1 + 2
    assert cache.nbytes < 1000
    assert values(cache, ("0" * 1024, "0" * 1025, "0" * 1026), compute) == [0, 0, 0]
    assert len(cache) == 6


@pytest.mark.parametrize("strange", ["\ud800" * 2000, "é" * 2000, "\0" * 2000])
def test_any_long_text_has_a_digest(strange):
    cache = TextCache(3, 2)
    assert cache.get((strange,), lambda texts: torch.ones(len(texts), 2)).sum() == 2
    assert cache.get((strange,), lambda texts: pytest.fail("asked again")).sum() == 2


def test_state_with_digests_goes_through_a_checkpoint_file(tmp_path):
    cache, compute = TextCache(4, 2), Rows()
    long = "0" * 5000 + "9"
    values(cache, ("1", long, "2"), compute)
    torch.save(tuple(cache.state()), tmp_path / "state")
    keys, rows, _ = torch.load(tmp_path / "state", weights_only=True)
    for saved in (keys, ["1", long, "2"]):  # today's, and one of when texts were kept whole
        other = TextCache(4, 2)
        other.load_state(saved, rows)
        assert values(other, (long, "2", "1"), Rows()) == [9, 2, 1]
        assert other.state()[0][0] == cache.state()[0][1]


def test_dropped_rows_make_room_for_new_ones():
    cache, compute = TextCache(50, 2, max_bytes=9_000), Rows()
    for i in range(400):
        text = f"{i:0{1 + (i * 7) % 900}d}"
        assert values(cache, (text,), compute) == [float(i)]
        kept = cache.state()[0]
        assert values(cache, kept, Rows()) == [float(k) for k in kept]
    assert len(cache._rows) <= 50
