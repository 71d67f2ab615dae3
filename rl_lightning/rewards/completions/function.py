"""A function of one's own as reward, and how functions are called."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.trust import find_named
from rl_lightning.rewards.completions.reward import CompletionReward, Prompt


class RewardFunction(CompletionReward):
    """What a function says, `f(prompts, completions, **columns)`, plain or `async def`.

    It is given the columns that it names, or all of them where it gathers keywords. One that names
    `completions` is called by names alone, so `f(completions, answer)` will do.

    A checkpoint names the function by its import path; whoever loads it trusts its package as that
    of a wrapper.

    Args:
        function: Returns N numbers; None where it does not apply. A function, or its import path,
            `my_rules.score`.
        **shared: `weight` and `name`, see `CompletionReward`; the name is the function's.

    Raises:
        ConfigurationError: If there is no such function, or if it takes no completions.
    """

    def __init__(self, function: Callable[..., Any] | str, **shared: Any) -> None:
        super().__init__(**shared)
        found = _imported(function) if isinstance(function, str) else function
        if not callable(found) or isinstance(found, type):
            raise ConfigurationError(
                "data.rewards: function must be a function (prompts, completions, **columns), or "
                f"its import path, not {shortened(repr(found), 80)}"
            )
        self.function: Callable[..., Any] = found
        parameters = _parameters(found)
        if parameters is not None and "completions" not in parameters:
            try:
                inspect.Signature(list(parameters.values())).bind_partial([], [])
            except TypeError:
                raise ConfigurationError(
                    f"data.rewards: {self.label} must take prompts and completions, and takes "
                    f"({', '.join(map(str, parameters.values()))})"
                ) from None

    @property
    def _named(self) -> Any:
        """The function itself, of a partial what it is one of."""
        found: Any = self.function
        while isinstance(found, partial):
            found = found.func
        return found if hasattr(found, "__qualname__") else type(found)

    @property
    def own_name(self) -> str:
        name = self._named.__name__
        return name if name.isidentifier() else "function"

    @property
    def label(self) -> str:
        return f"{self._named.__module__}.{self._named.__qualname__}"

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any
    ) -> Any:
        return call_with(self.function, self.label, prompts, completions, columns)


def call_with(
    function: Callable[..., Any],
    label: str,
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    columns: Mapping[str, Any],
) -> Any:
    """What a function returns that is given the columns it takes.

    Args:
        function: Takes prompts and completions in this order, or by these names.
        label: What messages call it.
        prompts: N of them.
        completions: N of them.
        columns: By name, N values each.

    Raises:
        ConfigurationError: If it wants a column that there is not.
    """
    parameters = _parameters(function)
    if parameters is None:
        return function(prompts, completions)
    every = [one for one in parameters.values() if one.kind is not one.VAR_POSITIONAL]
    gathers = any(one.kind is one.VAR_KEYWORD for one in every)
    named = {one.name: one for one in every if one.kind is not one.VAR_KEYWORD}
    texts: tuple[Any, ...] = (prompts, completions)
    if "completions" in named:
        columns, texts = {**columns, "prompts": prompts, "completions": completions}, ()
    first = [one.name for one in named.values() if one.kind is not one.KEYWORD_ONLY][: len(texts)]
    for name, one in named.items():
        if one.default is one.empty and name not in first and name not in columns:
            there = sorted({*columns} - {"prompts", "completions"})
            raise ConfigurationError(
                f"{label} asks for {name!r}, and the data has "
                f"{', '.join(there) if there else 'no columns beside the prompts'}"
            )
    given = {k: v for k, v in columns.items() if k not in first and (gathers or k in named)}
    return function(*texts, **given)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """What a function takes; None where nobody can say."""
    try:
        return inspect.signature(function).parameters
    except (ValueError, TypeError):
        return None


def _imported(path: str) -> Any:
    what = f"the function {path}"
    try:
        return find_named(path, what, "data.rewards asks")
    except ImportError as error:
        raise ConfigurationError(f"data.rewards: {what} cannot be imported: {error}") from error
