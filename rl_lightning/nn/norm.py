"""Running mean and variance, kept equal on all ranks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rl_lightning.core.errors import check_range
from rl_lightning.core.ranks import world_size

FEW = 8
"""Different inputs that it takes to know how much they vary."""


class RunningMoments(nn.Module):
    """Mean and variance of a stream of vectors, merged batch by batch in float64.

    On a CPU by NumPy: at every step of a few environments, its arithmetic is done before torch's
    has begun.

    The parallel update of Chan, Golub & LeVeque (1983). Between two calls of `synchronize` each
    rank goes on from the shared statistics with what it saw itself; `synchronize` merges what all
    ranks saw since. Statistics of rank 0 are never just broadcast: that would throw away the
    others' data.

    Args:
        size: D; 0 for scalars.
    """

    moments: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        # Rows: count, mean, sum of squared deviations.
        self.register_buffer("moments", torch.zeros(3, size, dtype=torch.float64))
        self.start_sharing()

    @property
    def count(self) -> int:
        """Vectors seen."""
        return int(self.moments[0].max())

    @property
    def mean(self) -> Tensor:
        """`[D]`, float64."""
        return self.moments[1]

    @property
    def variance(self) -> Tensor:
        """`[D]`, float64; 1 before anything was seen."""
        count, _, squares = self.moments
        return torch.where(count > 0, squares / count.clamp(min=1.0), 1.0)

    def scale(self, eps: float = 1e-8) -> tuple[Tensor, Tensor]:
        """Mean and 1 / √(variance + ε), `[D]` each, in float32."""
        moments = self.moments
        if not _on_host(moments):
            return moments[1].float(), (self.variance + eps).rsqrt().float()
        seen, mean, squares = moments.numpy()
        if seen.size and seen[0] == 0.0:  # as if the variance were 1
            return moments[1].float(), torch.full(
                (seen.size,), (1.0 + eps) ** -0.5, dtype=torch.float32
            )
        scale = squares / seen
        scale += eps
        np.sqrt(scale, out=scale)
        np.reciprocal(scale, out=scale)
        return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(scale.astype(np.float32))

    def update(self, x: Any) -> None:
        """Take in a batch `[N, D]`, an array or a tensor."""
        moments = self.moments
        if _on_host(moments):
            tensor = isinstance(x, Tensor)
            values = x.detach().to(moments).numpy() if tensor else np.asarray(x, dtype=np.float64)
            _take_in(moments.numpy(), values)
            if world_size() > 1:
                self._pending = self._pending.to(moments)
                _take_in(self._pending.numpy(), values)
            return
        batch = _moments_of(torch.as_tensor(x).to(moments))
        moments.copy_(_merge(moments, batch))
        if world_size() > 1:
            self._pending = _merge(self._pending.to(batch), batch)

    def synchronize(self) -> None:
        """Merge what every rank saw since the last call; afterwards all ranks agree bit for bit."""
        if world_size() > 1:
            own = self._pending.to(self.moments)
            pending = [torch.empty_like(own) for _ in range(world_size())]
            dist.all_gather(pending, own)
            merged = self._shared.to(self.moments)
            for moments in pending:
                merged = _merge(merged, moments)
            self.moments.copy_(merged)
        self.start_sharing()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RunningMoments":
        try:
            return super()._apply(fn, recurse)
        except TypeError:  # Apple's MPS has no float64
            self.moments = self.moments.float()
            return super()._apply(fn, recurse)

    def start_sharing(self) -> None:
        """Go on from the moments as they are now: they are said to be those of every rank."""
        self._shared = self.moments.clone()
        self._pending = torch.zeros_like(self.moments)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.start_sharing()


class RunningNorm(nn.Module):
    """(x − running mean) / running std, clipped to ±`clip`.

    Args:
        size: D.
        clip: Largest magnitude of a normalised value.
    """

    def __init__(self, size: int, clip: float = 10.0) -> None:
        super().__init__()
        check_range("clip", clip, 1e-12)
        self.clip = clip
        self.running = RunningMoments(size)

    def update(self, x: Any) -> None:
        """Take in a batch `[N, D]`, an array or a tensor."""
        self.running.update(x)

    def synchronize(self) -> None:
        self.running.synchronize()

    def follow(self, before: Tensor, after: Tensor) -> None:
        """Normalise inputs that have changed to where they were before.

        What μ and σ did to inputs of mean m and deviation s, μ′ and σ′ do to those of m′ and s′:
        σ′ = σ s′ / s and μ′ = m′ − (m − μ) s′ / s. Equal inputs leave them as they are, bit for
        bit. The ratio s′ / s is taken as between 1 / 20 and 20, as 1 of an input that did not
        vary, and as 1 of all if fewer than `FEW` different ones are known. An input that is not
        finite is left alone.

        Of several ranks each has to do the same, and all have to have the same moments.

        Args:
            before: Some inputs, `[N, D]`.
            after: The same ones as they are now, `[N, D]`.
        """
        moments = self.running.moments
        if not self.running.count:  # nothing is normalised yet
            return
        before, after = before.to(moments), after.to(moments)
        former, now = before.mean(0), after.mean(0)
        was = before.std(0, correction=0)
        varied = was > 1e-3 * self.running.variance.sqrt()
        # Equal texts that were read in different batches differ by rounding.
        places = ((before - former) / was)[:, varied].round(decimals=2)
        known = bool(varied.any()) and len(places.unique(dim=0)) >= FEW
        ratio = (after.std(0, correction=0) / was.clamp_min(1e-30)).clamp(0.05, 20.0)
        ratio = torch.where(varied, ratio, 1.0) if known else torch.ones_like(ratio)
        # In this order μ stays exactly where nothing has changed.
        mean = moments[1] + (now - former) + (former - moments[1]) * (1.0 - ratio)
        right = mean.isfinite() & ratio.isfinite()
        moments[1] = torch.where(right, mean, moments[1])
        moments[2] = torch.where(right, moments[2] * ratio.square(), moments[2])
        self.running.start_sharing()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, D]` → `[N, D]`, float32."""
        mean, scale = self.running.scale()
        return ((x - mean) * scale).clamp(-self.clip, self.clip)


def _on_host(moments: Tensor) -> bool:
    """Whether NumPy can reach it: not on a device, rounded, traced or compiled."""
    return (
        moments.device.type == "cpu"
        and moments.dtype is torch.float64
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
    )


def _take_in(moments: np.ndarray, x: np.ndarray) -> None:
    """Merge a batch `[N, D]` into moments `[3, D]`."""
    rows = len(x)
    if rows == 0:
        return
    seen, mean, squares = moments
    if rows == 1:
        (center,) = x
    else:
        center = np.add.reduce(x) / rows
        off = x - center
        off *= off
        squares += np.add.reduce(off)
    delta = center - mean
    share = rows / (seen + rows)
    mean += delta * share
    delta *= delta
    delta *= seen
    delta *= share
    squares += delta
    seen += rows


def _moments_of(x: Tensor) -> Tensor:
    mean = x.mean(0)
    return torch.stack(
        [torch.full_like(mean, x.shape[0]), mean, (x - mean).square_().sum(0)]
    )  # (3, D)


def _merge(a: Tensor, b: Tensor) -> Tensor:
    count = a[0] + b[0]
    share = b[0] / count.clamp(min=1.0)
    delta = b[1] - a[1]
    return torch.stack([count, a[1] + delta * share, a[2] + b[2] + delta.square() * a[0] * share])
