"""What tasks have in common that go once through the layers of a trained network."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from torch import nn

from rl_lightning.core.errors import whole
from rl_lightning.envs.optimise.data import Splits
from rl_lightning.envs.optimise.layers import Target, original_accuracy, shared_target
from rl_lightning.envs.optimise.tasks import (
    TaskEnv,
    check_choices,
    check_seeds,
    continuous_action,
    discrete_action,
)


class LayerByLayerEnv(TaskEnv):
    """An episode is one network, which the seed of its task decides, and a step is one layer.

    Args:
        data: See `load_data`.
        model: See `build_target`.
        widths: Widths to draw from.
        depths: Depths to draw from.
        least_depth: What a depth must be at least.
        splits: Half-open range of seeds of the division of the data.
        seed_range: Half-open range of task seeds.
        epochs: Of training the network, once, see `trained_target`.
    """

    _width = _depth = _split = 0
    _original: float

    def __init__(
        self,
        data: str,
        model: str,
        widths: Sequence[int],
        depths: Sequence[int],
        least_depth: int,
        splits: Sequence[int],
        seed_range: Sequence[int],
        epochs: int,
    ) -> None:
        super().__init__(seed_range)
        self.data, self.model = data, model
        self.widths = check_choices("widths", widths, 1)
        self.depths = check_choices("depths", depths, least_depth)
        self.splits = check_seeds("splits", splits)
        self.epochs = whole("epochs", epochs, 1)

    def _begin(self, options: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        drawn = np.random.default_rng(self._task_seed)
        self._width, self._depth = int(drawn.choice(self.widths)), int(drawn.choice(self.depths))
        self._split = int(drawn.integers(*self.splits))
        self._original = original_accuracy(self._named_target())
        info = self._whole()
        return self._observe(), {**info, **self._task()}

    def target(self) -> tuple[nn.Module, Splits]:
        """The episode's whole network and its data, shared: nothing may change them.

        Raises:
            ResetNeeded: Before the first episode.
        """
        return shared_target(self._named_target())

    def _named_target(self) -> Target:
        """What names the episode's network."""
        if not self._width:
            raise ResetNeeded("no episode has begun: call reset() first")
        names = (self._width, self._depth, self._split)
        return Target(self.model, self.data, *names, self.epochs)

    def _whole(self) -> dict[str, Any]:
        """Forget the episode before; what `info` says of a whole network."""
        raise NotImplementedError

    def _observe(self) -> np.ndarray:
        raise NotImplementedError

    def _task(self) -> dict[str, Any]:
        """What `info` says of the network at both ends of an episode."""
        return {
            "task_seed": self._task_seed,
            "width": self._width,
            "depth": self._depth,
            "split": self._split,
            "original_accuracy": self._original,
        }

    def _number(self, action: Any) -> float:
        """The one number that a continuous action is."""
        return continuous_action(action, self.action_space).item()

    def _choice(self, action: Any) -> int:
        """The place of a discrete action among the choices."""
        (chosen,) = discrete_action(action, self.action_space)
        return chosen
