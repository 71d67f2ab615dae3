"""A policy of one's own, from as little as it must have."""

from functools import partial

import pytest
import torch
from training import fit, make_trainer

from rl_lightning import A2C, PPO, REINFORCE, ActorCritic, RolloutDataModule, RolloutPolicy
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.maths.distributions import Categorical
from rl_lightning.policies import Evaluation


class Least(RolloutPolicy):
    """`act`, `evaluate` and `value`."""

    notes = ()

    def __init__(self, spec, encoder):
        super().__init__()
        self.encoder = encoder(spec)
        self.mask_dim = int(spec.action_space.n)
        self.heads = torch.nn.Linear(self.encoder.out_dim, self.mask_dim + 1)

    def look(self, x):
        out = self.heads(self.encoder(x))
        return Categorical(out[..., :-1]), out[..., -1]

    def act(self, x, explore=True, state=None, mask=None):
        policy, value = self.look(x)
        action = policy.sample() if explore else policy.mode()
        all_of_it = {"log_prob": policy.log_prob(action), "value": value}
        return {"action": action, **{name: all_of_it[name] for name in self.notes}}

    def evaluate(self, batch):
        policy, value = self.look(batch["obs"])
        return Evaluation(policy.log_prob(batch["action"]), policy.entropy(), value)

    def value(self, x, state=None):
        return self.look(x)[1]


class NotesProbability(Least):
    notes = ("log_prob",)


class NotesBoth(Least):
    notes = ("log_prob", "value")


class Blind(Least):
    """Values nothing."""

    value = RolloutPolicy.value


def train(agent, policy, **kwargs):
    torch.manual_seed(0)
    data = RolloutDataModule("CartPole-v1", 4, 16, total_frames=256, val_episodes=2, seed=0)
    return fit(agent(data.spec, network=policy, **kwargs), data)


def test_whatever_acting_notes_the_same_is_learned():
    agents = [train(PPO, policy) for policy in (Least, NotesProbability, NotesBoth)]
    for other in agents[1:]:
        for ours, theirs in zip(agents[0].parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("agent", [PPO, A2C, REINFORCE])
def test_it_is_evaluated_with_transcripts(agent):
    data = RolloutDataModule("CartPole-v1", 4, 16, total_frames=64, val_episodes=2, seed=0)
    trainer = make_trainer(limit_val_batches=1.0)
    trainer.fit(agent(data.spec, network=Least), data)
    assert trainer.callback_metrics["val/return"] > 0


def test_without_values_only_what_needs_none_learns():
    train(REINFORCE, Blind, baseline=False)
    for agent in (PPO, A2C, REINFORCE):
        with pytest.raises(ConfigurationError, match=r"needs a critic.*needs a `value`"):
            train(agent, Blind)


@pytest.mark.parametrize("name", ["log_prob", "value"])
def test_columns_in_the_place_of_numbers_are_refused(name):
    class Columns(Least):
        def evaluate(self, batch):
            out = super().evaluate(batch)
            return out._replace(**{name: getattr(out, name)[:, None]})

    with pytest.raises(ConfigurationError, match=rf"Columns.evaluate returned {name} of shape"):
        train(PPO, Columns)


class Remembers(Least):
    """A GRU, as the README says: sequences in `evaluate`, everything noted while acting."""

    state_dim = 5

    def __init__(self, spec, encoder):
        super().__init__(spec, encoder)
        self.memory = torch.nn.GRUCell(self.encoder.out_dim, self.state_dim)
        self.heads = torch.nn.Linear(self.state_dim, self.mask_dim + 1)

    def step(self, x, state):
        state = self.memory(self.encoder(x), state)
        out = self.heads(state)
        return Categorical(out[..., :-1]), out[..., -1], state

    def act(self, x, explore=True, state=None, mask=None):
        policy, value, state = self.step(x, state)
        action = policy.sample() if explore else policy.mode()
        log_prob = policy.log_prob(action)
        return {"action": action, "log_prob": log_prob, "value": value, "next_state": state}

    def evaluate(self, batch):
        state, found = batch["state"][0], []
        for t in range(batch.shape[0]):
            state = torch.where(batch["start"][t][:, None], 0.0, state)
            policy, value, state = self.step(batch["obs"][t], state)
            found.append((policy.log_prob(batch["action"][t]), policy.entropy(), value))
        return Evaluation(*map(torch.stack, zip(*found, strict=True)))

    def value(self, x, state=None):
        return self.step(x, state)[1]


def test_a_memory_is_written_as_the_readme_says():
    class First(PPO):
        seen = None

        def loss(self, batch):
            ratio = self.policy.evaluate(batch).log_prob - batch["log_prob"]
            if self.updates == 0:
                First.seen = float(ratio.abs().max())
            return super().loss(batch)

    agent = train(First, Remembers)
    assert agent.updates == 4
    assert First.seen < 1e-5  # the first ratio is 1: sequences are what was acted
    assert set(agent.initial_state(3).shape) == {3, 5}


class Forgets(Remembers):
    def act(self, *args, **kwargs):
        out = super().act(*args, **kwargs)
        del out["next_state"]
        return out


class Undeclared(Least):
    def act(self, x, explore=True, state=None, mask=None):
        return {**super().act(x, explore), "next_state": torch.zeros(len(x), 5)}


class Headless(Least):
    def __init__(self, spec, encoder):
        super().__init__(spec, encoder)
        self.net = self.encoder
        del self.encoder


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (Forgets, "must return the `next_state`"),
        (Undeclared, "set the policy's state_dim"),
        (Headless, "Headless has no encoder; set self.encoder"),
    ],
)
def test_what_is_missing_is_named(policy, said):
    with pytest.raises(ConfigurationError, match=said):
        train(PPO, policy)


def test_a_baseline_is_asked_for_whatever_the_network_says():
    agent = train(REINFORCE, partial(ActorCritic, critic=False))
    assert agent.policy.has_critic
    assert not train(REINFORCE, ActorCritic, baseline=False).policy.has_critic


def test_a_policy_of_another_kind_needs_no_base():
    """One that offers everything by itself, and is no `RolloutPolicy`."""

    class Duck(ActorCritic):
        has_critic = property()  # an AttributeError, as where there is none

    train(PPO, Duck)
