"""The sum tree draws what a cumulative sum over all leaves would draw."""

import numpy as np
import pytest
from scipy.stats import chisquare

from rl_lightning.data.replay.sum_tree import ROOT, WIDTH, SumTree

# One leaf, one block, more than a block, no multiple of it, and a level more: ROOT * WIDTH leaves
# are the most that two levels hold.
SIZES = [1, 2, 7, WIDTH, WIDTH + 1, 1000, 4099, ROOT * WIDTH, ROOT * WIDTH + 1, 200_003]


def filled(leaves):
    tree = SumTree(len(leaves))
    tree.load(np.asarray(leaves, np.float64))
    return tree


def brute_find(leaves, mass):
    """The first leaf whose cumulative sum exceeds the mass."""
    return np.searchsorted(np.cumsum(leaves), mass, side="right")


def test_find_by_hand():
    tree = filled([1, 0, 2, 0.5])
    assert tree.total == 3.5
    mass = np.array([0, 0.99, 1, 2.99, 3, 3.49, 3.5])
    assert tree.find(mass).tolist() == [0, 0, 2, 2, 3, 3, 3]
    assert tree.get(np.array([2, 1, 2])).tolist() == [2, 0, 2]
    tree.update(np.array([0, 3]), np.array([0, 4.0]))
    assert tree.total == 6
    assert tree.find(np.array([0, 1.99, 2, 6])).tolist() == [2, 2, 3, 3]


def test_sample_by_hand():
    # Four segments of one: [0, 1) [1, 2) [2, 3) [3, 4); leaf 1 owns [1, 4).
    tree = filled([1, 3])
    assert tree.sample(np.array([0, 0, 0, 0])).tolist() == [0, 1, 1, 1]
    # Segments of two: [0, 2) is shared by both leaves.
    assert tree.sample(np.array([0.49, 0])).tolist() == [0, 1]
    assert tree.sample(np.array([0.51, 0])).tolist() == [1, 1]
    assert tree.sample(np.array([])).tolist() == []


@pytest.mark.parametrize("size", SIZES)
def test_find_equals_brute_force(size):
    rng = np.random.default_rng(size)
    # Whole numbers have exact sums, so borders are tested too: half of the masses lie on one.
    leaves = rng.integers(0, 4, size).astype(np.float64)
    leaves[rng.integers(size)] = 3
    tree = filled(leaves)
    assert tree.total == leaves.sum()
    mass = rng.integers(0, 2 * int(tree.total), 5000) / 2
    assert np.array_equal(tree.find(mass), brute_find(leaves, mass))

    for _ in range(3):
        index = rng.permutation(size)[:300]
        value = rng.integers(0, 4, len(index)).astype(np.float64)
        value[0] = 2
        leaves[index] = value
        tree.update(index, value)
        assert np.array_equal(tree.leaves, leaves)
        assert tree.total == leaves.sum()
        mass = rng.integers(0, 2 * int(tree.total), 500) / 2
        assert np.array_equal(tree.find(mass), brute_find(leaves, mass))


@pytest.mark.parametrize("size", SIZES)
def test_find_with_rounding_is_within_rounding_of_brute_force(size):
    rng = np.random.default_rng(size)
    leaves = rng.exponential(size=size) ** 3
    tree = filled(leaves)
    mass = rng.random(5000) * tree.total
    found, ends = tree.find(mass), np.cumsum(leaves)
    slack = 1e-12 * tree.total
    assert np.all(ends[found] >= mass - slack)
    assert np.all(ends[found] - leaves[found] <= mass + slack)


@pytest.mark.parametrize("size", [3, 1000, 200_003])
def test_zero_leaves_are_never_found(size):
    rng = np.random.default_rng(0)
    leaves = np.where(rng.random(size) < 0.1, rng.exponential(size=size), 0.0)
    leaves[size // 2] = 0.1
    tree = filled(leaves)
    ends = np.cumsum(leaves)
    borders = [ends, np.nextafter(ends, 0), np.nextafter(ends, np.inf), [0, tree.total]]
    mass = np.concatenate(borders).clip(0, tree.total)
    assert np.all(leaves[tree.find(mass)] > 0)
    almost_one = np.nextafter(1, 0)
    for uniform in (np.zeros(997), np.full(997, almost_one), rng.random(997)):
        assert np.all(leaves[tree.sample(uniform)] > 0)


def test_the_smallest_total_is_found():
    tree = SumTree(100)
    tree.update(np.array([37]), np.array([5e-324]))
    assert tree.find(np.array([0, tree.total])).tolist() == [37, 37]
    assert tree.sample(np.full(8, 0.5)).tolist() == [37] * 8


def test_of_duplicates_the_last_value_stays():
    rng = np.random.default_rng(0)
    tree, leaves = SumTree(500), np.zeros(500)
    for _ in range(20):
        index, value = rng.integers(0, 500, 3000), rng.integers(0, 9, 3000).astype(np.float64)
        for i, v in zip(index, value, strict=True):
            leaves[i] = v
        tree.update(index, value)
        assert np.array_equal(tree.leaves, leaves)
        assert tree.total == leaves.sum()


def test_frequencies_follow_priorities_and_the_test_would_notice():
    rng = np.random.default_rng(0)
    size, count = 300, 60_000
    leaves = rng.random(size) + 0.1
    tree = filled(leaves)
    expected = count * leaves / leaves.sum()

    def p_value(index):
        return chisquare(np.bincount(index, minlength=size), expected).pvalue

    # Independent draws, because a stratified one is far closer to its expectation than chance.
    assert p_value(tree.find(rng.random(count) * tree.total)) > 0.01
    assert p_value(rng.integers(0, size, count)) < 1e-6
    batches = [tree.sample(rng.random(100)) for _ in range(count // 100)]
    assert p_value(np.concatenate(batches)) > 0.01


def test_stratified_draws_are_closer_than_independent_ones():
    rng = np.random.default_rng(0)
    leaves = rng.random(50) + 0.1
    tree = filled(leaves)
    counts = np.bincount(tree.sample(rng.random(5000)), minlength=50)
    # A leaf that owns m segments holds at least those in its interior, so it is off by less than 2.
    assert np.abs(counts - 5000 * leaves / leaves.sum()).max() < 2


def test_rounding_errors_do_not_add_up():
    rng = np.random.default_rng(0)
    tree = SumTree(1000)
    index = rng.integers(0, 1000, (100_000, 1))
    value = rng.exponential(size=(100_000, 1)) * 10.0 ** rng.integers(-8, 9, (100_000, 1))
    for i, v in zip(index, value, strict=True):
        tree.update(i, v)
    fresh = filled(tree.leaves)
    assert tree.total == fresh.total
    assert tree.total == pytest.approx(tree.leaves.sum(), rel=1e-14)
    tree.update(np.arange(1000), np.zeros(1000))
    assert tree.total == 0
    mass = np.linspace(0, fresh.total, 999)
    tree.load(fresh.leaves)
    assert np.array_equal(tree.find(mass), fresh.find(mass))


def test_depth_is_logarithmic():
    assert SumTree(1).depth == SumTree(ROOT * WIDTH).depth == 2
    for levels in (1, 2):
        assert SumTree(ROOT * WIDTH**levels).depth == levels + 1
        assert SumTree(ROOT * WIDTH**levels + 1).depth == levels + 2


def test_leaves_are_a_read_only_view():
    tree = filled([1, 2])
    leaves = tree.leaves
    tree.update(np.array([1]), np.array([5.0]))
    assert leaves.tolist() == [1, 5]
    with pytest.raises(ValueError, match="read-only"):
        leaves[0] = 3


def test_an_empty_update_changes_nothing():
    tree = filled([1, 2])
    tree.update(np.array([], np.int64), np.array([]))
    assert tree.leaves.tolist() == [1, 2]
    assert tree.find(np.array([])).tolist() == []


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_wrong_values_are_refused_and_nothing_is_changed(value):
    tree = filled([1, 2])
    with pytest.raises(ValueError, match="values must be finite and not negative, not"):
        tree.update(np.array([0, 1]), np.array([3, value]))
    with pytest.raises(ValueError, match="values must be finite and not negative, not"):
        tree.load(np.array([3, value]))
    assert tree.leaves.tolist() == [1, 2]
    assert tree.total == 3


def test_other_mistakes_are_explained():
    with pytest.raises(ValueError, match="size must be at least 1, not 0"):
        SumTree(0)
    tree = SumTree(3)
    with pytest.raises(ValueError, match="total is 0: update a leaf"):
        tree.sample(np.array([0.5]))
    tree.load(np.ones(3))
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"between 0 and 2, not {index}"):
            tree.update(np.array([index]), np.array([1.0]))
        with pytest.raises(IndexError, match=f"between 0 and 2, not {index}"):
            tree.get(np.array([index]))
    for mass in (-0.1, 3.1, np.nan):
        with pytest.raises(ValueError, match=rf"between 0 and the total 3\.0, not {mass}"):
            tree.find(np.array([mass]))
    for uniform in (-0.1, 1.0, np.nan):
        with pytest.raises(ValueError, match=rf"uniform must be in \[0, 1\), not {uniform}"):
            tree.sample(np.array([uniform]))
    with pytest.raises(ValueError, match=r"shape \(3,\), not \(2,\)"):
        tree.load(np.ones(2))
    with pytest.raises(ValueError, match=r"shape of index, \(2,\), not \(1,\)"):
        tree.update(np.array([0, 1]), np.array([1.0]))
