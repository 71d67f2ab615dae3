"""Gradients that are made small before ranks exchange them."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn
from torch.nn.parallel import DistributedDataParallel

from rl_lightning.compress.gradients import (
    WITH_RESIDUALS,
    BucketState,
    GradientCompressor,
    Method,
    check_state,
    compress_bucket,
)
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.protocols import Measuring
from rl_lightning.core.ranks import gather, world_size


class CompressGradients(L.Callback, Measuring):
    """Has the ranks of distributed training (`trainer.strategy: ddp`) send small gradients.

    On any device and backend, CPUs and gloo included, where Lightning's
    `DDPStrategy(ddp_comm_hook=...)` is never called. With each loss, `comm/bytes_per_update` is
    logged, what one rank handed to collectives in its last update, and `comm/compression`, how
    many times that DDP would have handed over.

    What `powersgd`, `topk` and `onebit` have not sent yet is in the checkpoint, of all ranks: as
    many bytes a rank as its trained parameters in float32, which also pass through each rank when a
    checkpoint is written. For networks beside the agent (`RNDBonus`) nothing changes.

    Args:
        method: `fp16` or `bf16` halve the bytes; `powersgd` sends matrices as two thin factors,
            `topk` the largest values of each parameter, `onebit` signs and a scale. `none` sends
            what DDP does, and counts it. See `rl_lightning.compress.gradients`.
        rank: Of `powersgd`'s factors; higher is more exact, and more bytes.
        share: Of the values that `topk` sends, at most 0.5.
        start: Updates that send everything in full before compression begins.

    Raises:
        ConfigurationError: If an argument is out of its range, or as training begins, if a
            strategy is none of DDP's or precision is 16-mixed, whose changing scale residuals
            would not follow.
    """

    def __init__(
        self, method: Method = "fp16", rank: int = 2, share: float = 0.01, start: int = 0
    ) -> None:
        GradientCompressor(method, rank, share, start)  # refuses what is wrong
        self.method: Method = method
        self.rank, self.share, self.start = rank, share, start
        self.compressor: GradientCompressor | None = None
        self._shapes: dict[str, list[int]] = {}
        self._restored: Mapping[str, Any] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.compressor, model = None, trainer.strategy.model
        if trainer.world_size == 1:
            rank_zero_warn(
                "CompressGradients: one device has nobody to send gradients to, so nothing is "
                "compressed; give trainer.devices or trainer.num_nodes, or leave the callback out"
            )
            self._restored = None  # of more than one: it would be too old for a run after this one
            return
        if not isinstance(model, DistributedDataParallel):
            raise ConfigurationError(
                f"CompressGradients: trainer.strategy is {type(trainer.strategy).__name__}, which "
                "exchanges gradients in its own way; use ddp, or leave the callback out"
            )
        if self.method in WITH_RESIDUALS and trainer.precision == "16-mixed":
            raise ConfigurationError(
                f"CompressGradients: method={self.method!r} adds what was not sent to later "
                "gradients, but with trainer.precision: 16-mixed those have another scale, and "
                "may be infinite; use bf16-mixed, or method fp16"
            )
        named = list(pl_module.named_parameters())
        self._shapes = {name: list(p.shape) for name, p in named if p.requires_grad}
        self.compressor = GradientCompressor(self.method, self.rank, self.share, self.start)
        self._go_on()
        model.register_comm_hook(
            BucketState(self.compressor, {p: name for name, p in named}), compress_bucket
        )

    def measures(self) -> Mapping[str, float]:
        compressor = self.compressor
        if compressor is None or not compressor.bytes_per_update:
            return {}
        sent, full = compressor.bytes_per_update, compressor.full_bytes
        return {"comm/bytes_per_update": float(sent), "comm/compression": full / sent}

    # --- checkpoints --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        if self.compressor is None:
            return dict(self._restored or {})
        return {
            "method": self.method,
            "rank": self.rank,
            "shapes": self._shapes,
            "ranks": gather(self.compressor.state_dict()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict
        if self.compressor is not None:  # a search for a learning rate goes back in time
            self._go_on()

    def _go_on(self) -> None:
        """Take over the state of a checkpoint, if there is one that fits."""
        state, self._restored = self._restored, None
        if not state or self.compressor is None:
            return
        ranks, world = state["ranks"], world_size()
        reasons = {
            f"method {state['method']}, not {self.method}": state["method"] != self.method,
            f"{len(ranks)} ranks, not {world}": len(ranks) != world,
            "other parameters": state["shapes"] != self._shapes,
            f"rank {state['rank']}, not {self.rank}": self.method == "powersgd"
            and state["rank"] != self.rank,
        }
        different = [reason for reason, applies in reasons.items() if applies]
        lost = any(rank["residuals"] for rank in ranks)
        if not different:
            for rank in ranks:  # of all: one that stops here would leave the others waiting
                check_state(rank, self._shapes, self.rank)
            self.compressor.load_state_dict(ranks[dist.get_rank()])
            return
        self.compressor.updates = ranks[0]["updates"]
        if lost:
            rank_zero_warn(
                f"CompressGradients: the checkpoint was written with {' and '.join(different)}: "
                "what its ranks had not sent yet is lost, and residuals begin at zero"
            )
