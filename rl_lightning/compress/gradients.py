"""Gradients made small on their way between ranks: what a communication hook of DDP sends.

- `fp16`, `bf16`: rounded to half the bytes.
- `onebit`: signs, and one scale a parameter, its mean |value| (Seide et al. 2014, "1-Bit Stochastic
  Gradient Descent"; the scale is that of Karimireddy et al. 2019, "Error Feedback Fixes SignSGD").
- `topk`: the largest values of each parameter and where they stand (Stich et al. 2018, "Sparsified
  SGD with Memory"; Lin et al. 2018, "Deep Gradient Compression").
- `powersgd`: two thin factors of each matrix (Vogels et al. 2019, "PowerSGD", algorithms 1 and 2).

The last three leave something out. What a rank has not sent it remembers, its *residual*, and adds
to its next gradient: error feedback, without which they need not converge.

Each parameter is compressed by itself, never a bucket as a whole. DDP sorts parameters into other
buckets after its first update, and a run that goes on from a checkpoint begins with the first ones
again: what depended on buckets (torch's own PowerSGD hook, a scale of a bucket) would not repeat.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import GradBucket  # pyright: ignore[reportPrivateImportUsage]

from rl_lightning.compress.gradient_messages import (
    approximate,
    averaged,
    read_largest,
    read_signs,
    thin_rank,
    write_largest,
    write_signs,
)
from rl_lightning.core.errors import ConfigurationError, check_one_of, shortened, whole
from rl_lightning.core.ranks import world_size

Method = Literal["none", "fp16", "bf16", "powersgd", "topk", "onebit"]
METHODS = ("none", "fp16", "bf16", "powersgd", "topk", "onebit")
WITH_RESIDUALS = ("powersgd", "topk", "onebit")

Parts = tuple[dict[str, Tensor], dict[str, Tensor]]
_HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Channel:
    """Collectives over all ranks, and the bytes that this rank has handed to them.

    Attributes:
        bytes: So far. How many of them a network carries how often is the backend's affair: a ring
            moves about twice an `all_reduce`'s bytes; of `all_gather`, each rank receives those of
            all the others.
    """

    def __init__(self) -> None:
        self.bytes = 0

    @property
    def ranks(self) -> int:
        """How many there are."""
        return world_size()

    def mean(self, message: Tensor) -> Tensor:
        """Mean over the ranks, in the message's own type.

        It is divided before it is summed up, as DDP does: a sum of halves overflows early.
        """
        return self._sum(message / self.ranks)

    def _sum(self, message: Tensor) -> Tensor:
        self.bytes += message.nbytes
        if world_size() > 1:
            dist.all_reduce(message)
        return message

    def gather(self, message: Tensor) -> Tensor:
        """The messages `[M]` of all ranks, `[ranks, M]`, which are of one length."""
        self.bytes += message.nbytes
        messages = [message]
        if world_size() > 1:
            messages = [torch.empty_like(message) for _ in range(world_size())]
            dist.all_gather(messages, message)
        return torch.stack(messages)


# --- the way of a gradient ------------------------------------------------------------------------


class GradientCompressor:
    """Means of gradients over the ranks, by small messages.

    A parameter whose own gradient is all 0 sends nothing, and its residual waits: DDP does not
    write what it receives for parameters that no rank has used, so that it would be lost.

    Args:
        method: One of `METHODS`; `none` sends what DDP would, and counts it.
        rank: Of `powersgd`'s factors.
        share: Of the values that `topk` sends.
        start: Updates before which everything is sent in full.
        channel: Between the ranks.

    Attributes:
        updates: So far, with those of the run before.
        bytes_per_update: Handed to collectives in the last update, by this rank.
        full_bytes: What DDP would have handed over.

    Raises:
        ConfigurationError: If an argument is out of its range.
    """

    def __init__(
        self,
        method: Method = "fp16",
        rank: int = 2,
        share: float = 0.01,
        start: int = 0,
        channel: Channel | None = None,
    ) -> None:
        check_one_of("method", method, METHODS)
        if isinstance(share, str) or not 0 < share <= 0.5:
            raise ConfigurationError(
                f"share must be above 0 and at most 0.5, not {share}: a value is sent with its "
                "place, so that more of them than half are more bytes than all without"
            )
        self.method, self.share = method, share
        self.rank, self.start = whole("rank", rank, 1), whole("start", start, 0)
        self.channel = channel or Channel()
        self.updates = self.bytes_per_update = self.full_bytes = 0
        self._counted = self._full = 0
        self._residuals: dict[str, Tensor] = {}
        self._bases: dict[str, Tensor] = {}

    def average(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over the ranks of some parameters' gradients, nearly.

        Args:
            gradients: Name → gradient, in the same order on all ranks.

        Returns:
            Name → mean, in the gradients' shapes and types, or in float32.
        """
        self._full += sum(gradient.nbytes for gradient in gradients.values())
        if self.method in WITH_RESIDUALS and self.updates >= self.start:
            return self._with_residuals(gradients)
        narrow = _HALVES.get(self.method) if self.updates >= self.start else None
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients.values()])
        mean = self.channel.mean(flat if narrow is None else flat.to(narrow))
        return _split(mean.to(flat.dtype), gradients)

    def finish_update(self) -> None:
        """Called when all gradients of an update are averaged."""
        self.updates += 1
        self.bytes_per_update = self.channel.bytes - self._counted
        self.full_bytes, self._full = self._full, 0
        self._counted = self.channel.bytes

    def _with_residuals(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # In float32 at least: bfloat16 could not hold what is left over.
        dtype = torch.float32
        for gradient in gradients.values():
            dtype = torch.promote_types(dtype, gradient.dtype)
        corrected, due = {}, {}
        for name, given in gradients.items():
            gradient, residual = given.to(dtype), self._residuals.get(name)
            corrected[name] = gradient
            if residual is not None:
                corrected[name] = gradient + residual.to(gradient.device)
            due[name] = torch.where(gradient.any(), corrected[name], 0)
        send = self._send_factors if self.method == "powersgd" else self._send_message
        sent, means = send(due, dtype)
        for name, part in sent.items():
            self._residuals[name] = corrected[name] - part
        return means

    def _send_message(self, due: Mapping[str, Tensor], dtype: torch.dtype) -> Parts:
        """What was sent of this rank's gradients, and the mean of what all ranks have sent."""
        parts = [tensor.reshape(-1) for tensor in due.values()]
        sizes = [len(part) for part in parts]

        def read(message: Tensor) -> Tensor:
            if self.method == "onebit":
                return read_signs(message, sizes, dtype)
            return read_largest(message, sum(sizes), dtype)

        own = write_signs(parts) if self.method == "onebit" else write_largest(parts, self.share)
        total = torch.zeros_like(torch.cat(parts))
        for message in self.channel.gather(own):
            total += read(message)
        return _split(read(own), due), _split(total / self.channel.ranks, due)

    def _send_factors(self, due: Mapping[str, Tensor], dtype: torch.dtype) -> Parts:
        """The approximations of matrices, which are also what counts as sent; and all means."""
        thin = {name: r for name, g in due.items() if (r := thin_rank(g.shape, self.rank))}
        dense = [name for name in due if name not in thin]  # nothing of them is left over
        full = averaged([due[name] for name in dense], self.channel.mean)
        matrices = [due[name].flatten(1) for name in thin]
        bases = [self._basis(n, m, thin[n]) for n, m in zip(thin, matrices, strict=True)]
        found, bases = approximate(matrices, bases, self.channel.mean)
        near = {n: m.view(due[n].shape) for n, m in zip(thin, found, strict=True)}
        self._bases.update(zip(thin, bases, strict=True))
        return near, near | dict(zip(dense, full, strict=True))

    def _basis(self, name: str, matrix: Tensor, rank: int) -> Tensor:
        """Where the iteration on a parameter goes on, or a random start, the same on all ranks."""
        known = self._bases.get(name)
        if known is None:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            known = torch.randn(matrix.shape[1], rank, generator=generator)
        return known.to(matrix)

    # --- checkpoints --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What this rank goes on from, as plain numbers and tensors on the CPU."""
        return {
            "updates": self.updates,
            "residuals": {name: tensor.cpu() for name, tensor in self._residuals.items()},
            "bases": {name: tensor.cpu() for name, tensor in self._bases.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned of a rank with the same method and parameters."""
        self.updates = state["updates"]
        self._residuals, self._bases = dict(state["residuals"]), dict(state["bases"])


def check_state(state: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], rank: int) -> None:
    """Refuse what a compressor has saved, unless each tensor of it belongs to a parameter.

    Args:
        state: What `state_dict` returned, or a file says it did.
        shapes: Of the parameters, by name.
        rank: Of `powersgd`'s factors.

    Raises:
        ConfigurationError: If a tensor's name or shape is none of theirs.
    """
    expected = {name: tuple(shape) for name, shape in shapes.items()}
    bases = {
        name: (math.prod(shape[1:]), thin)
        for name, shape in expected.items()
        if (thin := thin_rank(shape, rank))
    }
    for kind, known in (("residuals", expected), ("bases", bases)):
        for name, tensor in state[kind].items():
            if known.get(name) != tuple(tensor.shape):
                raise ConfigurationError(
                    f"CompressGradients: the checkpoint's {kind} of {shortened(name)} have the "
                    f"shape {tuple(tensor.shape)}, not {known.get(name)}: it was changed, or is of "
                    "another agent; go on without the callback, or begin a new run"
                )


def _split(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    pieces = flat.split([tensor.numel() for tensor in like.values()])
    return {
        name: piece.view(tensor.shape)
        for (name, tensor), piece in zip(like.items(), pieces, strict=True)
    }


# --- the hook -------------------------------------------------------------------------------------


class BucketState:
    """What `compress_bucket` needs of a model.

    Args:
        compressor: Averages its gradients.
        names: Of its parameters.
    """

    def __init__(self, compressor: GradientCompressor, names: Mapping[Tensor, str]) -> None:
        self.compressor = compressor
        self.names = names


@torch.no_grad()
def compress_bucket(state: BucketState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """A hook for `DistributedDataParallel.register_comm_hook`, on any device and backend.

    It waits for its collectives: on a GPU, they do not overlap with the rest of the backward pass.

    Args:
        state: Of the model.
        bucket: Some of its gradients, which are overwritten by their means.
    """
    names = [state.names[parameter] for parameter in bucket.parameters()]
    gradients = dict(zip(names, bucket.gradients(), strict=True))
    for name, mean in state.compressor.average(gradients).items():
        gradients[name].copy_(mean)
    if bucket.is_last():
        state.compressor.finish_update()
    buffer = bucket.buffer()
    done = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else [])
    done.set_result(buffer)
    return done
