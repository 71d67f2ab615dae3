"""Arguments of the on-policy data module: each does what it says, or says what is wrong."""

import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from lightning.pytorch import Callback
from training import AGENTS, fit, make_trainer

from rl_lightning import A2C, PPO, REINFORCE, ActorCritic
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data import RolloutDataModule
from rl_lightning.data.collect.reward_norm import RewardNorm

MEMORY = partial(ActorCritic, recurrent="gru", recurrent_size=4)


class Start(Callback):
    """Runs a function of the data module before the first batch."""

    def __init__(self, look):
        self.look, self.seen = look, None

    def on_train_start(self, trainer, pl_module):
        self.seen = self.look(trainer.datamodule)


class Rewards(A2C):
    """Keeps the rewards it is given to learn from."""

    def prepare(self, rollout):
        self.rewards = getattr(self, "rewards", [])
        self.rewards.append(rollout.steps["reward"].clone())
        return super().prepare(rollout)


def train(look=None, agent=A2C, **data):
    module = RolloutDataModule(
        **{"env": "Counter-v0", "num_envs": 2, "rollout_steps": 6, "total_frames": 24, **data}
    )
    start = Start(look or (lambda module: None))
    made = fit(agent(module.spec), module, callbacks=[start])
    return start.seen, module, made


def test_reinforce_says_when_it_learns_from_nothing():
    def train_plainly(steps):
        data = RolloutDataModule("Counter-v0", num_envs=2, rollout_steps=steps, total_frames=12)
        make_trainer().fit(REINFORCE(data.spec, baseline=False), data)

    with pytest.warns(UserWarning, match=r"no episode ended.*raise data\.rollout_steps \(2\)"):
        train_plainly(2)  # episodes take three
    with warnings.catch_warnings(record=True) as caught:
        train_plainly(6)
    assert not [w for w in caught if "no episode ended" in str(w.message)]


# --- environments -----------------------------------------------------------------------------


def test_env_and_env_kwargs():
    length, module, _ = train(lambda m: m.collector.env.envs[0].unwrapped.length)
    assert length == 3
    assert module.spec.id == "Counter-v0"
    assert (
        train(lambda m: m.collector.env.envs[0].unwrapped.length, env_kwargs={"length": 5})[0] == 5
    )


def test_num_envs():
    assert train(lambda m: m.collector.env.num_envs)[0] == 2
    assert train(lambda m: m.collector.env.num_envs, num_envs=3)[0] == 3


def test_wrappers():
    wrappers = [{"TransformReward": {"func": abs}}, "FlattenObservation"]
    env = train(lambda m: m.collector.env.envs[0], wrappers=wrappers)[0]
    assert isinstance(env, gym.wrappers.FlattenObservation)
    assert isinstance(env.env, gym.wrappers.TransformReward)


def test_vectorization():
    def look(module):
        env = module.collector.env
        return isinstance(env, SyncVectorEnv), env.metadata["autoreset_mode"]

    assert train(look)[0] == (True, AutoresetMode.SAME_STEP)
    assert train(look, vectorization="native")[0] == (False, AutoresetMode.NEXT_STEP)


def first_observations(seed, global_seed=0):
    torch.manual_seed(global_seed)
    module = RolloutDataModule(
        "CartPole-v1", num_envs=2, rollout_steps=2, total_frames=4, seed=seed
    )
    seen = []

    class First(A2C):
        def prepare(self, rollout):
            seen.append(rollout.steps["obs"][0].clone())
            return super().prepare(rollout)

    fit(First(module.spec), module)
    return seen[0]


def test_seed_fixes_the_environments():
    expected = np.stack([gym.make("CartPole-v1").reset(seed=s)[0] for s in (7, 8)])
    assert np.array_equal(first_observations(7).numpy(), expected)
    assert torch.equal(first_observations(7, global_seed=1), first_observations(7, global_seed=2))
    assert not torch.equal(first_observations(7), first_observations(8))


def test_without_a_seed_the_global_one_counts():
    assert torch.equal(first_observations(None, 3), first_observations(3))
    assert not torch.equal(first_observations(None, 3), first_observations(None, 4))


# --- rewards and successes --------------------------------------------------------------------


def test_reward_norm_by_hand():
    """γ = ½. Environment 0: R = 1, 2.5, and 4 after the end; environment 1: 0, 0, 2."""
    norm = RewardNorm(2, gamma=0.5)
    reward = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 2.0]])
    done = torch.tensor([[0, 0], [1, 0], [0, 0]], dtype=torch.bool)
    returns = torch.tensor([1.0, 2.5, 4.0, 0.0, 0.0, 2.0])
    deviation = returns.std(correction=0)
    torch.testing.assert_close(norm(reward, done), reward / deviation)
    # The next rollout goes on: ½·4 + 2 = 4 and ½·2 + 2 = 3.
    more = torch.cat([returns, torch.tensor([4.0, 3.0])]).std(correction=0)
    again = norm(torch.full((1, 2), 2.0), torch.zeros(1, 2, dtype=torch.bool))
    torch.testing.assert_close(again, torch.full((1, 2), 2.0) / more)


def test_reward_norm_clips_and_leaves_out_resets():
    norm = RewardNorm(1, gamma=0.5, clip=2.0)
    reward = torch.tensor([[1.0], [-99.0], [0.0], [100.0]])
    done = torch.tensor([[1], [0], [0], [1]], dtype=torch.bool)
    valid = torch.tensor([[1], [0], [1], [1]], dtype=torch.bool)
    scaled = norm(reward, done, valid)
    # The reset's reward means nothing, also for what comes after it: R = 1, 0, 100.
    deviation = torch.tensor([1.0, 0.0, 100.0]).std(correction=0)
    assert scaled[0].item() == pytest.approx(1 / deviation.item())
    assert scaled[3].item() == 2.0


def test_normalize_reward_scales_what_is_learned_from_and_not_what_is_logged():
    _, module, agent = train(agent=Rewards, normalize_reward=False)
    assert module._reward_norm is None
    assert agent.rewards[0][:, 0].tolist() == [1, 2, 3, 1, 2, 3]
    _, _, agent = train(agent=partial(Rewards, gamma=0.5), normalize_reward=True)
    # R = 1, 2.5, 4.25, and again.
    deviation = torch.tensor([1.0, 2.5, 4.25]).std(correction=0)
    expected = torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0, 3.0]) / deviation
    torch.testing.assert_close(agent.rewards[0][:, 0], expected)
    assert agent.clock_metrics["train/return"] == 6.0


def test_success_threshold():
    kwargs = {"env": "Probe-v0", "env_kwargs": {"task": "constant"}}  # every return is 1
    assert "train/success" not in train(**kwargs)[2].clock_metrics
    for threshold, share in ((0.5, 1.0), (1.0, 1.0), (1.5, 0.0)):
        metrics = train(**kwargs, success_threshold=threshold)[2].clock_metrics
        assert metrics["train/success"] == share


def test_what_info_says_of_success_is_stronger_than_the_threshold():
    def always(spec):
        agent = A2C(spec)
        with torch.no_grad():
            agent.policy.action_head.linear.bias[1] = 100.0  # action 1 succeeds
        return agent

    metrics = train(agent=always, success_threshold=1e9)[2].clock_metrics
    assert metrics["train/success"] == 1.0


# --- mistakes ---------------------------------------------------------------------------------

TWO = {"num_envs": 2, "rollout_steps": 6}
WRONG = {
    "minibatch_size": ({**TWO, "minibatch_size": 5}, "minibatch_size: 5", "2 · 6 = 12", "e.g. 4"),
    "passes": ({"passes": 0}, "data.passes must be at least 1, not 0"),
    "rollout_steps": ({"rollout_steps": -1}, "data.rollout_steps must be at least 1, not -1"),
    "rollouts_per_epoch": ({"rollouts_per_epoch": 0}, "data.rollouts_per_epoch", "not 0"),
    "zero_minibatch": ({"minibatch_size": 0}, "data.minibatch_size must be at least 1, not 0"),
    "num_envs": ({"num_envs": 0}, "data.num_envs must be at least 1, not 0"),
    "total_frames": ({"total_frames": -5}, "data.total_frames must be at least 1, not -5"),
    "val_episodes": ({"val_episodes": 0}, "data.val_episodes must be at least 1, not 0"),
    "val_num_envs": ({"val_num_envs": 0}, "data.val_num_envs must be at least 1, not 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_impossible_numbers_are_refused_at_once(case):
    kwargs, *parts = WRONG[case]
    with pytest.raises(ConfigurationError) as error:
        RolloutDataModule("Counter-v0", **kwargs)
    assert all(part in str(error.value) for part in parts), error.value


UNFIT = {
    "passes": (A2C, {"passes": 4}, "A2C", "data.passes: 1", "4 and 12", "use PPO"),
    "minibatches": (A2C, {"minibatch_size": 6}, "A2C", "data.minibatch_size", "1 and 6"),
    "uneven": (
        partial(PPO, network=MEMORY, sequence_length=4),
        {},
        "model.sequence_length: 4 does not divide data.rollout_steps: 6",
    ),
    "half": (
        partial(PPO, network=MEMORY, sequence_length=3),
        {"minibatch_size": 4},
        "data.minibatch_size: 4 does not hold whole sequences of 3 steps",
        "a multiple of 3",
    ),
    "whole": (
        partial(PPO, network=MEMORY),
        {"minibatch_size": 4},
        "data.minibatch_size: 4 does not hold whole sequences of 6 steps",
        "or set model.sequence_length",
    ),
    "negative": (
        partial(PPO, network=MEMORY, sequence_length=-2),
        {},
        "model.sequence_length must be at least 1, not -2",
    ),
    "forgetful": (
        partial(PPO, sequence_length=3),
        {},
        "model.sequence_length: 3",
        "without memory",
        "recurrent: lstm or gru",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_agents_that_do_not_fit_the_data_are_refused(case):
    agent, data, *parts = UNFIT[case]
    with pytest.raises(ConfigurationError) as error:
        train(agent=agent, **data)
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize("name", ["a2c", "reinforce", "reinforce_alone"])
def test_only_ppo_reuses_rollouts(name):
    with pytest.raises(ConfigurationError, match="one update per rollout"):
        train(agent=AGENTS[name], passes=2)
    train(agent=AGENTS["ppo"], passes=2)
