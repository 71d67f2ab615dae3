"""Probe environments with known answers, for every agent that learns from replay.

`constant`: V = 1. `observation`: V(s) is what s shows. `delayed`: the reward comes one step later,
so V = γ, then 1. `match`: the action must fit what the observation shows; a policy that ignores it
has a greedy return of 0. `truncated`: a time limit is not an end, so V = 1/(1 − γ).
"""

from functools import partial

import pytest
import torch
from probes import batch
from training import fit, judge

from rl_lightning import (
    DDPG,
    DQN,
    IQL,
    SAC,
    TD3,
    ContinuousNetwork,
    DiscreteSAC,
    MLPEncoder,
    OfflineNetwork,
    QNetwork,
    ReplayDataModule,
)
from rl_lightning.agents.agent import adam
from rl_lightning.exploration import GaussianNoise
from rl_lightning.policies import DiscreteNetwork

pytestmark = pytest.mark.learning

cold = {"temperature": 0.01, "learn_temperature": False}
noise = partial(GaussianNoise, std=0.5)
fast = {"target_update_frames": 0, "tau": 0.1}
CATEGORICAL = {"distribution": "categorical", "value_range": (-3.0, 6.0), "atoms": 46}
AGENTS = {
    "dqn": ("discrete", partial(DQN, **fast), QNetwork, {}),
    "double": ("discrete", partial(DQN, double=True, **fast), QNetwork, {}),
    "dueling": ("discrete", partial(DQN, **fast), partial(QNetwork, dueling=True), {}),
    "noisy": (
        "discrete",
        partial(DQN, exploration=None, **fast),
        partial(QNetwork, noisy=True),
        {},
    ),
    "categorical": ("discrete", partial(DQN, **CATEGORICAL, **fast), QNetwork, {}),
    "quantile": ("discrete", partial(DQN, distribution="quantile", atoms=16, **fast), QNetwork, {}),
    "hard_target": ("discrete", partial(DQN, target_update_frames=64, error="mse"), QNetwork, {}),
    "prioritized": ("discrete", partial(DQN, **fast), QNetwork, {"prioritized": True}),
    "n_step": ("discrete", partial(DQN, **fast), QNetwork, {"n_step": 3}),
    "rainbow": (
        "discrete",
        partial(DQN, double=True, exploration=None, **CATEGORICAL, **fast),
        partial(QNetwork, dueling=True, noisy=True),
        {"prioritized": True, "n_step": 2},
    ),
    "discrete_sac": ("discrete", partial(DiscreteSAC, tau=0.1, **cold), DiscreteNetwork, {}),
    "sac": ("box", partial(SAC, tau=0.1, **cold), ContinuousNetwork, {}),
    "td3": ("box", partial(TD3, tau=0.2, noise=noise, target_noise=0.05), ContinuousNetwork, {}),
    "ddpg": ("box", partial(DDPG, tau=0.1, noise=noise), ContinuousNetwork, {}),
    "iql": ("discrete", partial(IQL, tau=0.1, expectile=0.9), OfflineNetwork, {}),
}


def train(
    name,
    task,
    observation="vector",
    *,
    encoder=MLPEncoder,
    env=None,
    frames=1600,
    lr=1e-2,
    **kwargs,
):
    """Train on a probe for about a second."""
    torch.manual_seed(0)
    action, make, network, data = AGENTS[name]
    module = ReplayDataModule(
        "Probe-v0",
        num_envs=8,
        warmup_frames=400,
        collect_frames=8,
        gradient_steps=2,
        frames_per_epoch=400,
        batch_size=64,
        total_frames=frames,
        seed=0,
        env_kwargs={"task": task, "observation": observation, "action": action, **(env or {})},
        **{"save_replay": False, **data, **kwargs.pop("data", {})},
    )
    agent = make(
        module.spec,
        encoder=encoder,
        network=partial(network, hidden=(32,)),
        optimizer=partial(adam, lr=lr),
        lr_schedule="linear",
        **{"gamma": 0.5, **kwargs},
    )
    return fit(agent, module, gradient_clip_val=None).eval()


@torch.no_grad()
def values(agent, observation, *states):
    out = []
    for state in states:
        thoughts = agent.inspect(agent.preprocess(batch(observation, state)))
        out.append(
            (thoughts["value"] if "value" in thoughts else thoughts["values"].amax(1)).item()
        )
    return out


# Of all switches of DQN, the tasks below need not see each: all of them find the action that fits.
SWITCHES = {"n_step", "hard_target", "dueling", "noisy", "prioritized", "categorical", "quantile"}
MOST = [pytest.param(name, marks=pytest.mark.slow) if name in SWITCHES else name for name in AGENTS]


@pytest.mark.parametrize("name", MOST)
def test_constant_reward_has_value_one(name):
    assert values(train(name, "constant"), "vector", 0) == pytest.approx([1.0], abs=0.1)


@pytest.mark.parametrize("name", MOST)
def test_reward_that_the_observation_tells(name):
    agent = train(name, "observation")
    assert values(agent, "vector", 0, 1) == pytest.approx([-1.0, 1.0], abs=0.12)


@pytest.mark.parametrize("name", MOST)
def test_reward_one_step_later_is_discounted_once(name):
    agent = train(name, "delayed", gamma=0.7)
    assert values(agent, "vector", 0, 1) == pytest.approx([0.7, 1.0], abs=0.12)


@pytest.mark.parametrize("name", MOST)
def test_a_time_limit_is_not_an_end(name):
    agent = train(name, "truncated", gamma=0.8, frames=2400)
    assert values(agent, "vector", 0) == pytest.approx([5.0], abs=0.5)


@pytest.mark.parametrize("name", ["dqn", "n_step", "sac"])
def test_native_environments_reset_between_two_steps(name):
    """Their resets pay nonsense, which must not be learned."""
    data = {"vectorization": "native"}
    agent = train(name, "truncated", gamma=0.8, frames=2400, data=data)
    assert values(agent, "vector", 0) == pytest.approx([5.0], abs=0.5)


@pytest.mark.parametrize("name", ["hard_target", "sac"])
def test_a_terminal_state_is_worth_what_it_paid(name):
    """One step in five ends the episode: V = 1 + 0.8 · 0.8 V (of the squared error; Huber's is
    drawn towards the median)."""
    agent = train(name, "truncated", gamma=0.8, env={"terminate": True}, frames=3200)
    assert values(agent, "vector", 0) == pytest.approx([1 / 0.36], abs=0.5)


@pytest.mark.parametrize("name", AGENTS)
def test_the_action_that_fits_the_state_is_found(name):
    action = AGENTS[name][0]
    agent = train(name, "match")
    greedy = [judge(agent, "vector", action, (s,), s, explore=False) for s in (0, 1)]
    assert min(greedy) >= (0.4 if action == "box" else 1.0), greedy
    assert values(agent, "vector", 0, 1) == pytest.approx(greedy, abs=0.3)


ENCODERS = ("one_hot", "nature", "impala", "dict", "tuple", "mixed", "llm_frozen", "llm_lora")
QUICK = {("dqn", encoder) for encoder in ("one_hot", "tuple", "llm_frozen")}
QUICK |= {("sac", "one_hot"), ("sac", "llm_frozen"), ("discrete_sac", "one_hot")}


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        pytest.param(name, encoder, marks=() if (name, encoder) in QUICK else pytest.mark.slow)
        for name in ("dqn", "sac", "discrete_sac")
        for encoder in ENCODERS
    ],
)
def test_every_encoder(encoders, encoder, name):
    observation, build = encoders[encoder]
    action = AGENTS[name][0]
    slow = {"lr": 4e-3} if encoder in ("nature", "impala", "dict") else {}
    if encoder in ("llm_lora", "mixed"):
        slow = {"encoder_lr": 2e-3}
    frames = 3200 if name == "sac" else 1600  # a continuous policy takes longer to get there
    agent = train(name, "match", observation, encoder=build, frames=frames, **slow)
    greedy = [judge(agent, observation, action, (s,), s, explore=False) for s in (0, 1)]
    assert min(greedy) >= (0.3 if action == "box" else 1.0), greedy


@pytest.mark.parametrize("name", ["dqn", "rainbow", "discrete_sac"])
def test_masks_are_kept_to(name):
    """The probe raises if one is not; on each step a single action is allowed."""
    agent = train(name, "truncated", env={"mask": True}, frames=1200, gamma=0.8)
    x = agent.preprocess(batch("vector", 0, 0))
    mask = torch.tensor([[True, False], [False, True]])
    for explore in (True, False):
        assert agent.act(x, explore=explore, mask=mask)["action"].tolist() == [0, 1]


def test_masked_actions_do_not_count_in_the_target():
    agent = train("dqn", "truncated", env={"mask": True}, frames=1200, gamma=0.8)
    data = {"next_obs": agent.preprocess(batch("vector", 0, 0))}
    free = agent.bootstrap(dict(data))
    with torch.no_grad():
        q = agent.target(data["next_obs"])
    masks = torch.tensor([[True, False], [False, True]])
    masked = agent.bootstrap({**data, "next_action_mask": masks})
    assert masked.tolist() == [q[0, 0].item(), q[1, 1].item()]
    assert free.tolist() == q.amax(1).tolist()
