import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from rl_lightning.compress import agreement
from rl_lightning.compress.agreement import agreeing, wilson
from rl_lightning.core.errors import ConfigurationError, RunError

BEFORE = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 0.0], [5.0, 4.0]])
AFTER = torch.tensor([[0.0, 9.0], [3.0, 2.0], [1.0, 2.0], [5.0, 4.0]])


def given(table):
    """A policy that looks up what it answers."""
    return lambda rows: table[rows.long()]


def test_scores_by_hand():
    found = agreement(given(BEFORE), given(AFTER), torch.arange(4))
    assert found.share == 0.75
    assert found.count == 4
    assert found.difference == pytest.approx((1 + 7 + 0 + 1 + 1 + 2 + 0 + 0) / 8)
    assert (found.low, found.high) == wilson(3, 4)


@pytest.mark.parametrize(("tolerance", "share"), [(0.1, 0.25), (1.0, 0.5), (2.0, 0.75), (7.0, 1)])
def test_continuous_actions_agree_within_a_tolerance(tolerance, share):
    found = agreement(given(BEFORE), given(AFTER), torch.arange(4), tolerance=tolerance)
    assert found.share == share
    assert found.difference == 1.5


def test_chosen_actions_agree_where_all_of_them_do():
    one = torch.tensor([[0, 1], [2, 3], [4, 5]])
    other = torch.tensor([[0, 1], [2, 0], [0, 0]])
    found = agreement(given(one), given(other), torch.arange(3))
    assert found.share == pytest.approx(1 / 3)
    assert found.difference is None
    assert agreeing(one[:, 0], other[:, 0]).tolist() == [True, True, False]
    assert agreeing(one[:, 0] > 1, other[:, 0] > 1).tolist() == [True, True, False]


def test_what_is_not_allowed_has_no_difference():
    table = BEFORE.clone()
    table[:, 0] = -math.inf
    found = agreement(given(table), given(table + 0.5), torch.arange(4))
    assert found.share == 1
    assert found.difference == 0.5


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_batches_change_nothing_and_are_as_large_as_asked(batch_size):
    sizes = []

    def before(rows):
        sizes.append(len(rows))
        return BEFORE[rows]

    found = agreement(before, given(AFTER), torch.arange(4), batch_size=batch_size)
    assert found == agreement(given(BEFORE), given(AFTER), torch.arange(4))
    assert max(sizes) == min(batch_size, 4)
    assert sum(sizes) == 4


@pytest.mark.parametrize(
    "observations",
    [
        torch.eye(4),
        np.eye(4, dtype=np.float32),
        TensorDict({"a": torch.eye(4)}, 4),
        {"a": torch.eye(4), "deep": {"b": np.zeros((4, 2))}},
        ["one", "two", "three", "four"],
    ],
)
def test_observations_of_every_kind(observations):
    def count(batch):
        batch = batch if isinstance(batch, list | torch.Tensor | np.ndarray) else batch["a"]
        return torch.zeros(len(batch), 2)

    assert agreement(count, count, observations, batch_size=3).count == 4


def test_nothing_is_differentiated():
    layer = torch.nn.Linear(3, 2)
    agreement(lambda x: layer(x), lambda x: layer(x), torch.randn(5, 3))
    assert not agreement(layer, layer, torch.randn(5, 3)).share < 1
    seen = []
    agreement(lambda x: seen.append(layer(x)) or seen[-1], layer, torch.randn(5, 3))
    assert not seen[0].requires_grad


def test_wilson_by_hand():
    # p = 0.9, n = 100, z = 1.96: known values 0.8256 and 0.9448
    assert wilson(90, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    low, high = wilson(50, 50)
    assert high == 1.0
    assert low == pytest.approx(50 / (50 + 1.96**2))  # n / (n + z²)
    assert wilson(0, 50) == pytest.approx((0.0, 1 - low))
    assert wilson(90, 100, z=0.0) == pytest.approx((0.9, 0.9))


def test_it_is_printed_as_a_line():
    text = str(agreement(given(BEFORE), given(AFTER), torch.arange(4)))
    assert text == ("75.0% of 4 actions agree (95 % interval 30.1% to 95.4%), mean difference 1.5")
    chosen = torch.arange(4)
    assert "difference" not in str(agreement(given(chosen), given(chosen), chosen))


def test_wrong_input_is_named():
    rows = torch.arange(4)
    for arguments, message in [
        ((given(BEFORE), given(AFTER), rows[:0]), "observations are empty"),
        ((given(BEFORE), given(AFTER), {}), "observations are empty"),
        ((given(BEFORE), given(AFTER), rows, -1.0), "tolerance must be at least 0"),
        ((given(BEFORE), given(AFTER), rows, None, 0), "batch_size must be at least 1"),
        ((given(BEFORE), lambda x: None, rows), "after must return a tensor, not a NoneType"),
        ((given(BEFORE), lambda x: AFTER[:1], rows), r"after returned shape \(1, 2\) for 4"),
        ((given(BEFORE[:, 0]), given(AFTER), rows), r"before returned floats of shape \(4,\)"),
        ((given(BEFORE), given(rows), rows), "after torch.int64"),
        ((given(BEFORE), given(AFTER[:, :1]), rows), r"after torch.float32 \(4, 1\)"),
        ((given(rows), given(rows), rows, 0.1), "tolerance=0.1 is for continuous actions"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            agreement(*arguments)
    broken = AFTER.clone()
    broken[3, 1] = math.nan
    with pytest.raises(RunError, match="after returned NaN, first for observation 3"):
        agreement(given(BEFORE), given(broken), rows, batch_size=3)


def test_arrays_of_actions_are_taken_as_predict_gives_them():
    def even(obs):
        return (obs[:, 0] % 2).astype(np.int64)

    obs = np.arange(10, dtype=np.float32).reshape(10, 1)
    assert agreement(even, lambda x: np.zeros(len(x), np.int64), obs).share == 0.5
