"""What is sent of gradients instead of all their digits: pure functions.

A message is a vector of bytes, so that what it is made of travels in one collective.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rl_lightning.compress.rounding import pack, unpack


def write_signs(parts: Sequence[Tensor]) -> Tensor:
    """Signs and scales: x ≈ mean|x| · sign(x) of each part; the sign of 0 is +1.

    Args:
        parts: `[N_i]` each, of one type. A part that holds NaN is read as NaN, all of it.

    Returns:
        The scales' bytes, then the signs, eight in a byte: uint8 `[M]`.
    """
    scales = torch.stack([part.abs().mean() for part in parts])
    signs = torch.cat([part >= 0 for part in parts]).to(torch.uint8)
    return torch.cat([scales.view(torch.uint8), pack(signs, 1)])


def read_signs(message: Tensor, sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
    """What `write_signs` has written of parts of these sizes and this type, one after another.

    Returns:
        `[ΣN_i]`.
    """
    split = len(sizes) * dtype.itemsize
    scales = message[:split].clone().view(dtype)
    signs = unpack(message[split:], 1, sum(sizes)).to(dtype) * 2 - 1
    lengths = torch.tensor(sizes, device=message.device)
    return signs * scales.repeat_interleave(lengths, output_size=sum(sizes))


def write_largest(parts: Sequence[Tensor], share: float) -> Tensor:
    """The largest |values| of each part, and where they stand among all of them.

    Args:
        parts: `[N_i]` each, of one type. NaN counts as larger than any number.
        share: Of each part's values that are kept, in (0, 1]; at least one.

    Returns:
        The values' bytes, then those of their places (int32): uint8 `[M]`.
    """
    places, first = [], 0
    for part in parts:
        places.append(part.abs().topk(count_of(share, len(part))).indices + first)
        first += len(part)
    where = torch.cat(places)
    values = torch.cat(list(parts))[where]
    return torch.cat([values.view(torch.uint8), where.to(torch.int32).view(torch.uint8)])


def read_largest(message: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """What `write_largest` has written of parts of this size together, `[size]`; else 0."""
    count = len(message) // (dtype.itemsize + torch.int32.itemsize)
    split = count * dtype.itemsize
    places = message[split:].clone().view(torch.int32).long()
    values = torch.zeros(size, dtype=dtype, device=message.device)
    values[places] = message[:split].clone().view(dtype)
    return values


def count_of(share: float, size: int) -> int:
    """How many of so many values are a share of them: at least one."""
    return max(1, round(share * size))


def thin_rank(shape: Sequence[int], rank: int) -> int:
    """The rank in which a parameter is sent by two thin factors, n×r and m×r.

    Args:
        shape: Of the parameter; a matrix n×m over all but its first dimension.
        rank: The most.

    Returns:
        r ≤ min(n, m); 0 of vectors, and where the factors would not be smaller.
    """
    if len(shape) < 2:
        return 0
    rows, columns = shape[0], torch.Size(shape[1:]).numel()
    rank = min(rank, rows, columns)
    return rank if (rows + columns) * rank < rows * columns else 0


def approximate(
    matrices: Sequence[Tensor], bases: Sequence[Tensor], mean: Callable[[Tensor], Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """One step of subspace iteration on the ranks' mean matrices (Vogels et al. 2019, alg. 1).

    P = mean(M Q), orthonormalised; Q = mean(Mᵀ P); M ≈ P Qᵀ.

    Args:
        matrices: This rank's, `[n, m]` each.
        bases: Q of the step before, `[m, r]` each, the same on all ranks.
        mean: Of a vector over the ranks.

    Returns:
        The approximations `[n, m]`, and the next bases. A basis that would be 0 stays: nothing
        could be made of it.
    """
    pairs = list(zip(matrices, bases, strict=True))
    lefts = averaged([matrix @ basis for matrix, basis in pairs], mean)
    # Householder's: orthonormal also where columns depend on each other, or are 0.
    lefts = [torch.linalg.qr(left).Q for left in lefts]
    found = [m.T @ left for m, left in zip(matrices, lefts, strict=True)]
    rights = averaged(found, mean)
    near = [left @ right.T for left, right in zip(lefts, rights, strict=True)]
    kept = [torch.where(n.any(), n, old) for n, old in zip(rights, bases, strict=True)]
    return near, kept


def averaged(parts: Sequence[Tensor], mean: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Means over the ranks of several tensors, by one call."""
    if not parts:
        return []
    flat = mean(torch.cat([part.reshape(-1) for part in parts]))
    pieces = flat.split([part.numel() for part in parts])
    return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]
