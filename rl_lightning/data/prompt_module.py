"""The data module of reinforcement learning over tokens: completions of prompts, and rewards."""

import math
import resource
import time
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict

from rl_lightning.core.errors import ConfigurationError, whole
from rl_lightning.core.protocols import Trainee
from rl_lightning.core.ranks import gather
from rl_lightning.data.collect.completions import Completed
from rl_lightning.data.prompts import Prompts
from rl_lightning.data.rollout_module import RolloutLoader
from rl_lightning.data.token_module import TokenDataModule
from rl_lightning.llm.sampling import Sampling
from rl_lightning.maths.token_advantages import groups_without_spread


class PromptDataModule(TokenDataModule):
    """Prompts, G completions of each by the present model, their rewards, and minibatches of that.

    The clock counts prompts: `total_prompts` is the budget, `agent.frames` and the x axis of all
    curves are prompts of all ranks. One step asks `prompts_per_step` of them on each rank; what
    comes of it is learned from in `passes` passes of minibatches, each of whole groups. Training
    passes over all prompts, in an order drawn anew for each pass.

    Args:
        prompts: See `TokenDataModule`.
        prompts_per_step: Prompts of one step, P, on each rank.
        group_size: Completions of each, G.
        minibatch_prompts: Prompts of one minibatch, with all their completions; a divisor of
            `prompts_per_step`. None: all of them.
        passes: Passes over each step's completions.
        steps_per_epoch: Steps that make one epoch of the trainer, and so the grid on which
            validation and checkpoints happen.
        total_prompts: Budget, in prompts of all ranks together.
        temperature: Of the softmax that is sampled from; also in the loss.
        top_k: Sample from so many most likely tokens only; not in the loss.
        top_p: Sample from the fewest tokens that have this probability together; not in the loss.
        **shared: Arguments of `TokenDataModule`.

    Raises:
        ConfigurationError: If a number is wrong or does not fit the others.
    """

    logs_every = 1  # they take seconds each
    unit = "prompt"
    minibatch = "data.minibatch_prompts"

    def __init__(
        self,
        prompts: Prompts | str | list,
        prompts_per_step: int = 16,
        group_size: int = 8,
        minibatch_prompts: int | None = None,
        passes: int = 1,
        steps_per_epoch: int = 10,
        total_prompts: int = 10_000,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(prompts, total_frames=total_prompts, **shared)
        self.prompts_per_step = whole("data.prompts_per_step", prompts_per_step, 1)
        self.group_size = whole("data.group_size", group_size, 1)
        size = self.prompts_per_step
        part = size if minibatch_prompts is None else minibatch_prompts
        self.minibatch_prompts = whole("data.minibatch_prompts", part, 1)
        if size % self.minibatch_prompts:
            raise ConfigurationError(
                f"data.minibatch_prompts: {part} does not divide data.prompts_per_step: {size}"
            )
        self.passes = whole("data.passes", passes, 1)
        self.steps_per_epoch = whole("data.steps_per_epoch", steps_per_epoch, 1)
        self.sampling = Sampling(self.max_new_tokens, temperature, top_k, top_p, self.stop)
        if temperature == 0.0:
            raise ConfigurationError(
                "data.temperature: 0 writes the same completion again and again; give more, such "
                "as 1.0"
            )
        if self.judge is None and not self.pays:
            raise ConfigurationError(
                "data.rewards: there is none, so nothing would be learned; give some, such as "
                "[{class_path: rl_lightning.rewards.completions.ExactMatch}]"
            )

    def clear(self) -> None:
        super().clear()
        self._told: dict[str, float] = {}
        self._left: tuple[float, float] | None = None  # when learning began, and evaluation so far
        self._tokens = 0

    # --- the clock of prompts -----------------------------------------------------------------

    @property
    def total_prompts(self) -> int:
        """The budget."""
        return self.total_frames

    @total_prompts.setter
    def total_prompts(self, prompts: int) -> None:
        self.total_frames = prompts

    @property
    def epoch_rollouts(self) -> int:
        """Steps of one epoch: a budget smaller than an epoch ends with its last step."""
        step = self.prompts_per_step * self._trainer.world_size
        return min(self.steps_per_epoch, math.ceil(self.total_frames / step))

    @property
    def frames_per_epoch(self) -> int:
        return self.prompts_per_step * self.epoch_rollouts

    @property
    def minibatches(self) -> int:
        """Minibatches of one pass."""
        return self.prompts_per_step // self.minibatch_prompts

    # --- steps --------------------------------------------------------------------------------

    def check(self, agent: Trainee) -> None:
        super().check(agent)
        learner: Any = agent
        if self.group_size < learner.smallest_group:
            raise ConfigurationError(
                f"data.group_size: {self.group_size}, and {type(agent).__name__} compares the "
                f"completions of a prompt with each other: give {learner.smallest_group} at least, "
                "or use REINFORCEPlusPlus without a baseline, which does not"
            )

    def train_dataloader(self) -> RolloutLoader:
        self.start()
        return RolloutLoader(self)

    def next_batch(self) -> tuple[TensorDict, int]:
        """Write and judge completions, and prepare them.

        Returns:
            The batch `[P]`, and the dimension along which minibatches are drawn.
        """
        learned = self._learning_seconds()
        self.agent.check_loss()  # of the last step's last update
        self._mode = None  # a callback may have changed what the agent consists of
        rows = self.drawn(self.frames, self.prompts_per_step)
        with self.acting():
            model = self.model
            try:
                found = self.answer("train", rows, self.group_size, self.sampling)
                once = self.passes * self.minibatches == 1
                batch = model.prepare_completions(found.batch, self.minibatch_prompts, once)
            except Exception as error:
                model.explain(error)
                raise
        self._told = _mean(gather(self._statistics(found, learned)))
        self.count(self.prompts_per_step)
        self._left = time.perf_counter(), self._evaluating()
        return batch, 0

    def _evaluating(self) -> float:
        return sum(loader.seconds for loader in self._eval_loaders.values())

    def _learning_seconds(self) -> float | None:
        """Since the last step's completions were ready, evaluation left out."""
        if self._left is None:
            return None
        began, evaluated = self._left
        return time.perf_counter() - began - (self._evaluating() - evaluated)

    def _statistics(self, found: Completed, learned: float | None) -> dict[str, float]:
        """What there is to be known of a step's completions."""
        batch = found.batch
        reward, length = batch["reward"].float().cpu(), batch["length"].float().cpu()
        told = {
            "train/reward": float(reward.mean()),
            "reward/total": float(reward.mean()),
            "completion/length": float(length.mean()),
            "completion/length_min": float(length.min()),
            "completion/length_max": float(length.max()),
            "completion/cut": float((~found.ended).float().mean()),
        }
        for name, part in found.parts.items():
            if not part.isnan().all():  # else it applies to none of them
                told[f"reward/{name}"] = float(part.nanmean())
        if self.group_size > 1:
            told["reward/std_in_group"] = float(reward.std(1).mean())
            equal = groups_without_spread(reward.flatten(), self.group_size)
            told["reward/groups_without_spread"] = float(equal.float().mean())
        wrote, judged = found.seconds
        told |= self.more_statistics(found)
        tokens = found.tokens
        told["time/tokens_per_second_generated"] = tokens / max(wrote, 1e-9)
        if learned is not None:
            whole = max(wrote + judged + learned, 1e-9)
            told["time/tokens_per_second_learned"] = self._tokens * self.passes / max(learned, 1e-9)
            told["time/share_generating"] = wrote / whole
            told["time/share_judging"] = judged / whole
            told["time/share_learning"] = learned / whole
        self._tokens = tokens
        told["memory/peak_gb"] = _peak_memory(self.agent.device)
        return told

    def more_statistics(self, found: Completed) -> dict[str, float]:
        """What else there is to be known of a step's completions."""
        return {}

    def episode_metrics(self) -> dict[str, float]:
        return {name: value for name, value in self._told.items() if name.startswith("train/")}

    def metrics(self) -> dict[str, float]:
        return {
            **self._told,
            **({} if self.judge is None else self.judge.metrics()),
            "time/prompts": float(self.frames),
            "time/prompts_per_second": self.fps(),
        }


def _mean(ranks: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over those of the ranks that know."""
    known = {name: [rank[name] for rank in ranks if name in rank] for one in ranks for name in one}
    return {name: math.fsum(values) / len(values) for name, values in known.items()}


def _peak_memory(device: torch.device) -> float:
    """The most that was in use at a time, in GB (10⁹ bytes): of the device, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
