"""Memory: sequences with resets inside equal one step at a time."""

import pytest
import torch

from rl_lightning.nn.memory import Memory

L, N, D, H = 12, 4, 3, 5


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("resets", [0.0, 0.3, 1.0])
def test_sequence_equals_steps(kind, resets):
    torch.manual_seed(0)
    memory = Memory(D, H, kind)
    x, state = torch.randn(L, N, D), torch.randn(N, memory.state_dim)
    start = torch.rand(L, N) < resets
    start[0] = torch.tensor([True, False, True, False])  # row 0 is ignored: `state` decides
    outputs, current = [], state
    for t in range(L):
        if t > 0:
            current = current * ~start[t][:, None]
        out, current = memory.step(x[t], current)
        outputs.append(out)
    torch.testing.assert_close(memory.sequence(x, state, start), torch.stack(outputs))


def test_gradients_do_not_cross_a_reset():
    torch.manual_seed(0)
    memory = Memory(D, H, "lstm")
    x = torch.randn(4, 1, D, requires_grad=True)
    start = torch.tensor([[0], [0], [1], [0]], dtype=torch.bool)
    memory.sequence(x, torch.zeros(1, memory.state_dim), start)[3].sum().backward()
    assert x.grad is not None
    assert (x.grad[:2] == 0).all()
    assert (x.grad[2:] != 0).any()


def test_size_must_be_positive():
    with pytest.raises(ValueError, match="recurrent_size"):
        Memory(3, 0, "gru")
