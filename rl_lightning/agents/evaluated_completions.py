"""Evaluation of completions: what they are worth, and how often one of several is right."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.finite import check_returns
from rl_lightning.core.ranks import gather
from rl_lightning.core.types import EnvSpec
from rl_lightning.maths.token_advantages import pass_at_k


class EvaluatedCompletions(L.LightningModule):
    """A module whose validation, test and prediction are completions of prompts, judged.

    A batch is a mapping: `reward` and `length` `[P, k]`, `ended` bool `[P, k]`, `success` `[P, k]`
    or None, nan where nobody says, `parts`, each `[P, k]` by the name of a reward, and `told`, what
    else there is to be known, likewise. Or it is a TensorDict of recorded completions, for
    `judged`.

    Some environments speak of success only where there is one: where any completion of an
    evaluation is said to be right or wrong, those of which nothing is said are wrong.
    """

    spec: EnvSpec
    frames: int
    _episodes: list[Any]

    def judged(self, batch: TensorDict) -> dict[str, Tensor]:
        """Values by name of recorded completions."""
        raise NotImplementedError

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        recorded = isinstance(batch, TensorDict)
        self._episodes.append(self.judged(batch) if recorded else self._results(batch))

    test_step = validation_step

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> Any:
        return batch["lines"]

    def _log_episodes(self, prefix: str) -> None:
        """Means over the prompts of all ranks."""
        batches, self._episodes = self._episodes, []
        right = [batch.pop("right") for batch in batches if "right" in batch]
        if any(gather(not all(bool(one.isnan().all()) for one in right))):
            for batch in batches:
                if "success" in batch:
                    batch["success"] = batch["success"].nan_to_num()
            batches += [_passed(one.nan_to_num() > 0) for one in right]
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        for batch in batches:
            for name, values in batch.items():
                known = values[~values.isnan()]
                sums[name] = sums.get(name, 0.0) + float(known.double().sum())
                counts[name] = counts.get(name, 0.0) + len(known)
        ranks = gather((sums, counts))
        names = {name: None for rank, _ in ranks for name in rank}
        metrics = {}
        for name in names:
            count = sum(rank.get(name, 0.0) for _, rank in ranks)
            if count:
                mean = sum(rank.get(name, 0.0) for rank, _ in ranks) / count
                metrics[f"{prefix}/{name}"] = torch.tensor(mean, dtype=torch.float32)
        if f"{prefix}/reward" in metrics:
            check_returns(self.spec.id, metrics[f"{prefix}/reward"][None])
        self.log_dict({**metrics, "step": torch.tensor(float(self.frames))})

    def _results(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Values by name, of which means are logged; nan counts as not there."""
        reward: Tensor = batch["reward"]
        told = {
            "reward": reward.flatten(),
            "length": batch["length"].flatten().float(),
            "cut": (~batch["ended"]).flatten().float(),
            **{f"reward_{name}": part.flatten() for name, part in batch["parts"].items()},
            **{name: values.flatten() for name, values in batch["told"].items()},
        }
        if batch.get("success") is not None:
            told["right"] = batch["success"]
        return told


def _passed(right: Tensor) -> dict[str, Tensor]:
    """pass@1 and pass@k of each prompt; which completions are right is bool `[P, k]`."""
    samples = right.shape[1]
    return {f"pass@{k}": pass_at_k(right.sum(1), samples, k) for k in sorted({1, samples})}
