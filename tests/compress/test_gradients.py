import math

import pytest
import torch
from alone import run_alone
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from rl_lightning.callbacks import CompressGradients
from rl_lightning.compress.gradient_messages import (
    approximate,
    read_largest,
    read_signs,
    thin_rank,
    write_largest,
    write_signs,
)
from rl_lightning.compress.gradients import (
    METHODS,
    WITH_RESIDUALS,
    Channel,
    GradientCompressor,
    check_state,
)
from rl_lightning.core.errors import ConfigurationError

F32 = torch.float32


class OfTwo(Channel):
    """A channel to one other rank, which says what it is told to say."""

    ranks = 2

    def __init__(self):
        super().__init__()
        self.others = []
        self.sent = []

    def _sum(self, message):
        self.sent.append(message)
        other = self.others.pop(0) if self.others else torch.zeros_like(message)
        return super()._sum(message) + other

    def gather(self, message):
        self.sent.append(message)
        other = self.others.pop(0) if self.others else message
        return torch.cat([super().gather(message), other[None]])


def dyadic(*shape, seed=0):
    """Numbers of few binary digits: sums of them are exact."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-64, 65, shape, generator=generator) / 16.0


# --- messages -------------------------------------------------------------------------------------


def test_signs_by_hand():
    parts = [torch.tensor([1.0, -2.0, 0.0]), torch.tensor([-4.0])]
    message = write_signs(parts)
    assert message.dtype == torch.uint8
    assert len(message) == 2 * 4 + 1  # two scales, four signs
    assert message[-1] == 0b0101  # the first in the lowest bit; the sign of 0 is +1
    assert read_signs(message, [3, 1], F32).tolist() == [1.0, -1.0, 1.0, -4.0]


def test_signs_of_other_types():
    for dtype in (torch.float64, torch.bfloat16):
        message = write_signs([torch.tensor([0.5, -1.5], dtype=dtype)])
        read = read_signs(message, [2], dtype)
        assert read.dtype == dtype
        assert read.tolist() == [1.0, -1.0]


def test_the_largest_by_hand():
    parts = [torch.tensor([1.0, -5.0, 2.0, 3.0]), torch.tensor([[0.5], [-0.25]]).flatten()]
    message = write_largest(parts, 0.5)
    assert len(message) == 3 * (4 + 4)  # two and one values, and their places
    assert read_largest(message, 6, F32).tolist() == [0.0, -5.0, 0.0, 3.0, 0.5, 0.0]
    # At least one of each.
    assert read_largest(write_largest(parts, 0.01), 6, F32).tolist() == [0, -5.0, 0, 0, 0.5, 0]


def test_when_factors_are_smaller():
    assert thin_rank([8], 2) == thin_rank([], 2) == 0
    assert thin_rank([8, 8], 2) == 2
    assert thin_rank([8, 8], 4) == 0  # 64 numbers either way
    assert thin_rank([1, 64], 4) == 0
    assert thin_rank([2, 4, 8], 1) == 1  # 2×32
    assert thin_rank([100, 3], 8) == 0  # at most 3, and then no smaller


def test_a_matrix_of_low_rank_is_approximated_exactly():
    left, right = dyadic(6, 2), dyadic(5, 2, seed=1)
    matrix = left @ right.T
    (near,), (basis,) = approximate([matrix], [dyadic(5, 2, seed=2)], lambda x: x)
    torch.testing.assert_close(near, matrix, rtol=1e-5, atol=1e-5)
    assert basis.shape == (5, 2)


def test_iterations_find_the_largest_singular_vectors():
    matrix = torch.randn(8, 6)
    bases = [torch.randn(6, 2)]
    for _ in range(200):
        (near,), bases = approximate([matrix], bases, lambda x: x)
    u, s, v = torch.linalg.svd(matrix)
    best = u[:, :2] * s[:2] @ v[:2]
    torch.testing.assert_close(near, best, rtol=1e-3, atol=1e-3)


def test_nothing_is_approximated_by_nothing_and_the_basis_stays():
    basis = torch.randn(4, 1)
    (near,), (kept,) = approximate([torch.zeros(5, 4)], [basis], lambda x: x)
    assert torch.equal(near, torch.zeros(5, 4))
    assert torch.equal(kept, basis)
    assert approximate([], [], lambda x: x) == ([], [])


class Bucket:
    """What torch's hook asks of a bucket, with one matrix and one vector."""

    def __init__(self, matrix, vector):
        self.flat = torch.cat([matrix.flatten(), vector])
        self.shape = matrix.shape

    def buffer(self):
        return self.flat

    def gradients(self):
        count = self.shape.numel()
        return [self.flat[:count].view(self.shape), self.flat[count:]]

    def index(self):
        return 0

    def is_last(self):
        return True


def as_torchs():
    """In a group of ranks: torch's hook and ours, from the same basis."""
    generator = torch.Generator().manual_seed(3)
    ours = GradientCompressor("powersgd", rank=2)
    basis = torch.randn(9, 2, generator=generator)
    ours.load_state_dict({"updates": 2, "residuals": {}, "bases": {"w": basis}})
    state = PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
    state.iter = 2
    state.p_memory_dict[0] = torch.zeros(12 * 2)
    state.q_memory_dict[0] = basis.flatten().clone()
    for _ in range(5):
        matrix = torch.randn(12, 9, generator=generator)
        vector = torch.randn(7, generator=generator)
        bucket = Bucket(matrix, vector)
        flat = powerSGD_hook(state, bucket).wait()
        means = ours.average({"w": matrix, "b": vector})
        torch.testing.assert_close(means["w"].flatten(), flat[: 12 * 9], rtol=1e-4, atol=1e-4)
        assert torch.equal(means["b"], vector)
        ours.finish_update()
    assert ours.bytes_per_update == 4 * ((12 + 9) * 2 + 7)
    assert ours.full_bytes == 4 * (12 * 9 + 7)


def test_powersgd_is_torchs(tmp_path):
    run_alone(__file__, "as_torchs", tmp_path)


# --- means ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "dtype"), [("fp16", torch.half), ("bf16", torch.bfloat16)])
def test_halves_are_rounded_divided_and_summed(method, dtype):
    channel = OfTwo()
    own, other = torch.tensor([1.0 + 2**-12, 3.0]), torch.tensor([0.1, -1.0])
    channel.others = [other.to(dtype) / 2]
    mean = GradientCompressor(method, channel=channel).average({"w": own})["w"]
    assert channel.sent[0].dtype == dtype
    assert channel.bytes == 2 * 2
    assert mean.dtype == F32
    assert mean[0] == (torch.tensor(1.0, dtype=dtype) / 2 + other.to(dtype)[0] / 2).float()
    assert mean[1] == 1.0


def test_one_bit_of_two_ranks_by_hand():
    channel = OfTwo()
    compressor = GradientCompressor("onebit", channel=channel)
    channel.others = [write_signs([torch.tensor([-4.0, 4.0])])]
    mean = compressor.average({"w": torch.tensor([3.0, 1.0])})["w"]
    assert mean.tolist() == [(2 - 4) / 2, (2 + 4) / 2]
    residual = compressor.state_dict()["residuals"]["w"]
    assert residual.tolist() == [1.0, -1.0]
    # The next gradient is sent with what was left over: (1, −1) + (0.5, 0.5) = (1.5, −0.5).
    compressor.average({"w": torch.tensor([0.5, 0.5])})
    assert read_signs(channel.sent[-1], [2], F32).tolist() == [1.0, -1.0]


def test_the_largest_of_two_ranks_by_hand():
    channel = OfTwo()
    compressor = GradientCompressor("topk", share=0.5, channel=channel)
    channel.others = [write_largest([torch.tensor([8.0, 1.0])], 0.5)]
    mean = compressor.average({"w": torch.tensor([3.0, 5.0])})["w"]
    assert mean.tolist() == [4.0, 2.5]
    assert compressor.state_dict()["residuals"]["w"].tolist() == [3.0, 0.0]
    channel.others = [write_largest([torch.tensor([0.0, 2.0])], 0.5)]
    mean = compressor.average({"w": torch.tensor([3.0, 5.0])})["w"]  # 6, 5 with the residual
    assert mean.tolist() == [3.0, 1.0]


# A scale is a mean of 32 numbers, 5 binary digits longer than they: float64 holds it 8 times.
@pytest.mark.parametrize(("method", "steps"), [("topk", 40), ("onebit", 8)])
def test_what_was_sent_and_what_is_left_over_is_the_sum_of_gradients(method, steps):
    compressor = GradientCompressor(method, share=0.1)
    total = sent = torch.zeros(4, 8, dtype=torch.float64)
    for step in range(steps):
        gradient = dyadic(4, 8, seed=step).double()
        total = total + gradient
        sent = sent + compressor.average({"w": gradient})["w"]
        compressor.finish_update()
    left = compressor.state_dict()["residuals"]["w"]
    assert left.abs().sum() > 0
    assert not torch.equal(sent, total)
    assert torch.equal(sent + left, total)


@pytest.mark.parametrize("method", ["powersgd", "onebit"])
def test_over_many_updates_it_is_nearly_so(method):
    compressor = GradientCompressor(method, rank=1)
    total = sent = torch.zeros(6, 8, dtype=torch.float64)
    for step in range(200):
        gradient = dyadic(6, 8, seed=step).double()
        total = total + gradient
        sent = sent + compressor.average({"w": gradient})["w"]
    left = compressor.state_dict()["residuals"]["w"]
    assert left.abs().sum() > 1
    torch.testing.assert_close(sent + left, total, rtol=0, atol=1e-11)


@pytest.mark.parametrize("method", WITH_RESIDUALS)
def test_without_a_gradient_a_residual_waits(method):
    compressor = GradientCompressor(method, rank=1)
    gradients = {"w": dyadic(6, 8), "v": dyadic(6, 8, seed=1)}
    compressor.average(gradients)
    before = compressor.state_dict()["residuals"]["w"]
    assert before.abs().sum() > 0
    unused = {"w": torch.zeros(6, 8), "v": gradients["v"]}
    mean = compressor.average(unused)
    assert torch.equal(mean["w"].abs(), torch.zeros(6, 8))
    assert torch.equal(compressor.state_dict()["residuals"]["w"], before)
    # And goes on from there, also after updates in which there was nothing to find.
    assert compressor.average(gradients)["w"].abs().sum() > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_method_hides_what_is_not_finite(method, bad):
    compressor = GradientCompressor(method, rank=1, share=0.01)
    gradient = dyadic(8, 8)
    gradient[3, 4] = bad
    mean = compressor.average({"w": gradient, "b": torch.tensor([1.0, bad])})
    assert not mean["w"].isfinite().all()
    assert not mean["b"].isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_bytes_are_those_of_messages_and_start_is_awaited(method):
    compressor = GradientCompressor(method, rank=2, share=0.25, start=2)
    gradients = {"w": dyadic(8, 16), "b": dyadic(8)}
    for _ in range(2):
        mean = compressor.average(gradients)
        compressor.finish_update()
        assert compressor.bytes_per_update == compressor.full_bytes == 4 * 136
        assert all(torch.equal(mean[name], gradients[name]) for name in gradients)
    compressor.average(gradients)
    compressor.finish_update()
    counts = {
        "none": 4 * 136,
        "fp16": 2 * 136,
        "bf16": 2 * 136,
        "powersgd": 4 * ((8 + 16) * 2 + 8),
        "topk": 8 * (32 + 2),
        "onebit": 4 * 2 + 136 // 8,
    }
    assert compressor.bytes_per_update == counts[method]
    assert compressor.full_bytes == 4 * 136
    assert compressor.updates == 3


@pytest.mark.parametrize("method", WITH_RESIDUALS)
def test_saved_is_loaded_and_buckets_do_not_matter(method, tmp_path):
    gradients = [{"a": dyadic(8, 8, seed=s), "b": dyadic(5, seed=-s)} for s in range(4)]
    one = GradientCompressor(method, rank=1)
    for step in gradients[:2]:
        one.average(step)
        one.finish_update()
    torch.save(one.state_dict(), tmp_path / "state")
    other = GradientCompressor(method, rank=1)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert other.updates == 2
    for step in gradients[2:]:
        first = one.average(step)
        # Another order, and every parameter in a bucket of its own.
        second = {name: other.average({name: step[name]})[name] for name in ("b", "a")}
        assert all(torch.equal(first[name], second[name]) for name in step)


@pytest.mark.parametrize("method", WITH_RESIDUALS)
def test_bfloat16_gradients_have_residuals_in_float32(method):
    compressor = GradientCompressor(method, rank=1)
    mean = compressor.average({"w": dyadic(8, 8).bfloat16()})["w"]
    assert mean.dtype == compressor.state_dict()["residuals"]["w"].dtype == F32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "int8"}, "method='int8': use one of none, fp16"),
        ({"share": 0}, "share must be above 0 and at most 0.5, not 0"),
        ({"share": 0.6}, "share must be"),
        ({"share": math.nan}, "share must be"),
        ({"rank": 0}, "rank must be at least 1, not 0"),
        ({"start": -1}, "start must be at least 0, not -1"),
    ],
)
def test_what_is_wrong_is_refused(arguments, message):
    for kind in (GradientCompressor, CompressGradients):
        with pytest.raises(ConfigurationError, match=message):
            kind(**arguments)


@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [("residuals", "a", (3, 9)), ("residuals", "b", (8, 8)), ("bases", "a", (8, 3)),
     ("bases", "bias", (8, 2))],
)  # fmt: skip
def test_a_state_of_other_parameters_is_refused(kind, name, shape):
    shapes = {"a": [8, 8], "bias": [8]}
    fitting = {
        "residuals": {"a": torch.zeros(8, 8), "bias": torch.zeros(8)},
        "bases": {"a": torch.zeros(8, 2)},
    }
    check_state(fitting, shapes, rank=2)
    fitting[kind][name] = torch.zeros(shape)
    with pytest.raises(ConfigurationError, match=rf"{kind} of '?{name}"):
        check_state(fitting, shapes, rank=2)
