"""Drawing indices with probability proportional to a priority that changes all the time."""

import numpy as np

# Measured on batches of 32 to 256: a narrower tree has more levels, a wider one longer sums to
# take, and the root can be far wider than the rest because every item searches the same one.
WIDTH = 16
ROOT = 4096


class SumTree:
    """A tree whose nodes hold the sum of their children, over `size` leaves (float64, first 0).

    Setting and finding leaves cost time proportional to the number of levels, log₁₆(size / 4096)
    and two more, with one NumPy call per level for the whole batch.

    Args:
        size: Number of leaves.

    Raises:
        ValueError: If `size` is less than 1.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size}")
        self.size = size
        self._levels: list[np.ndarray] = []  # from the leaves up, rows of siblings: (nodes, WIDTH)
        nodes = size
        while nodes > ROOT or not self._levels:
            nodes = -(-nodes // WIDTH)
            self._levels.append(np.zeros((nodes, WIDTH)))
        self._root = np.zeros(nodes)
        self._starts = np.zeros(nodes + 1)  # where each of the root's children begins; the total

    @property
    def depth(self) -> int:
        """Levels, of which the leaves are one and the root's children another."""
        return len(self._levels) + 1

    @property
    def total(self) -> float:
        """Sum of all leaves."""
        return float(self._starts[-1])

    @property
    def leaves(self) -> np.ndarray:
        """All leaves, float64 `[size]`: a view, and read-only because the sums must follow."""
        view = self._levels[0].reshape(-1)[: self.size]
        view.flags.writeable = False
        return view

    def load(self, leaves: np.ndarray) -> None:
        """Set all leaves.

        Args:
            leaves: Finite and not negative, `[size]`.

        Raises:
            ValueError: If the shape or a value is wrong.
        """
        leaves = np.asarray(leaves, dtype=np.float64)
        if leaves.shape != (self.size,):
            raise ValueError(f"leaves must have shape ({self.size},), not {leaves.shape}")
        _check_values(leaves)
        self._levels[0].reshape(-1)[: self.size] = leaves
        for level, parents in zip(self._levels, self._parents(), strict=True):
            parents[: len(level)] = level.sum(1)
        np.cumsum(self._root, out=self._starts[1:])

    def get(self, index: np.ndarray) -> np.ndarray:
        """Values of leaves: int64 `[N]` → float64 `[N]`.

        Raises:
            IndexError: If an index is out of range.
        """
        return self._levels[0].reshape(-1)[self._check_index(index)]

    def update(self, index: np.ndarray, value: np.ndarray) -> None:
        """Set leaves; the sums above are taken anew, so that rounding errors never add up.

        Args:
            index: Leaves, int64 `[N]`; of one that occurs several times, the last value stays.
            value: Their values, finite and not negative, `[N]`.

        Raises:
            IndexError: If an index is out of range.
            ValueError: If a value is wrong, or there are more or fewer values than indices.
        """
        index = self._check_index(index)
        value = np.asarray(value, dtype=np.float64)
        if value.shape != index.shape:
            raise ValueError(
                f"value must have the shape of index, {index.shape}, not {value.shape}"
            )
        if not len(index):
            return
        _check_values(value)
        # NumPy assigns in order along one dimension, hence the last of the duplicates.
        self._levels[0].reshape(-1)[index] = value
        for level, parents in zip(self._levels, self._parents(), strict=True):
            index = index // WIDTH
            parents[index] = level.take(index, axis=0).sum(1)
        np.cumsum(self._root, out=self._starts[1:])

    def find(self, mass: np.ndarray) -> np.ndarray:
        """The leaf i that owns each mass: Σ(leaves before i) ≤ mass < Σ(leaves up to i).

        A leaf of value 0 owns nothing and is never found, not by rounding either; `mass == total`
        finds the last leaf that is positive.

        Args:
            mass: Between 0 and `total`, `[N]`.

        Returns:
            int64 `[N]`.

        Raises:
            ValueError: If all leaves are 0, or a mass is out of range.
        """
        if not self.total > 0:
            raise ValueError("total is 0: update a leaf with a positive value before drawing")
        mass = np.asarray(mass, dtype=np.float64)
        if mass.size and not (mass.min() >= 0 and mass.max() <= self.total):
            raise ValueError(
                f"mass must be between 0 and the total {self.total}, "
                f"not {mass.min()} to {mass.max()}"
            )
        row = np.arange(len(mass))
        mass = np.minimum(mass, np.nextafter(self.total, 0))
        node = self._starts[1:].searchsorted(mass, side="right")
        mass = mass - self._starts[node]
        for level in reversed(self._levels):
            ends = level.take(node, axis=0).cumsum(1)  # (N, WIDTH)
            # Rounded differently, the siblings' sum can be less than what was left of the mass.
            np.minimum(mass, np.nextafter(ends[:, -1], 0), out=mass)
            child = (ends <= mass[:, None]).sum(1)
            mass -= np.where(child > 0, ends[row, child - 1], 0.0)
            node = node * WIDTH + child
        return node

    def sample(self, uniform: np.ndarray) -> np.ndarray:
        """Draw one leaf from each of N segments of equal mass (Schaul et al. 2016, app. B.2.1).

        Args:
            uniform: Where in its segment, in [0, 1), `[N]`.

        Returns:
            int64 `[N]`.

        Raises:
            ValueError: If all leaves are 0, or a number is out of range.
        """
        uniform = np.asarray(uniform, dtype=np.float64)
        if uniform.size and not (uniform.min() >= 0 and uniform.max() < 1):
            raise ValueError(f"uniform must be in [0, 1), not {uniform.min()} to {uniform.max()}")
        count = max(len(uniform), 1)
        mass = (np.arange(len(uniform)) + uniform) * (self.total / count)
        return self.find(np.minimum(mass, self.total))

    def _parents(self) -> list[np.ndarray]:
        """The nodes above each level, flat."""
        return [*(level.reshape(-1) for level in self._levels[1:]), self._root]

    def _check_index(self, index: np.ndarray) -> np.ndarray:
        index = np.asarray(index, dtype=np.int64)
        if index.size and not (index.min() >= 0 and index.max() < self.size):
            raise IndexError(
                f"index must be between 0 and {self.size - 1}, not {index.min()} to {index.max()}"
            )
        return index


def _check_values(value: np.ndarray) -> None:
    # Comparisons with NaN are False.
    if not (value.min() >= 0 and value.max() < np.inf):
        raise ValueError(
            f"values must be finite and not negative, not {value.min()} to {value.max()}"
        )
