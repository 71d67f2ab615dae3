"""Credit by turns, against cases worked by hand."""

import pytest
import torch

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.maths.token_advantages import (
    group_advantages,
    rloo_advantages,
    token_rewards,
)
from rl_lightning.maths.turn_advantages import (
    find_turns,
    rloo_turn_advantages,
    turn_advantages,
)

# Two conversations of one group: M the model's tokens, e the environment's, . padding.
#   M M e M   turns of 2 and 1 tokens, paid 1 and 2
#   M e M .   turns of 1 and 1, paid 0 and 5
MASK = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 0]]).bool()
PAID = torch.tensor([[0.0, 1.0, 9.0, 2.0], [0.0, 9.0, 5.0, 9.0]])  # the nines are nobody's


def test_turns_are_runs_of_own_tokens():
    turns = find_turns(PAID, MASK, gamma=0.5)
    assert turns.turn[MASK].tolist() == [0, 0, 1, 0, 1]
    assert turns.to_go.tolist() == [[1.0 + 0.5 * 2.0, 2.0], [0.0 + 0.5 * 5.0, 5.0]]
    assert turns.there.all()
    spread = turns.spread(torch.tensor([[10.0, 20.0], [30.0, 40.0]]), MASK)
    assert spread.tolist() == [[10.0, 10.0, 0.0, 20.0], [30.0, 0.0, 40.0, 0.0]]


def test_the_same_turns_of_a_group_are_compared():
    turns = find_turns(PAID, MASK)  # to go: 3, 2 and 5, 5
    assert turn_advantages(turns, 2, "none").tolist() == [[-1.0, -1.5], [1.0, 1.5]]
    own = turn_advantages(turns, 2, "group", eps=0.0)
    torch.testing.assert_close(own, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]) / 2**0.5)
    std = torch.tensor([3.0, 2.0, 5.0, 5.0]).std()
    of_batch = turn_advantages(turns, 2, "batch", eps=0.0)
    torch.testing.assert_close(of_batch, torch.tensor([[-1.0, -1.5], [1.0, 1.5]]) / std)
    of_all = turn_advantages(turns, 2, "batch", torch.tensor([0.0, 4.0]), eps=0.0)
    torch.testing.assert_close(of_all * 8**0.5, torch.tensor([[-1.0, -1.5], [1.0, 1.5]]))
    assert rloo_turn_advantages(turns, 2).tolist() == [[-2.0, -3.0], [2.0, 3.0]]


def test_who_has_ended_is_compared_with_nobody():
    mask = torch.tensor([[1, 0, 1, 0, 1], [1, 0, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
    paid = torch.tensor([[1.0, 0, 2.0, 0, 4.0], [3.0, 0, 0.0, 0, 0], [5.0, 0, 0, 0, 0]])
    turns = find_turns(paid, mask)  # to go: 7, 6, 4; 3, 0; 5
    assert turns.there.tolist() == [[True] * 3, [True, True, False], [True, False, False]]
    found = turn_advantages(turns, 3, "none")
    assert found.tolist() == [[2.0, 3.0, 0.0], [-2.0, -3.0, 0.0], [0.0, 0.0, 0.0]]
    assert rloo_turn_advantages(turns, 3)[0].tolist() == [3.0, 6.0, 0.0]
    assert turn_advantages(turns, 3)[0, 2] == 0.0


def test_of_single_turns_it_is_what_it_is_of_completions():
    reward = torch.tensor([1.0, 2.0, 4.0, 0.0, 3.0, 1.0])
    mask = torch.arange(3) < torch.tensor([3, 1, 2, 3, 1, 1])[:, None]
    turns = find_turns(token_rewards(reward, mask), mask)
    for scale in ("group", "batch", "none"):
        found = turn_advantages(turns, 3, scale)
        torch.testing.assert_close(found[:, 0], group_advantages(reward, 3, scale))
    torch.testing.assert_close(rloo_turn_advantages(turns, 3)[:, 0], rloo_advantages(reward, 3))
    by_index = turn_advantages(turns, torch.tensor([7, 7, 7, 2, 2, 2]))
    torch.testing.assert_close(by_index, turn_advantages(turns, 3))


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_rewards_whose_squares_float32_does_not_hold(scale):
    large = turn_advantages(find_turns(PAID * 1e20, MASK), 2, scale)
    assert large.dtype == torch.float32
    torch.testing.assert_close(large, turn_advantages(find_turns(PAID, MASK), 2, scale, eps=0.0))


def test_a_group_of_one_is_refused():
    turns = find_turns(PAID, MASK)
    with pytest.raises(ConfigurationError, match="at least 2"):
        turn_advantages(turns, 1)
    with pytest.raises(ConfigurationError, match="scale"):
        turn_advantages(turns, 2, "groups")  # type: ignore[arg-type]


def test_what_is_paid_for_tokens_takes_the_place_of_a_score():
    found = token_rewards(PAID, MASK)
    assert found.tolist() == [[0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 5.0, 0.0]]
