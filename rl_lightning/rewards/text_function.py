"""A rule as judge: a plain function from texts to numbers."""

from collections.abc import Callable, Sequence
from typing import Any

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.types import EnvSpec
from rl_lightning.rewards.reward import StateReward
from rl_lightning.rewards.texts import text_entry


class TextFunction(StateReward):
    """r = h(texts of s′), by a function of one's own: a rule, a lookup, a model served elsewhere.

    A checkpoint names the function by its import path; whoever loads it trusts its package as that
    of a wrapper.

    Args:
        spec: Of an environment whose observations are, or hold, a text.
        function: Takes B texts, returns B finite numbers; by its import path, `my_rules.warmth`.
        entry: The entry of a Dict or Tuple observation; None: the observation itself, or the one
            text in it.
        **shared: `weight`, `name`, `shaping` and `offset`, see `StateReward`.

    Raises:
        ConfigurationError: If there is no such text, or if the function is none.
    """

    def __init__(
        self,
        spec: EnvSpec,
        function: Callable[[Sequence[str]], Any],
        entry: str | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        if not callable(function):
            raise ConfigurationError(
                "data.rewards: function must be a function from texts to numbers, by its import "
                f"path; not {shortened(repr(function), 80)}"
            )
        self.function = function
        self.entry = text_entry(spec, entry, type(self).__name__)

    @property
    def label(self) -> str:
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        return f"{getattr(self.function, '__module__', '')}.{name}"

    def value(self, obs: Any) -> Any:
        return self.function(self.entry(obs))
