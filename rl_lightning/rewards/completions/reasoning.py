"""The tasks of reasoning-gym, scored by their own rules."""

import ast
import importlib
import inspect
import json
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from rl_lightning.core.errors import ConfigurationError, nearest, shortened
from rl_lightning.rewards.completions.reward import (
    CompletionReward,
    Prompt,
    column_of,
    compiled,
    last_found,
)

ANSWER = r"<answer>(.*?)</answer>"
_WORDS = re.compile(r"(?:-?\w|\s)*", re.ASCII)
_SUM = re.compile(r"(?:[\d\s+/().-]|\*(?!\s*\*))*", re.ASCII)
_LONGEST = 1_000  # characters of what is evaluated
_EVALUATES = re.compile(r"\b(?:eval|exec|parse_expr|sympify)\(")


def _is_list(text: str) -> bool:
    """Whether a text is words and numbers, or what Python writes of lists and texts."""
    if _WORDS.fullmatch(text):
        return True
    try:
        ast.literal_eval(text[: _LONGEST + 1])
    except Exception:  # of many kinds
        return False
    return len(text) <= _LONGEST


def _is_sum(text: str) -> bool:
    """Whether a text is numbers, brackets and the four signs."""
    return len(text) <= _LONGEST and _SUM.fullmatch(text) is not None


# The tasks of reasoning-gym 0.1.25 whose rule hands answers to Python's `eval`, itself or by
# sympy's `parse_expr`, and which of them may get there.
_EVALUATED: dict[str, Callable[[str], bool]] = {
    "binary_matrix": _is_list,
    "countdown": _is_sum,
    "n_queens": _is_list,
    "number_sorting": lambda text: True,  # evaluates nothing but what it has written itself
    "puzzle24": _is_sum,
    "spiral_matrix": _is_list,
    "string_insertion": _is_list,
}


class ReasoningGymReward(CompletionReward):
    """The score that a task of reasoning-gym gives to an answer, between 0 and 1.

    For prompts of `ReasoningGymPrompts`, whose columns say which task each is of. What a task's
    rule cannot read, and stops at, is worth 0.

    Some of those rules hand the answer to Python's `eval`. No answer gets there but the right one
    and harmless ones: sums of numbers where one is asked for, elsewhere words, numbers and lists of
    them. Any other is scored as an empty one. Three tasks need more than that and are refused,
    `simple_integration`, `intermediate_integration` and `polynomial_multiplication`, as is a task
    of another version that does the same. Some evaluate their own entries, too: take those that
    stand in a file from nobody whose code you would not run.

    Args:
        pattern: Regular expression of the answer in the completion: what it finds last, its first
            group or else all of it; where it finds nothing, there is no answer. An empty one
            takes the completion as it is. One that needs ages for odd texts is its writer's risk.
        column: Holds the tasks' entries: their question, answer and metadata.
        **shared: `weight` and `name`, see `CompletionReward`.

    Raises:
        ConfigurationError: If reasoning-gym is missing, or the pattern is none; when judging, if
            there is no such column, or a task is refused.
    """

    def __init__(self, pattern: str = ANSWER, column: str = "entry", **shared: Any) -> None:
        super().__init__(**shared)
        self.pattern = compiled("pattern", pattern)
        self.column = column
        self._gym = imported_gym()
        self._tasks: dict[str, Any] = {}

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any
    ) -> list[float]:
        entries = column_of(columns, self.column, self.label)
        configs = columns.get("config") or [None] * len(completions)
        rows = zip(completions, entries, configs, strict=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy, about what it is given to read
            return [self._score(*row) for row in rows]

    def _score(self, completion: str, entry: Any, config: Any) -> float:
        try:
            name = entry["metadata"]["source_dataset"]
        except (TypeError, KeyError):
            raise ConfigurationError(
                f"column {self.column!r} must hold entries of reasoning-gym, with the "
                f"source_dataset in their metadata, not {shortened(repr(entry), 80)}"
            ) from None
        task = self._task(name, dict(config or {}))
        said = last_found(self.pattern, completion)
        said = None if said is None else said.strip()
        if said is not None and not self._may_be_read(name, said, entry):
            said = ""
        try:
            return float(task.score_answer(said, entry))
        except Exception:  # prime_factorization of a word, game_of_life of an object
            return 0.0

    @staticmethod
    def _may_be_read(name: str, said: str, entry: Any) -> bool:
        may = _EVALUATED.get(name)
        return may is None or said == entry.get("answer") or may(said)

    def _task(self, name: str, config: dict[str, Any]) -> Any:
        key = json.dumps([name, config], sort_keys=True, default=repr)
        if key not in self._tasks:
            made = made_task(self._gym, name, config)
            if name not in _EVALUATED and _EVALUATES.search(
                inspect.getsource(type(made).score_answer)
            ):
                raise ConfigurationError(
                    f"the rule of reasoning-gym's {name} runs answers as Python code, and what a "
                    "model writes is never run here: leave that task out"
                )
            self._tasks[key] = made
        return self._tasks[key]


def imported_gym() -> Any:
    """The package reasoning_gym.

    Raises:
        ConfigurationError: If it is not installed.
    """
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise ConfigurationError(
            f"the tasks of reasoning-gym need the package of that name ({error}): "
            "pip install rl-lightning[tokens]"
        ) from error


def made_task(gym: Any, name: str, config: dict[str, Any]) -> Any:
    """A task of reasoning-gym.

    Args:
        gym: The package.
        name: Of the task, or `composite`.
        config: Its arguments, size and seed among them.

    Raises:
        ConfigurationError: If there is no such task, or it does not take these arguments.
    """
    known = gym.factory.DATASETS
    if name not in known:
        near = ", ".join(nearest(str(name), known)[:3])
        raise ConfigurationError(
            f"reasoning-gym has no task {name!r}; nearest of {len(known)} are {near}"
        )
    if name == "composite":
        spec = gym.composite.DatasetSpec
        try:
            parts = [spec(**{"weight": 1.0, "config": {}, **one}) for one in config["datasets"]]
        except (KeyError, TypeError):
            raise ConfigurationError(
                "config of composite must hold datasets, a list of {name: …, weight: …, config: "
                f"{{…}}}}, not {shortened(repr(config), 120)}"
            ) from None
        config = {**config, "datasets": parts}
    try:
        return gym.create_dataset(name, **config)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigurationError(
            f"reasoning-gym's {name} does not take {shortened(repr(config), 120)}: "
            f"{shortened(error)}"
        ) from error
