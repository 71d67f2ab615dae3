import pytest
import torch

from rl_lightning.compress.rounding import (
    as_rows,
    pack,
    pack_weight,
    restore_weight,
    round_weight,
    rounded,
    unpack,
    unpack_weight,
)
from rl_lightning.core.errors import ConfigurationError


def test_eight_bits_by_hand():
    codes, scale = round_weight(torch.tensor([[127.0, -126.6, 0.4, 0.0]]), 8)
    assert scale.tolist() == [[1.0]]
    assert codes.tolist() == [[255, 1, 128, 128]]
    assert restore_weight(codes, scale, 8).tolist() == [[127.0, -127.0, 0.0, 0.0]]


def test_four_bits_by_hand():
    codes, scale = round_weight(torch.tensor([[3.5, -1.2, 0.2], [0.0, 0.0, 0.0]]), 4)
    assert scale.tolist() == [[0.5], [0.0]]
    assert codes.tolist() == [[15, 6, 8], [8, 8, 8]]
    assert restore_weight(codes, scale, 4).tolist() == [[3.5, -1.0, 0.0], [0.0, 0.0, 0.0]]


def test_ternary_by_hand():
    # mean|w| = 1, Δ = 0.7: 2 and −1.2 are kept, their mean is 1.6
    codes, scale = round_weight(torch.tensor([[2.0, -1.2, 0.5, -0.3]]), 2)
    assert codes.tolist() == [[2, 0, 1, 1]]
    assert scale[0, 0].item() == pytest.approx(1.6)
    assert restore_weight(codes, scale, 2)[0].tolist() == pytest.approx([1.6, -1.6, 0.0, 0.0])


def test_binary_by_hand():
    codes, scale = round_weight(torch.tensor([[2.0, -1.0, 0.0, -3.0]]), 1)
    assert codes.tolist() == [[1, 0, 1, 0]]
    assert restore_weight(codes, scale, 1).tolist() == [[1.5, -1.5, 1.5, -1.5]]


def test_groups_have_their_own_scales_and_the_last_may_be_short():
    w = torch.tensor([[7.0, 3.0, 0.7, 0.1, -14.0]])
    codes, scale = round_weight(w, 4, 2)
    assert scale[0].tolist() == pytest.approx([1.0, 0.1, 2.0])
    assert restore_weight(codes, scale, 4, 2)[0].tolist() == pytest.approx([7, 3, 0.7, 0.1, -14])
    # Means are of what is there, not of the padding.
    assert round_weight(w, 1, 2).scale[0].tolist() == pytest.approx([5.0, 0.4, 14.0])
    assert round_weight(w, 2, 2).scale[0].tolist() == pytest.approx([7.0, 0.7, 14.0])


@pytest.mark.parametrize("bits", [8, 7, 6, 5, 4, 3])
@pytest.mark.parametrize("group_size", [None, 5, 64])
def test_the_error_is_at_most_half_a_scale(bits, group_size):
    w = torch.randn(20, 33) * torch.logspace(-6, 6, 20)[:, None]
    codes, scale = round_weight(w, bits, group_size)
    error = (restore_weight(codes, scale, bits, group_size) - w).abs()
    bound = scale.repeat_interleave(min(group_size or 33, 33), 1)[:, :33] / 2
    assert bool((error <= bound * (1 + 1e-5)).all())
    assert bool((error > 0.4 * bound).any())  # and it is not zero for want of rounding


@pytest.mark.parametrize("bits", [8, 5, 4, 3, 2, 1, 16])
@pytest.mark.parametrize("group_size", [None, 3])
def test_a_row_is_rounded_by_itself(bits, group_size):
    w = torch.randn(6, 10)
    whole = rounded(w, bits, group_size)
    assert torch.equal(whole, torch.cat([rounded(row[None], bits, group_size) for row in w]))


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 3, 7, 8, 9, 17])
def test_packing_is_exact_whatever_the_length(width, count):
    codes = torch.randint(0, 2**width, (2, 3, count), dtype=torch.uint8)
    packed = pack(codes, width)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 3, -(-count * width // 8))
    assert torch.equal(unpack(packed, width, count), codes)


def test_packing_by_hand():
    assert pack(torch.tensor([1, 2, 3, 0, 1], dtype=torch.uint8), 2).tolist() == [0b00111001, 1]
    assert pack(torch.tensor([15, 1, 2], dtype=torch.uint8), 4).tolist() == [0x1F, 2]
    assert pack(torch.tensor([1, 0, 1], dtype=torch.uint8), 1).tolist() == [0b101]
    # Of the third code the highest bit, of the second but the lowest, lie in the second byte.
    assert pack(torch.tensor([7, 1, 4], dtype=torch.uint8), 3).tolist() == [0b00001111, 0b1]
    assert pack(torch.tensor([17, 2], dtype=torch.uint8), 5).tolist() == [0b01010001, 0]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigurationError, match="a code is 4, which 2 bits do not hold"):
        pack(torch.tensor([4], dtype=torch.uint8), 2)
    with pytest.raises(ConfigurationError, match="width=9"):
        pack(torch.tensor([4], dtype=torch.uint8), 9)
    with pytest.raises(ConfigurationError, match="5 codes of 4 bits take 3 bytes, not 2"):
        unpack(torch.zeros(2, dtype=torch.uint8), 4, 5)


@pytest.mark.parametrize("bits", [16, *range(8, 0, -1)])
@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 5), (2, 0), (0, 4)])
def test_packed_weights_are_the_rounded_ones(bits, shape):
    w = torch.randn(shape)
    rows = as_rows(w)
    codes, scale = pack_weight(rows, bits, 3)
    restored = unpack_weight(codes, scale, bits, rows.shape[1], 3)
    assert torch.equal(restored.view(shape), rounded(w, bits, 3))


def test_half_precision_is_float16():
    w = torch.randn(3, 4)
    assert torch.equal(rounded(w, 16), w.half().float())


def test_what_is_not_finite_stays_visible():
    for bits in range(1, 9):
        restored = rounded(torch.tensor([[1.0, float("nan")], [1.0, 2.0]]), bits)
        assert bool(restored[0].isnan().all())
        assert bool(restored[1].isfinite().all())


HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("bits", [1, 2])
def test_means_of_half_precision_do_not_overflow(bits):
    w = torch.tensor([[3.0, -3.0]], dtype=torch.float16).repeat(1, 35000)  # Σ |w| is 210 000
    assert round_weight(w, bits).scale.tolist() == [[3.0]]
    assert torch.equal(rounded(w, bits), w)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_the_error_in_half_precision_is_half_a_scale_and_its_own_rounding(dtype, bits):
    w = (torch.randn(40, 33) * torch.logspace(-7, 4, 40)[:, None]).to(dtype)
    scale, restored = round_weight(w, bits).scale.double(), rounded(w, bits).double()
    own = (restored.abs() * torch.finfo(dtype).eps / 2).clamp(min=2.0**-25)
    error = (restored - w.double()).abs()
    assert bool((error <= scale / 2 + own).all())
    assert bool((error > 0.4 * scale).any())


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
@pytest.mark.parametrize("bits", range(1, 9))
def test_the_smallest_and_the_largest_numbers_keep_a_scale(dtype, bits):
    info = torch.finfo(dtype)
    tiny = info.smallest_normal * info.eps
    for value in (tiny, 3 * tiny, 100 * tiny, info.max):
        w = torch.tensor([[value, -value]], dtype=dtype) / (2 if value == info.max else 1)
        w = w * (2 if bits > 2 and value == info.max else 1)
        restored = rounded(w, bits)
        assert bool(restored.isfinite().all())
        assert restored[0].tolist() == pytest.approx(w[0].tolist(), rel=0.08)


def test_small_numbers_of_float16_by_hand():
    # 1e-6 is 17 steps of 2⁻²⁴, the smallest scale there is; max|w| / 127 would be 0
    w = torch.tensor([[17.0, -4.0, 0.0]]) * 2.0**-24
    codes, scale = round_weight(w.half(), 8)
    assert scale.tolist() == [[2.0**-24]]
    assert codes.tolist() == [[145, 124, 128]]


def test_rows_of_nothing_keep_their_length():
    assert as_rows(torch.zeros(0, 2, 3)).shape == (0, 6)
    assert as_rows(torch.zeros(4, 0)).shape == (4, 0)
