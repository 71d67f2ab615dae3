"""A policy of one's own, from as little as it must have."""

import pytest
import torch
from training import fit, make_trainer

from rl_lightning import A2C, PPO, REINFORCE, RolloutDataModule, RolloutPolicy
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
