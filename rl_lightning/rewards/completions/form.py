"""The form of completions: whether they keep to it, and how long they are."""

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch

from rl_lightning.core.errors import ConfigurationError, check_one_of, whole
from rl_lightning.maths.token_advantages import overlong_penalty
from rl_lightning.rewards.completions.reward import (
    CompletionReward,
    Prompt,
    column_of,
    compiled,
)


class FormatReward(CompletionReward):
    """1 where a completion has the form that was asked for, 0 elsewhere.

    Args:
        tags: Names of the tags that it consists of, such as `[think, answer]`:
            `<think>…</think><answer>…</answer>`, each once, in this order, and nothing but white
            space around them. None: those two, unless there is a pattern.
        pattern: In place of tags a regular expression of the whole completion; its dot stands for
            line breaks, too. One that needs ages for odd texts is its writer's risk.
        **shared: `weight` and `name`, see `CompletionReward`.

    Raises:
        ConfigurationError: If both are given, or one is none.
    """

    def __init__(self, tags: list[str] | None = None, pattern: str = "", **shared: Any) -> None:
        super().__init__(**shared)
        if tags is not None and pattern:
            raise ConfigurationError(f"give tags={tags} or pattern={pattern!r}, not both")
        self.tags: list[str] = []
        if not pattern:
            self.tags = ["think", "answer"] if tags is None else list(tags)
            names = all(isinstance(tag, str) and re.fullmatch(r"[\w-]+", tag) for tag in self.tags)
            if not names or not self.tags or len({*self.tags}) != len(self.tags):
                raise ConfigurationError(f"tags must be different names of tags, not {tags!r}")
            inner = [rf"<{tag}>.*?</{tag}>" for tag in self.tags]
            pattern = r"\s*".join(["", *inner, ""])
        self.pattern = compiled("pattern", pattern)

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any
    ) -> list[float]:
        return [float(self._has_form(completion)) for completion in completions]

    def _has_form(self, text: str) -> bool:
        marks = (mark for tag in self.tags for mark in (f"<{tag}>", f"</{tag}>"))
        return all(text.count(mark) == 1 for mark in marks) and bool(self.pattern.fullmatch(text))


class LengthReward(CompletionReward):
    """What the length of a completion is worth: something between −1 and 0.

    With `most` it is 0 up to `most − soft`, and from there falls to −1 at `most` (DAPO's soft
    overlong punishment, Yu et al. 2025, eq. 13). With `target` it is 0 at this length, and −1 at
    twice as much or at nothing: −min(|length − target| / target, 1).

    Args:
        most: Length from which the whole penalty is paid: with tokens, not above
            `max_new_tokens`, or it is never reached.
        soft: Over how much of it the penalty grows; None: a fifth, as DAPO has it.
        target: Length to come near to, in place of `most`.
        unit: Of all of them, `tokens` or `characters`.
        **shared: `weight` and `name`, see `CompletionReward`.

    Raises:
        ConfigurationError: If none or both of `most` and `target` are given, or a number is wrong.
    """

    def __init__(
        self,
        most: int | None = None,
        soft: int | None = None,
        target: int | None = None,
        unit: Literal["tokens", "characters"] = "tokens",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if (most is None) == (target is None):
            raise ConfigurationError(
                f"LengthReward takes most or target, one of the two, not most={most} and "
                f"target={target}"
            )
        if soft is not None and most is None:
            raise ConfigurationError(f"soft={soft} belongs to most; leave it out with target")
        check_one_of("unit", unit, ("tokens", "characters"))
        self.most = None if most is None else whole("most", most, 1)
        self.target = None if target is None else whole("target", target, 1)
        if self.most is not None:
            soft = max(self.most // 5, 1) if soft is None else whole("soft", soft, 1, self.most)
        self.soft, self.unit = soft, unit

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any
    ) -> torch.Tensor:
        in_tokens = self.unit == "tokens"
        what = column_of(columns, "completion_ids", self.label) if in_tokens else completions
        length = torch.tensor([len(one) for one in what])
        if self.most is not None and self.soft is not None:
            return overlong_penalty(length, self.most, self.soft)
        target = float(self.target or 1)
        return -((length - target).abs() / target).clamp(max=1.0)
