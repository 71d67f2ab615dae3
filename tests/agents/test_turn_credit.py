"""What the tokens of conversations are credited with, agent by agent."""

import pytest
import torch
from tensordict import TensorDict
from token_tools import batch, characters, make

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.maths.token_advantages import (
    group_advantages,
    returns_to_go,
    rloo_advantages,
    token_gae,
    whiten,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return characters(tmp_path_factory.mktemp("model") / "characters")


# One seed, two episodes: turns of 2 and 1 tokens, paid 1 and 2; of 1 and 1, paid 0 and 5.
OWN = torch.tensor([[[1, 1, 0, 1], [1, 0, 1, 0]]]).bool()
PAID = torch.tensor([[[0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 5.0, 0.0]]])


def talk(agent, **more) -> TensorDict:
    rows = batch(agent, 1, 2, 4)
    rows["own"], rows["token_reward"], rows["reward"] = OWN, PAID, PAID.sum(-1)
    rows["length"] = torch.tensor([[4, 3]])
    rows.update(more)
    return rows


def advantage(agent, **more):
    with torch.no_grad():
        return agent.prepare_completions(talk(agent, **more), 1, False)["advantage"]


def test_turns_are_compared_with_the_same_turns_of_the_group(model):
    agent = make("GRPO", model, credit="turn", scale="none", gamma=0.5)
    # To go: 1 + 0.5 · 2 = 2 and 2; 0.5 · 5 = 2.5 and 5.
    assert advantage(agent).tolist() == [[[-0.25, -0.25, 0, -1.5], [0.25, 0, 1.5, 0]]]
    agent = make("GRPO", model, credit="turn", scale="batch")
    std = torch.tensor([3.0, 2.0, 5.0, 5.0]).std()
    expected = torch.tensor([[[-1.0, -1.0, 0, -1.5], [1.0, 0, 1.5, 0]]]) / (std + 1e-4)
    torch.testing.assert_close(advantage(agent), expected)
    agent = make("RLOO", model, credit="turn", kl_coef=0.0)
    assert advantage(agent).tolist() == [[[-2.0, -2.0, 0, -3.0], [2.0, 0, 3.0, 0]]]
    assert advantage(make("RLOO", model, credit="turn", kl_coef=0.0, gamma=0.5)).tolist() == [
        [[-0.5, -0.5, 0, -3.0], [0.5, 0, 3.0, 0]]
    ]


def test_or_a_whole_episode_has_one_advantage(model):
    agent = make("GRPO", model)
    torch.testing.assert_close(advantage(agent), group_advantages(PAID.sum(-1)[0], 2)[None])
    agent = make("RLOO", model, kl_coef=0.0)
    torch.testing.assert_close(advantage(agent), rloo_advantages(PAID.sum(-1)[0], 2)[None])


def test_completions_of_one_turn_have_the_same_advantage_either_way(model):
    for name in ("GRPO", "RLOO"):
        known = {} if name == "GRPO" else {"kl_coef": 0.0}
        rows = batch(make(name, model))
        found = []
        for credit in ("episode", "turn"):
            agent = make(name, model, credit=credit, **known)
            with torch.no_grad():
                one = agent.prepare_completions(rows.clone(), 3, False)["advantage"]
            found.append(one[..., None] * rows["own"] if credit == "episode" else one)
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", ["GRPO", "RLOO"])
@pytest.mark.parametrize("importance", ["token", "sequence"])
def test_the_loss_weighs_each_token_by_its_turn(name, importance, model):
    known = {"loss_type": "grpo", "importance": importance} if name == "GRPO" else {"kl_coef": 0.0}
    if name == "RLOO" and importance == "sequence":
        pytest.skip("its ratio is that of whole conversations")
    agent = make(name, model, credit="turn", **known)
    with torch.no_grad():
        rows = agent.prepare_completions(talk(agent), 1, False)
    own, weight = rows["own"], rows["advantage"]
    expected = -((weight * own).sum(-1) / own.sum(-1)).mean()
    torch.testing.assert_close(agent.loss(rows).value, expected)


def test_reinforce_plus_plus_goes_on_from_each_token(model):
    agent = make("REINFORCEPlusPlus", model, kl_coef=0.0, gamma=0.5)
    to_go = torch.tensor([[[1.0, 2.0, 0, 2.0], [2.5, 0, 5.0, 0]]])
    assert returns_to_go(PAID[0], OWN[0], 0.5).tolist() == to_go[0].tolist()
    torch.testing.assert_close(advantage(agent)[0], whiten(to_go[0], OWN[0]))
    agent = make("REINFORCEPlusPlus", model, kl_coef=0.0, baseline="group")
    to_go = torch.tensor([[3.0, 3.0, 0, 2.0], [5.0, 0, 5.0, 0]]) - 4.0  # their mean is (3 + 5) / 2
    torch.testing.assert_close(advantage(agent)[0], whiten(to_go, OWN[0]))


def test_the_critic_foretells_what_is_paid_turn_by_turn(model):
    agent = make("TokenPPO", model, kl_coef=0.0, gamma=0.5, gae_lambda=0.5)
    with torch.no_grad():
        rows = agent.prepare_completions(talk(agent), 1, False)
    gae, target = token_gae(PAID[0], rows["value"][0], OWN[0], 0.5, 0.5)
    torch.testing.assert_close(rows["target"][0], target)
    torch.testing.assert_close(rows["advantage"][0], whiten(gae, OWN[0]))


@pytest.mark.parametrize("name", ["GRPO", "RLOO"])
def test_credits_that_cannot_be_are_refused(name, model):
    with pytest.raises(ConfigurationError, match=r"model\.credit='token'"):
        make(name, model, credit="token")
    with pytest.raises(ConfigurationError, match=r"model\.gamma: 0\.9 .* credit: turn"):
        make(name, model, gamma=0.9)
