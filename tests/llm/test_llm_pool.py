import pytest
import torch

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm import pool

HIDDEN = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [7.0, 7.0]], [[4.0, 4.0], [9.0, 9.0], [9.0, 9.0]]])
RIGHT = torch.tensor([[1, 1, 0], [1, 0, 0]])
LEFT = torch.tensor([[0, 1, 1], [0, 0, 1]])


@pytest.mark.parametrize(
    ("pooling", "mask", "expected"),
    [
        ("mean", RIGHT, [[2.0, 4.0], [4.0, 4.0]]),
        ("last", RIGHT, [[3.0, 6.0], [4.0, 4.0]]),
        ("cls", RIGHT, [[1.0, 2.0], [4.0, 4.0]]),
        ("mean", LEFT, [[5.0, 6.5], [9.0, 9.0]]),
        ("last", LEFT, [[7.0, 7.0], [9.0, 9.0]]),
        ("cls", LEFT, [[3.0, 6.0], [9.0, 9.0]]),
    ],
)
def test_by_hand(pooling, mask, expected):
    assert pool(HIDDEN, mask, pooling).tolist() == expected
    assert pool(HIDDEN, mask.bool(), pooling).tolist() == expected


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_garbage_on_padding_reaches_neither_value_nor_gradient(pooling):
    hidden = HIDDEN.clone()
    hidden[RIGHT == 0] = torch.nan
    hidden.requires_grad_()
    out = pool(hidden, RIGHT, pooling)
    out.sum().backward()
    assert torch.equal(out, pool(HIDDEN, RIGHT, pooling))
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_float32_and_length_one():
    out = pool(HIDDEN.bfloat16(), RIGHT, "last", normalize=True)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.norm(dim=1), torch.ones(2))
    assert pool(HIDDEN, RIGHT, "last").norm(dim=1).min() > 1


def test_no_token_is_zero_and_unknown_pooling_an_error():
    assert pool(HIDDEN, torch.zeros(2, 3), "mean").tolist() == [[0, 0], [0, 0]]
    with pytest.raises(ConfigurationError, match="'max'"):
        pool(HIDDEN, RIGHT, "max")  # type: ignore[arg-type]
