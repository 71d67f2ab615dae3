"""Several rewards as one: what completions are worth together."""

import asyncio
import copy
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, RunError, shortened
from rl_lightning.rewards.completions.function import RewardFunction, call_with
from rl_lightning.rewards.completions.reward import CompletionReward, Prompt
from rl_lightning.rewards.make import free_name

RewardLike = CompletionReward | Callable[..., Any] | str
_LARGEST = float(torch.finfo(torch.float32).max)
# What a reward is given beside the columns of the data.
_OURS = ("prompts", "completions", "completion_ids", "ended")


class Judged(NamedTuple):
    """What N completions are worth."""

    total: Tensor
    """Σ weightᵢ · rᵢ, float32 `[N]`."""
    parts: dict[str, Tensor]
    """Each rᵢ by its name, before its weight, float32 `[N]`; NaN where it does not apply."""

    def means(self) -> dict[str, float]:
        """The mean of each rᵢ over where it applies; of one that applies nowhere there is none."""
        applies = {name: r[~r.isnan()] for name, r in self.parts.items()}
        return {name: float(r.mean()) for name, r in applies.items() if len(r)}


class CompletionJudge:
    """Judges completions by several rewards, each under a name of its own.

    Those that are `async def` wait together for what they ask. Every row is judged, equal ones too.

    Args:
        rewards: Rewards, functions, or import paths of functions, see `RewardFunction`.
        weights: In the place of the rewards' own.

    Raises:
        ConfigurationError: If there is none, one is no reward, or two have been given one name.

    Attributes:
        rewards: By name.
        weights: By name.
    """

    def __init__(
        self, rewards: Sequence[RewardLike], weights: Sequence[float] | None = None
    ) -> None:
        if isinstance(rewards, str) or not isinstance(rewards, Sequence) or not rewards:
            raise ConfigurationError(
                f"data.rewards must be a list of rewards, not {shortened(repr(rewards), 80)}; "
                "write [{class_path: rl_lightning.rewards.completions.ExactMatch}], in Python "
                "[ExactMatch(), my_function]"
            )
        if weights is not None and len(weights) != len(rewards):
            raise ConfigurationError(
                f"weights must be a number for each of {len(rewards)} rewards, not {weights}"
            )
        self.rewards: dict[str, CompletionReward] = {}
        self.weights: dict[str, float] = {}
        self._warned: set[str] = set()
        for index, given in enumerate(rewards):
            reward = given if isinstance(given, CompletionReward) else _wrapped(index, given)
            name = reward.name or free_name(reward.own_name, self.rewards)
            if name in self.rewards:
                raise ConfigurationError(
                    f"data.rewards[{index}]: the name {name!r} is taken; give another"
                )
            self.rewards[name] = reward
            weight = reward.weight if weights is None else weights[index]
            self.weights[name] = CompletionReward(weight).weight  # checks it

    def judge(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
        ended: Sequence[bool] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> Judged:
        """What N completions are worth.

        Args:
            prompts: Texts or chats, N.
            completions: Texts, N.
            completion_ids: Their own tokens, N lists.
            ended: Whether each came to an end of its own.
            columns: What the data holds beside its prompts, lists of N.

        Raises:
            RunError: If a reward fails, or returns something else than N finite numbers.
            ConfigurationError: If one asks for a column that there is not, or the data has one of a
                name that is taken.
        """
        columns = dict(columns or {})
        if taken := [name for name in _OURS if name in columns]:
            raise ConfigurationError(
                f"data.prompts: {taken[0]!r} is what rewards are told of completions; give that "
                "column another name"
            )
        if taken := [name for name in columns if name == "self" or not isinstance(name, str)]:
            raise ConfigurationError(
                f"data.prompts: a column is called {taken[0]!r}, by which rewards cannot be given "
                "it; give that column another name"
            )
        told = {"completion_ids": completion_ids, "ended": ended}
        columns |= {name: values for name, values in told.items() if values is not None}
        for name, values in {"prompts": prompts, **columns}.items():
            if len(values) != len(completions):
                raise ValueError(f"{name}: {len(values)} for {len(completions)} completions")
        answers = self._answers(prompts, completions, columns)
        parts = {
            name: _numbers(self.rewards[name].label, answer, completions)
            for name, answer in answers.items()
        }
        self._warn_of_none(parts)
        total = np.zeros(len(completions))
        for name, part in parts.items():
            total += self.weights[name] * np.nan_to_num(part)
        if (large := np.abs(total) > _LARGEST).any():
            row = int(large.argmax())
            raise RunError(
                f"the rewards of row {row} add up to {total[row]:g}, too much for float32; give "
                "smaller weights"
            )
        as_tensor = {name: torch.from_numpy(part).float() for name, part in parts.items()}
        return Judged(torch.from_numpy(total).float(), as_tensor)

    def _warn_of_none(self, parts: Mapping[str, np.ndarray]) -> None:
        """Warn, once of each reward, where all that it pays is 0 because it applies to nothing."""
        for name, part in parts.items():
            if len(part) and np.isnan(part).all() and name not in self._warned:
                self._warned.add(name)
                rank_zero_warn(
                    f"the reward {self.rewards[name].label} applied to none of {len(part)} "
                    "completions (it returned None), which counts as 0: if that is not meant, let "
                    "it return numbers, or take it out of data.rewards"
                )

    def metrics(self) -> dict[str, float]:
        """What rewards have to log since the last call, as `reward/<name>/<key>`."""
        return {
            f"reward/{name}/{key}": value
            for name, reward in self.rewards.items()
            for key, value in reward.metrics().items()
        }

    def _answers(
        self, prompts: Sequence[Prompt], completions: Sequence[str], columns: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What each reward returns; those that wait do so together, once the others are done."""
        answers: dict[str, Any] = {}
        try:
            for name, reward in self.rewards.items():
                own = {column: _copied(values) for column, values in columns.items()}
                texts = _copied(prompts), _copied(completions)
                try:
                    answers[name] = call_with(reward.__call__, reward.label, *texts, own)
                except Exception as error:
                    raise _failure(reward.label, error, completions) from error
        except BaseException:
            for coroutine in filter(inspect.iscoroutine, answers.values()):
                coroutine.close()
            raise
        waiting = {name: one for name, one in answers.items() if inspect.isawaitable(one)}
        if waiting:
            for name, answer in _waited_for(waiting).items():
                if isinstance(answer, BaseException):
                    label = self.rewards[name].label
                    raise _failure(label, answer, completions) from answer
                answers[name] = answer
        return answers


def _copied(values: Sequence[Any]) -> Sequence[Any]:
    """A list, and lists in it, for one reward alone: it may change them."""
    if not isinstance(values, list | tuple):
        return copy.copy(values)
    return [list(one) if isinstance(one, list) else one for one in values]


def _wrapped(index: int, given: Any) -> RewardFunction:
    if isinstance(given, str) or (callable(given) and not isinstance(given, type)):
        return RewardFunction(given)
    raise ConfigurationError(
        f"data.rewards[{index}] must be a reward, a function (prompts, completions, **columns) or "
        f"its import path, not {shortened(repr(given), 80)}"
    )


def _waited_for(waiting: Mapping[str, Awaitable[Any]]) -> dict[str, Any]:
    """What awaitables come to, or what they raise; whether or not a loop is running here."""

    async def together() -> list[Any]:
        return await asyncio.gather(*waiting.values(), return_exceptions=True)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        found = asyncio.run(together())
    else:  # a notebook's: its loop cannot wait for another
        with ThreadPoolExecutor(1, thread_name_prefix="rewards") as pool:
            found = pool.submit(asyncio.run, together()).result()
    return dict(zip(waiting, found, strict=True))


def _failure(label: str, error: BaseException, completions: Sequence[str]) -> Exception:
    if isinstance(error, RunError | ConfigurationError):
        return type(error)(f"the reward {label}: {error}")
    first = f", the first of them {shortened(repr(completions[0]), 80)}" if completions else ""
    return RunError(
        f"the reward {label} failed on {len(completions)} completions{first}: "
        f"{type(error).__name__}: {shortened(error)}"
    )


def _numbers(label: str, answer: Any, completions: Sequence[str]) -> np.ndarray:
    """What a reward has returned, float64 `[N]`, NaN for None."""
    if hasattr(answer, "tolist"):  # of NumPy, torch
        answer = answer.tolist()
    count = len(completions)
    if isinstance(answer, str | bytes | Mapping) or not isinstance(answer, Sequence):
        raise RunError(
            f"the reward {label} must return {count} numbers, one for each completion, not "
            f"{shortened(repr(answer), 80)}"
        )
    if len(answer) != count:
        raise RunError(f"the reward {label} returned {len(answer)} numbers for {count} completions")
    return np.array([_number(label, row, one, completions) for row, one in enumerate(answer)])


def _number(label: str, row: int, value: Any, completions: Sequence[str]) -> float:
    if value is None:
        return math.nan
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not abs(number) <= _LARGEST:
        raise RunError(
            f"the reward {label} returned {shortened(repr(value), 60)} for row {row}, "
            f"{shortened(repr(completions[row]), 80)}; it must be a finite number, or None where "
            "it does not apply"
        )
    return number
