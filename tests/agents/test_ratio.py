"""The probability ratio of PPO is 1 until the first update: acting and learning agree.

Whatever differs between the two forward passes shows here: dropout, precision, recurrent states,
masks, statistics that moved since. The ratio is read where the loss gets it. Where acting leaves
log π to be recalled afterwards, from the rollout, it is made to note it too: log π recalled by the
function that the loss uses would agree with it however wrong both are.
"""

from functools import partial

import pytest
import torch
from torch import nn
from training import train_probe

from rl_lightning.encoders import MLPEncoder
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.llm import Backbone, load
from rl_lightning.maths import losses
from rl_lightning.nn import Memory
from rl_lightning.policies import ActorCritic


@pytest.fixture
def deviations(monkeypatch):
    """A list that grows by |ρ − 1| of all valid rows of each update."""
    seen = []
    original = losses.ppo_policy_loss

    def spy(log_ratio, advantage, clip_range, valid=None):
        deviation = (log_ratio.detach().exp() - 1).abs()
        seen.append(deviation.flatten() if valid is None else deviation[valid])
        return original(log_ratio, advantage, clip_range, valid)

    build = ActorCritic.__init__

    def noting(self, *args, **kwargs):
        build(self, *args, **kwargs)
        self.evaluates_while_acting = True

    monkeypatch.setattr(losses, "ppo_policy_loss", spy)
    monkeypatch.setattr(ActorCritic, "__init__", noting)
    return seen


class LateNorm(Encoder):
    """Normalises in `forward`, by statistics that have moved on since acting."""

    def __init__(self, spec):
        super().__init__()
        self.inner = MLPEncoder(spec, normalize=True)
        self.out_dim = self.inner.out_dim

    def preprocess(self, obs):
        return torch.as_tensor(obs)

    def observe(self, obs):
        self.inner.observe(obs)

    def forward(self, x):
        assert self.inner.norm is not None
        return self.inner.norm(x)


def train(observation="vector", action="discrete", *, task="truncated", data=None, **kwargs):
    """Three rollouts of 3 · 12 frames, two updates with each of all of it.

    Episodes of 5 steps end inside the rollouts and go on across their borders.
    """
    settings = {
        "num_envs": 3,
        "rollout_steps": 12,
        "minibatch_size": 36,
        "passes": 2,
        "total_frames": 3 * 36,
        **(data or {}),
    }
    if settings.get("vectorization") == "native":
        settings["total_frames"] = 3 * 30  # every sixth step is a reset
    return train_probe("ppo", task, observation, action, data=settings, **kwargs)


def check(deviations, first=1e-5):
    assert len(deviations) == 6
    assert max(d.max().item() for d in deviations[0::2]) <= first
    assert min(d.max().item() for d in deviations[1::2]) > 1e-4  # updates do move the policy


ACTION_SPACES = ["discrete", "multi_discrete", "multi_binary", "clipped_box", "squashed_box"]


@pytest.mark.parametrize("action", ACTION_SPACES)
@pytest.mark.parametrize("task", ["truncated", "policy"])
def test_mlp(deviations, task, action):
    train(action=action, task=task)
    check(deviations)


@pytest.mark.parametrize("network", [{}, {"recurrent": "gru", "recurrent_size": 8}])
@pytest.mark.parametrize("encoder", ["one_hot", "nature", "impala", "dict", "tuple", "mixed"])
def test_other_encoders(deviations, encoders, encoder, network):
    observation, build = encoders[encoder]
    train(observation, task="policy", encoder=build, network=network)
    check(deviations)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("encoder", ["llm_frozen", "llm_lora", "llm_full"])
def test_language_models(deviations, encoders, encoder, share):
    """bert's and gpt2's configurations have dropout; frozen features are standardised."""
    observation, build = encoders[encoder]
    train(observation, task="policy", encoder=build, network={"share_encoder": share})
    check(deviations)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("length", [None, 4, 3])
@pytest.mark.parametrize("vectorization", ["sync", "native"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrent(deviations, kind, vectorization, length, share):
    train(
        task="truncated",
        env={"horizon": 5},
        data={"vectorization": vectorization},
        network={"recurrent": kind, "recurrent_size": 8, "share_encoder": share},
        sequence_length=length,
    )
    check(deviations)


@pytest.mark.parametrize("network", [{}, {"recurrent": "gru", "recurrent_size": 8}])
@pytest.mark.parametrize("vectorization", ["sync", "native"])
@pytest.mark.parametrize("action", ["multi_discrete", "multi_binary"])
def test_action_masks(deviations, action, vectorization, network):
    data = {"vectorization": vectorization}
    train(action=action, env={"mask": True}, data=data, network=network)
    check(deviations)


def test_observation_normalisation(deviations):
    train(task="policy", encoder=partial(MLPEncoder, normalize=True))
    check(deviations)


# --- half precision ---------------------------------------------------------------------------
#
# bfloat16 has 8 bits: one rounding is a step of up to 0.4 %, and a network of several layers that
# rounds differently is off by a few of them. A maximum alone could therefore not tell acting
# outside autocast from acting inside it. But inside, the same numbers are rounded in the same way:
# nearly all rows agree to float32's last bits, and only where two batch shapes sum in a different
# order may a rounding tip over. Outside, hardly a row agrees.


def exact(deviations):
    """Share of rows whose ratio is 1 to float32's last bits, once the policy is not uniform."""
    return torch.cat(deviations[2::2]).le(1e-5).float().mean().item()


BF16 = {
    "mlp": ("vector", {}),
    "lstm": ("vector", {"network": {"recurrent": "lstm", "recurrent_size": 8}}),
    "gru": ("vector", {"network": {"recurrent": "gru", "recurrent_size": 8}}),
    "llm_frozen": ("text", {}),
    "llm_lora": ("text", {}),
    "llm_full": ("text", {}),
}


def train_bf16(encoders, name):
    observation, kwargs = BF16[name]
    build = encoders[name][1] if name in encoders else partial(MLPEncoder, hidden=(32,))
    # A policy that is far from uniform, so that its logits have something to round.
    kwargs = {"lr": 3e-2, "trainer": {"precision": "bf16-mixed"}, **kwargs}
    train(observation, task="policy", encoder=build, **kwargs)


@pytest.mark.parametrize("name", BF16)
def test_bf16(deviations, encoders, name):
    train_bf16(encoders, name)
    assert exact(deviations) >= 0.8  # 0.875 is the least seen, on a CPU without bfloat16 units
    assert max(d.max().item() for d in deviations[0::2]) <= 2**-5


@pytest.mark.parametrize("name", BF16)
def test_bf16_shows_acting_outside_autocast(deviations, encoders, name, monkeypatch):
    act = ActorCritic.act

    def outside(self, *args, **kwargs):
        with torch.autocast("cpu", enabled=False):
            return act(self, *args, **kwargs)

    monkeypatch.setattr(ActorCritic, "act", outside)
    train_bf16(encoders, name)
    assert exact(deviations) <= 0.5


# --- the ratio shows what it is there to show -------------------------------------------------


def broken(deviations):
    return max(d.max().item() for d in deviations[0::2]) > 1e-3


def test_it_shows_dropout(deviations, encoders, monkeypatch):
    # It is kept out twice: the probabilities are set to 0, and the model stays in eval mode.
    monkeypatch.setattr(load, "no_dropout", lambda config: None)
    monkeypatch.setattr(Backbone, "train", nn.Module.train)
    observation, build = encoders["llm_lora"]
    train(observation, task="policy", encoder=build)
    assert broken(deviations)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_it_shows_a_state_that_survives_an_episode(deviations, kind, monkeypatch):
    sequence = Memory.sequence
    monkeypatch.setattr(
        Memory, "sequence", lambda self, x, state, start: sequence(self, x, state, start & False)
    )
    train(network={"recurrent": kind, "recurrent_size": 8})
    assert broken(deviations)


def test_it_shows_a_sequence_that_starts_from_zero(deviations, monkeypatch):
    sequence = Memory.sequence
    monkeypatch.setattr(
        Memory, "sequence", lambda self, x, state, start: sequence(self, x, 0 * state, start)
    )
    train(network={"recurrent": "gru", "recurrent_size": 8}, sequence_length=4)
    assert broken(deviations)


def test_it_shows_a_forgotten_mask(deviations, monkeypatch):
    evaluate = ActorCritic.evaluate
    monkeypatch.setattr(
        ActorCritic, "evaluate", lambda self, batch: evaluate(self, batch.exclude("action_mask"))
    )
    train(action="multi_discrete", env={"mask": True})
    assert broken(deviations)


def test_it_shows_statistics_that_moved(deviations):
    train(task="policy", encoder=LateNorm, network={"hidden": (64, 64)}, lr=3e-2)
    assert broken(deviations)
