"""Completions of prompts: written, judged, and put into a batch.

Shapes: P prompts of a batch, G completions of each, L tokens of a prompt, T of a completion.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.data.prompts.asked import Asked
from rl_lightning.data.prompts.lines import only_json
from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.generators import Generator
from rl_lightning.llm.sampling import Sampling
from rl_lightning.rewards.completions import CompletionJudge


class Completed(NamedTuple):
    """What was asked, what was written, and what it is worth.

    `batch` is what agents learn from, see `rl_lightning.agents.TokenAgent`; `ended` bool `[P, G]`:
    by its own end, and not cut; `parts` are rewards by name, `[P, G]`, nan where one has none;
    `seconds` those of writing and of judging; `tokens`, how many were written. `told` is what else
    there is to be known, by name, `[P, G]`, and `lines` what is to be written down of each.
    """

    asked: Asked
    texts: list[str]
    batch: TensorDict
    ended: Tensor
    parts: Mapping[str, Tensor]
    seconds: tuple[float, float]
    tokens: int
    told: Mapping[str, Tensor] = MappingProxyType({})
    lines: Sequence[Mapping[str, Any]] = ()

    def telling(self, **more: Tensor) -> "Completed":
        """The same, with something else in `told`."""
        return self._replace(told={**self.told, **more})


def complete(
    backbone: Backbone,
    generator: Generator,
    asked: Asked,
    samples: int,
    sampling: Sampling,
    judge: CompletionJudge,
    version: int,
) -> Completed:
    """Write G completions of each prompt and judge them.

    Args:
        backbone: The language model.
        generator: Writes with it.
        asked: The prompts.
        samples: G.
        sampling: How tokens are chosen.
        judge: Says what completions are worth.
        version: Updates that the model has had.
    """
    began = time.perf_counter()
    device = next(backbone.parameters()).device
    written = generator(backbone, asked.ids, samples, sampling, version)
    tokenizer = backbone.tokens.tokenizer
    rows = [
        row[:length]
        for row, length in zip(written.ids.tolist(), written.length.tolist(), strict=True)
    ]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    wrote = time.perf_counter()
    judged = judge.judge(
        repeated(asked.prompts, samples),
        texts,
        rows,
        written.ended.tolist(),
        {name: repeated(values, samples) for name, values in asked.columns.items()},
    )
    shape = len(asked.ids), samples
    longest = int(written.length.max())
    prompt, there = backbone.tokens.pad(asked.ids)
    ids, lengths = written.ids[:, :longest].view(*shape, -1), written.length.view(shape)
    batch = TensorDict(
        {
            "prompt": prompt.int(),
            "prompt_length": there.sum(1),
            "ids": ids.int(),
            "length": lengths,
            "own": torch.arange(ids.shape[2], device=ids.device) < lengths[..., None],
            "said": written.log_prob[:, :longest].view(*shape, -1),
            "reward": judged.total.view(shape),
            "temperature": torch.full(shape[:1], float(sampling.temperature)),
            "most": torch.full(shape[:1], sampling.max_new_tokens),
        },
        batch_size=shape[:1],
    ).to(device)
    parts = {name: values.view(shape) for name, values in judged.parts.items()}
    seconds = wrote - began, time.perf_counter() - wrote
    tokens = int(written.length.sum())
    return Completed(asked, texts, batch, written.ended.view(shape), parts, seconds, tokens)


def repeated(values: Sequence[Any], samples: int) -> list[Any]:
    """Each of the values as often as its prompt has completions."""
    return [value for value in values for _ in range(samples)]


class CompletionLoader:
    """A loader of judged completions for evaluation, one batch of prompts at a time.

    Each iteration writes with the same random numbers, so that validations differ by the model
    alone; training's are left untouched.

    Args:
        answer: From numbers of prompts to their completions.
        rows: Numbers of this rank's prompts.
        size: Prompts of a batch.
        seed: Of the random numbers.
        device: Gives the model's.
        threshold: Reward from which a completion counts as right; None: nobody says.
        table: Completions of the first prompts that are shown in full.

    Attributes:
        keep: Is given the lines of each batch as soon as it is judged; None: nobody is.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[int]], Completed],
        rows: Sequence[int],
        size: int,
        seed: int,
        device: Callable[[], torch.device],
        threshold: float | None = None,
        table: int = 0,
    ) -> None:
        self.answer, self.size, self.seed, self.device = answer, size, seed, device
        self.parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        self.threshold, self.table = threshold, table
        self.seconds = 0.0
        self.keep: Callable[[Sequence[Mapping[str, Any]]], None] | None = None

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        left = self.table
        for number, part in enumerate(self.parts):
            began = time.perf_counter()
            with self._own_random_numbers(number):
                found = self.answer(part)
            result = results(found, self.threshold)
            if self.keep is not None:
                self.keep(result["lines"])
            if left > 0:
                shown = [line for line in result["lines"] if line["sample"] == 0][:left]
                result["transcript"] = [_row(line) for line in shown]
                left -= len(shown)
            self.seconds += time.perf_counter() - began
            yield result

    def close(self) -> None:
        """Nothing is open."""

    @contextmanager
    def _own_random_numbers(self, number: int) -> Iterator[None]:
        device = self.device()
        devices = [] if device.type == "cpu" else [device]
        kind = "cuda" if device.type == "cpu" else device.type
        with torch.random.fork_rng(devices, device_type=kind):
            torch.manual_seed(self.seed + 1_000_003 * number)
            yield


def results(found: Completed, threshold: float | None) -> dict[str, Any]:
    """What `validation_step` and `predict_step` are given, see `EvaluatedCompletions`."""
    reward = found.batch["reward"].cpu()
    success = None if threshold is None else (reward >= threshold).float()
    success = found.told.get("success", success)
    length = found.batch["length"].cpu()
    samples = reward.shape[1]
    own = found.lines or repeated(_columns(found.asked), samples)
    lines = []
    for n, text in enumerate(found.texts):
        p, g = divmod(n, samples)
        parts = {name: _number(part[p, g]) for name, part in found.parts.items()}
        lines.append(
            {
                "prompt": found.asked.prompts[p],
                "sample": g,
                "completion": text,
                "reward": float(reward[p, g]),
                **({"rewards": parts} if len(parts) > 1 else {}),
                **_success(success, p, g),
                "tokens": int(length[p, g]),
                "ended": bool(found.ended[p, g]),
                **own[n],
            }
        )
    return {
        "reward": reward,
        "length": length,
        "ended": found.ended.cpu(),
        "success": success,
        "parts": {name: part.cpu() for name, part in found.parts.items()},
        "told": found.told,
        "lines": lines,
    }


def _columns(asked: Asked) -> list[dict[str, Any]]:
    """What the data say of each prompt, as far as a line can hold it."""
    rows = [
        {name: values[p] for name, values in asked.columns.items()} for p in range(len(asked.ids))
    ]
    return [{"columns": known} if (known := only_json(row)) else {} for row in rows]


def _success(success: Tensor | None, p: int, g: int) -> dict[str, bool]:
    """Whether a completion is right, if somebody says so."""
    known = None if success is None else _number(success[p, g])
    return {} if known is None else {"success": bool(known)}


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line as the text panel shows it."""
    parts = line.get("rewards", {})
    return {
        "prompt": last_words(line["prompt"]),
        "completion": line["completion"],
        "reward": line["reward"],
        **{name: "" if value is None else value for name, value in parts.items()},
    }


def last_words(prompt: Any) -> str:
    """A prompt as one text: of a chat what was said last."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _number(value: Tensor) -> float | None:
    number = float(value)
    return None if number != number else number
