"""Prompts that tasks of reasoning-gym make up."""

import importlib.metadata
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from rl_lightning.core.described import Described
from rl_lightning.core.errors import ConfigurationError, whole, whole_seed
from rl_lightning.data.prompts.table import Prompts, as_json
from rl_lightning.rewards.completions import Prompt
from rl_lightning.rewards.completions.reasoning import imported_gym, made_task
from rl_lightning.rewards.labels.questions import digest


class ReasoningGymPrompts(Described, Prompts):
    """The questions of a task of reasoning-gym, made up by seed: question i is always the same.

    Columns are `answer`, `dataset` (the task's name), `config` (its arguments) and `entry`, all
    that the task says of a question, which `ReasoningGymReward` scores by.

    Args:
        task: Its name, such as `leg_counting`; `composite` mixes those of `config.datasets`, a list
            of `{name: …, weight: …, config: {…}}`.
        size: Questions.
        seed: Of the questions; another seed for validation.
        config: More arguments of the task: how hard it is, say.

    Raises:
        ConfigurationError: If reasoning-gym is missing, has no such task, or the task does not take
            these arguments.
    """

    def __init__(
        self, task: str, size: int = 1_000, seed: int = 0, config: dict[str, Any] | None = None
    ) -> None:
        config = dict(config or {})
        if own := sorted({"size", "seed"} & set(config)):
            raise ConfigurationError(
                f"config holds {own[0]!r}, which is an argument of ReasoningGymPrompts itself"
            )
        self.task, self.size, self.seed = task, whole("size", size, 1), whole_seed("seed", seed)
        self.config = config
        given = {**deepcopy(config), "size": self.size, "seed": self.seed}
        self._made = made_task(imported_gym(), task, given)
        self._configs = {task: config}
        if task == "composite":
            self._configs = {one["name"]: one.get("config", {}) for one in config["datasets"]}
        self._last: tuple[int, dict[str, Any]] | None = None

    def __len__(self) -> int:
        return self.size

    @property
    def names(self) -> Sequence[str]:
        return ("answer", "dataset", "config", "entry")

    def prompt(self, index: int) -> Prompt:
        return self._entry(index)["question"]

    def columns(self, index: int) -> dict[str, Any]:
        entry = self._entry(index)
        name = entry["metadata"]["source_dataset"]
        config = self._configs.get(name, {})
        return {"answer": entry["answer"], "dataset": name, "config": config, "entry": entry}

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        version = importlib.metadata.version("reasoning-gym")
        parts = [self.task, self.size, self.seed, self.config, version]
        return digest(as_json(parts).decode())

    def _entry(self, index: int) -> dict[str, Any]:
        """Made up when it is asked for, of one question once for prompt and columns."""
        if not 0 <= index < self.size:
            raise IndexError(f"question {index} of {self.size}")
        if self._last is None or self._last[0] != index:
            self._last = index, self._made[index]
        return self._last[1]
