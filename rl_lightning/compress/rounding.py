"""Weights as codes of a few bits times scales, and back: pure functions.

A weight is a matrix `[R, N]`: a row for each output of a linear or convolutional layer, or for each
entry of an embedding's table, over N inputs. Each row, or each group of inputs within a row, has
its own scale:

- 8 to 3 bits: ŵ = s·q, q = round(w / s), s = max|w| / (2ᵇ⁻¹ − 1), symmetric: 0 stays 0, and
  |w − ŵ| ≤ s / 2, and in float16 and bfloat16 what rounding ŵ to that type adds, |ŵ| · eps / 2.
- 2 bits, ternary (Li & Liu 2016, "Ternary Weight Networks", eq. 3 to 6): ŵ = s·q, q = sign(w) where
  |w| > Δ = 0.7 · mean|w|, otherwise 0; s is the mean of the kept |w|.
- 1 bit, binary (Rastegari et al. 2016, "XNOR-Net", eq. 5 and 6): ŵ = s·sign(w), s = mean|w|; the
  sign of 0 is +1.
- 16 bits: float16, without a scale.

Scales are computed in float32 at least, and stored in the weight's type, in which none is 0 unless
the weights are, and no ŵ overflows. Codes are the nearest for the stored scale.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError

WIDTHS = tuple(range(1, 9))
_OFFSET = {2: 1} | {bits: 2 ** (bits - 1) for bits in range(3, 9)}  # codes are unsigned: q + offset


class Rounded(NamedTuple):
    """A rounded weight.

    Attributes:
        codes: One for each weight, uint8 `[R, N]` (float16 of 16 bits), or packed, see `pack`.
        scale: Of each row and group, `[R, G]`, in the weight's own type.
    """

    codes: Tensor
    scale: Tensor


def round_weight(weight: Tensor, bits: int, group_size: int | None = None) -> Rounded:
    """The nearest codes and their scales.

    Args:
        weight: `[R, N]`. What is not finite makes its group's restored weights NaN.
        bits: 1 (binary), 2 (ternary), 3 to 8, or 16.
        group_size: Inputs that share a scale; the last group may be shorter. None: a whole row.

    Returns:
        Codes `[R, N]` and scales `[R, ⌈N / group_size⌉]`. The scales of 16 bits are one 1.
    """
    if bits == 16:
        return Rounded(weight.to(torch.float16), weight.new_ones(1, 1))
    count = weight.shape[1]
    size = min(group_size or count, count) or 1
    groups = max(-(-count // size), 1)
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    grouped = F.pad(wide, (0, groups * size - count)).unflatten(1, (groups, size))  # [R, G, g]
    share = torch.full((groups,), size, device=weight.device)
    share[-1] = max(count - (groups - 1) * size, 1)  # padding is not counted in means
    absolute = grouped.abs()
    largest = absolute.amax(2)
    mean = absolute.sum(2) / share
    if bits == 1:
        codes, scale = (grouped >= 0).to(torch.uint8), _stored(mean, largest, 1, weight.dtype)
    elif bits == 2:
        kept = absolute > 0.7 * mean[:, :, None]
        scale = (absolute * kept).sum(2) / kept.sum(2).clamp(min=1)
        scale = _stored(scale, largest, 1, weight.dtype)
        codes = (grouped.sign() * kept + _OFFSET[2]).to(torch.uint8)
    else:
        most = 2 ** (bits - 1) - 1
        scale = _stored(largest / most, largest, most, weight.dtype)
        divisor = torch.where(scale == 0, 1, scale).to(wide.dtype)[:, :, None]
        codes = ((grouped / divisor).round().clamp(-most, most) + _OFFSET[bits]).to(torch.uint8)
    return Rounded(codes.flatten(1)[:, :count], scale)


def _stored(scale: Tensor, largest: Tensor, most: int, dtype: torch.dtype) -> Tensor:
    """Scales in a type: the nearest, unless that would be too small or too large for the codes."""
    info = torch.finfo(dtype)
    stored = scale.to(dtype).to(scale.dtype)
    above = torch.maximum(stored * (1 + info.eps), stored + info.smallest_normal * info.eps)
    # Codes up to `most` reach s / 2 further than most · s; of 1 and 2 bits only 0 is too small.
    small = stored * (most + 0.5) < largest if most > 1 else (stored == 0) & (largest > 0)
    stored = torch.where(small, above, stored)
    return torch.where(stored * most > info.max, stored * (1 - info.eps), stored).to(dtype)


def restore_weight(
    codes: Tensor, scale: Tensor, bits: int, group_size: int | None = None
) -> Tensor:
    """The weights that codes stand for: the inverse of `round_weight`, as nearly as there is one.

    Args:
        codes: `[R, N]`.
        scale: `[R, G]`, which also says the result's type; `[1, 1]` of 16 bits.
        bits: As they were rounded with.
        group_size: Likewise.

    Returns:
        Weights, `[R, N]`.
    """
    values = codes.to(scale.dtype)
    if bits == 1:
        values = 2 * values - 1
    elif bits != 16:
        values = values - _OFFSET[bits]
    if scale.shape[1] > 1:
        assert group_size is not None
        scale = scale.repeat_interleave(group_size, 1)[:, : codes.shape[1]]
    return values * scale


def rounded(weight: Tensor, bits: int, group_size: int | None = None) -> Tensor:
    """A weight of any shape `[R, ...]` as it is after rounding; without gradient."""
    with torch.no_grad():
        rows = as_rows(weight)
        return restore_weight(*round_weight(rows, bits, group_size), bits, group_size).view_as(
            weight
        )


def as_rows(weight: Tensor) -> Tensor:
    """`[R, ...]` → `[R, N]`, also of no rows or no columns."""
    return weight.reshape(weight.shape[0], math.prod(weight.shape[1:]))


def pack(codes: Tensor, width: int) -> Tensor:
    """A stream of bits: codes one after the other, each from its lowest bit on, in bytes likewise.

    Args:
        codes: uint8 `[..., N]`, each below 2^width.
        width: Bits of a code: 1 to 8.

    Returns:
        uint8 `[..., ⌈N · width / 8⌉]`; what the last byte has left over is 0.

    Raises:
        ConfigurationError: If a code needs more bits, or if `width` is none of these.
    """
    _check_width(width)
    if codes.numel() and int(codes.max()) >= 2**width:
        raise ConfigurationError(f"a code is {int(codes.max())}, which {width} bits do not hold")
    if 8 % width:  # a code may lie in two bytes: bit by bit
        codes = torch.stack([(codes >> place) & 1 for place in range(width)], -1).flatten(-2)
        width = 1
    share = 8 // width
    codes = F.pad(codes, (0, -codes.shape[-1] % share))
    packed = torch.zeros_like(codes[..., ::share])
    for place in range(share):
        packed |= codes[..., place::share] << (place * width)
    return packed


def unpack(packed: Tensor, width: int, count: int) -> Tensor:
    """The codes that `pack` has packed.

    Args:
        packed: uint8 `[..., ⌈count · width / 8⌉]`.
        width: Bits of a code: 1 to 8.
        count: N.

    Returns:
        uint8 `[..., N]`.

    Raises:
        ConfigurationError: If `width` is none of these, or if there are not that many bytes.
    """
    _check_width(width)
    if packed.shape[-1] != -(-count * width // 8):
        raise ConfigurationError(
            f"{count} codes of {width} bits take {-(-count * width // 8)} bytes, not "
            f"{packed.shape[-1]}"
        )
    if width == 8:
        return packed
    # Of a shift of uint8, torch.onnx writes an int8, which is combined with nothing else.
    wide = packed.to(torch.int32)
    part = 1 if 8 % width else width
    places = [(wide >> shift) & (2**part - 1) for shift in range(0, 8, part)]
    parts = torch.stack(places, -1).flatten(-2)[..., : count * width // part]
    if part != width:
        bits = parts.unflatten(-1, (count, width)).unbind(-1)
        parts = bits[0]
        for place in range(1, width):
            parts = parts | (bits[place] << place)
    return parts.to(torch.uint8)


def _check_width(width: int) -> None:
    if width not in WIDTHS:
        raise ConfigurationError(f"width={width}: use one of {', '.join(map(str, WIDTHS))}")


def pack_weight(weight: Tensor, bits: int, group_size: int | None = None) -> Rounded:
    """`round_weight`, with its codes packed: uint8 `[R, ⌈N · bits / 8⌉]`, float16 of 16 bits."""
    codes, scale = round_weight(weight, bits, group_size)
    return Rounded(codes if bits == 16 else pack(codes, bits), scale)


def unpack_weight(
    codes: Tensor, scale: Tensor, bits: int, count: int, group_size: int | None = None
) -> Tensor:
    """The weights `[R, N]` of packed codes, see `restore_weight`; `count` is N."""
    codes = codes if bits == 16 else unpack(codes, bits, count)
    return restore_weight(codes, scale, bits, group_size)
