"""Networks of another kind than an agent needs: a sentence, whichever they are."""

from functools import partial
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from every_agent import AGENTS
from llm_tiny import tiny_model
from tensordict import TensorDict

from rl_lightning import (
    BC,
    BagOfWordsEncoder,
    EnvSpec,
    GeneratingPolicy,
    GuidedEncoder,
    LLMEncoder,
    ScoringPolicy,
    ScoringQNetwork,
    TextActionEncoder,
    agents,
)
from rl_lightning.agents.guides import check_guides
from rl_lightning.agents.networks import build
from rl_lightning.core.errors import ConfigurationError

TEXT = gym.spaces.Text(100)
DISCRETE = EnvSpec(TEXT, gym.spaces.Discrete(2), "Words-v0", ["left", "right"])
BOX = EnvSpec(TEXT, gym.spaces.Box(-1.0, 1.0, (1,)), "Words-v0")
ROLES = ("eyes", "scored", "Q values", "written", "prior")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("model"))


def arguments(role, model):
    scores = partial(TextActionEncoder, model=model, tune="lora", max_length=32)
    frozen = partial(TextActionEncoder, model=model, max_length=32)
    return {
        "eyes": {"encoder": partial(LLMEncoder, model=model, max_length=32)},
        "scored": {"encoder": scores, "network": ScoringPolicy},
        "Q values": {"encoder": scores, "network": ScoringQNetwork},
        "written": {"encoder": scores, "network": GeneratingPolicy},
        "prior": {"encoder": partial(GuidedEncoder, encoder=BagOfWordsEncoder, prior=frozen)},
    }[role]


def roles_in_the_readme():
    """Agents and the roles that are ticked."""
    lines = (Path(__file__).parents[2] / "README.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| agent | eyes |"))
    heads = [cell.strip() for cell in lines[start].split("|")[2:-1]]
    for line in lines[start + 2 : start + 2 + len(AGENTS)]:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        yield cells[0], {h for h, cell in zip(heads, cells[1:], strict=True) if cell == "✓"}


def test_every_agent_has_a_row():
    assert sorted(name for name, _ in roles_in_the_readme()) == sorted(AGENTS)


@pytest.mark.parametrize(("name", "ticked"), roles_in_the_readme())
def test_rewards_are_for_what_collects(name, ticked):
    agent = getattr(agents, name)
    collects = bool({"rollouts", "replay"} & set(agent.learns_from))
    assert ("judge, novelty, goals" in ticked) == (collects and agent.learns_from_rewards)


@pytest.mark.parametrize(("name", "ticked"), roles_in_the_readme())
@pytest.mark.parametrize("role", ROLES)
def test_an_agent_takes_a_role_or_says_a_sentence(name, ticked, role, model):
    spec = BOX if name in ("SAC", "TD3", "DDPG") else DISCRETE
    make = getattr(agents, name)
    if role in ticked:
        check_guides(make(spec, **arguments(role, model)))
    else:
        with pytest.raises(ConfigurationError):
            check_guides(make(spec, **arguments(role, model)))


def test_a_switch_is_named_and_other_errors_stay():
    def wrong(spec, encoder, **switches):
        raise TypeError("unexpected keyword argument 'size'")

    call = partial(build, "X", spec=DISCRETE, encoder=None, needs=("q",), instead="a QNetwork")
    with pytest.raises(ConfigurationError, match=r"X makes its networks by `outputs`.*a QNetwork"):
        call(network=lambda spec, encoder: None, outputs=1)
    with pytest.raises(TypeError, match="'size'"):
        call(network=wrong, outputs=1)
    with pytest.raises(ConfigurationError, match="X needs `q`, and object has none"):
        call(network=lambda spec, encoder: object())


def test_a_language_model_learns_to_say_what_was_done(model):
    torch.manual_seed(0)
    agent = BC(DISCRETE, **arguments("scored", model)).train()
    obs = agent.encoder.preprocess(("You see a grey box", "There is a wall to the north."))
    batch = TensorDict({"obs": obs, "action": torch.tensor([0, 1])}, [2])
    before = agent.loss(batch)
    expected = agent.policy.evaluate(batch).log_prob.mean()
    torch.testing.assert_close(before.value, -expected)
    optimizer = torch.optim.Adam(agent.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        agent.loss(batch).value.backward()
        optimizer.step()
    assert float(agent.loss(batch).value.detach()) < 0.2 * float(before.value.detach())
    assert agent.act(obs, explore=False)["action"].tolist() == [0, 1]
