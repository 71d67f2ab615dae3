"""Hindsight: which later rows there are, and transitions as they would have been."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from replay_tools import Game
from scipy.stats import chisquare

from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.replay.hindsight import Hindsight
from rl_lightning.encoders import DictEncoder
from rl_lightning.envs import make_env


def rows_of(buffer, game, index):
    """The rows that `later` may give for a row, by brute force: up to the episode's end so far."""
    rest, _, _ = game.expected()[index]
    at, b = divmod(index, buffer.num_envs)
    return [(at + k) % buffer.rows * buffer.num_envs + b for k in range(1, len(rest) + 1)]


@pytest.mark.parametrize("next_step", [False, True])
@pytest.mark.parametrize("longest", [7, 30])
def test_later_rows_are_of_the_same_episode(next_step, longest):
    game = Game(frames=40, next_step=next_step, episodes=True, longest=longest)
    rng = np.random.default_rng(0)
    for _ in range(40):
        game.play(int(rng.integers(1, 9)))
        buffer = game.buffer
        for index in game.expected():
            allowed = rows_of(buffer, game, index)
            many = torch.full((200,), index)
            later = buffer.later(many, torch.linspace(0, 1 - 1e-6, 200))
            assert later.unique().tolist() == sorted(allowed)
            assert buffer.last(many[:1]).tolist() == allowed[-1:]


def test_later_rows_are_uniform():
    game = Game(frames=90, episodes=True, longest=30)
    game.play(29)
    index = max(game.expected(), key=lambda i: len(rows_of(game.buffer, game, i)))
    later = game.buffer.later(torch.full((6000,), index), torch.rand(6000))
    counts = torch.unique(later, return_counts=True)[1]
    assert len(counts) == len(rows_of(game.buffer, game, index)) > 5
    assert chisquare(counts.numpy()).pvalue > 1e-3


def test_an_episode_that_was_left_open_does_not_run_into_the_next_one():
    """As where a run goes on whose environments cannot be copied."""
    game = Game(frames=90, episodes=True, num_envs=1, longest=30)
    game.play(4)
    end = int(game.buffer.head[0])
    game.collector.x = None
    game.play(40)
    assert game.buffer.last(torch.arange(end)).unique().tolist() == [end]


# --- bit flip --------------------------------------------------------------------------------


def flips(goals=4, strategy="future", **kwargs):
    game = Game(lambda: gym.make("BitFlip-v0", bits=6), 2, 300, episodes=True, **kwargs)
    return game, Hindsight(make_env("BitFlip-v0", {"bits": 6}), goals, strategy)


def relabelled(game, hindsight, n=400):
    """Drawn rows, the batch as it was, and what hindsight makes of it."""
    index = game.buffer.draw(n)
    before = game.buffer.read(index, 0.9)
    after = hindsight(game.buffer, index, game.buffer.read(index, 0.9), 0.9)
    return index, before, after


@pytest.mark.parametrize("strategy", ["future", "final"])
@pytest.mark.parametrize("next_step", [False, True])
def test_transitions_are_relabelled_as_if_the_goal_had_been_another(strategy, next_step):
    game, hindsight = flips(strategy=strategy, next_step=next_step)
    for steps in (10, 33, 61, 200):
        game.play(steps)
        index, before, after = relabelled(game, hindsight)
        goal = after["obs"]["desired_goal"]
        assert torch.equal(after["next_obs"]["desired_goal"], goal)
        expected = game.expected()
        changed = (goal != before["obs"]["desired_goal"]).any(1)
        assert changed.float().mean() > 0.5
        for i, row in enumerate(index.tolist()):
            reached = [s.next_obs["achieved_goal"] for s in expected[row][0]]
            reached = reached[-1:] if strategy == "final" else reached
            own = np.array_equal(goal[i], before["obs"]["desired_goal"][i])
            assert own or any(np.array_equal(goal[i], r) for r in reached)
        hit = (after["next_obs"]["achieved_goal"] == goal).all(1)
        assert torch.equal(after["reward"], hit.float() - 1)
        assert torch.equal(after["discount"], 0.9 * (~hit).float())
        assert 0.1 < hit.float().mean() < 0.9
        for key in ("observation", "achieved_goal"):  # what happened stays
            assert torch.equal(after["obs"][key], before["obs"][key])
            assert torch.equal(after["next_obs"][key], before["next_obs"][key])
        assert torch.equal(after["action"], before["action"])


def test_goals_of_every_later_step_are_equally_likely():
    """In an episode of six steps, the first one is relabelled with six different goals."""
    game, hindsight = flips(goals=10**9)
    while True:
        game.play(1)
        found = {i: v for i, v in game.expected().items() if len(v[0]) == 6}
        distinct = [
            i
            for i, v in found.items()
            if len({tuple(s.next_obs["achieved_goal"]) for s in v[0]}) == 6
        ]
        if distinct:
            break
    index = torch.full((3000,), distinct[0])
    after = hindsight(game.buffer, index, game.buffer.read(index, 0.9), 0.9)
    counts = torch.unique(after["obs"]["desired_goal"], dim=0, return_counts=True)[1]
    assert len(counts) == 6
    assert chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("goals", [1, 4])
def test_the_share_of_relabelled_transitions_is_k_of_k_and_one(goals):
    game, hindsight = flips(goals)
    game.play(100)
    chosen = []
    hindsight._goals = lambda buffer, key, index: torch.full((len(index), 6), 0.5)
    for _ in range(30):
        _, _, after = relabelled(game, hindsight)
        chosen.append((after["obs"]["desired_goal"] == 0.5).all(1).float())
    share = torch.cat(chosen).mean().item()
    assert share == pytest.approx(goals / (goals + 1), abs=0.012)  # 3 standard deviations of 12000


def test_where_the_environment_does_not_tell_of_termination_it_stays():
    game, hindsight = flips(goals=10**9)
    hindsight.compute_terminated = None
    game.play(200)
    _, before, after = relabelled(game, hindsight)
    assert torch.equal(after["discount"], before["discount"])
    assert not torch.equal(after["reward"], before["reward"])


def test_without_anything_to_relabel_a_batch_stays():
    game, hindsight = flips()
    hindsight.share = 0.0
    game.play(30)
    _, before, after = relabelled(game, hindsight)
    assert torch.equal(after["reward"], before["reward"])


# --- what is refused -------------------------------------------------------------------------


class Goals(gym.Env):
    def __init__(self, goal, achieved=None):
        parts = {"observation": goal, "achieved_goal": achieved or goal, "desired_goal": goal}
        self.observation_space = gym.spaces.Dict(parts)

    def compute_reward(self, achieved, desired, info):
        return 0.0


BOX, OTHER = gym.spaces.Box(0, 1, (2,)), gym.spaces.Box(0, 2, (2,))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (gym.make("CartPole-v1"), "needs an environment with achieved_goal.*CartPole-v1"),
        (gym.make_vec("CartPole-v1", 1, "vector_entry_point"), "needs an environment with"),
        (Goals(BOX, OTHER), "must be the same Box or MultiBinary space"),
        (Goals(gym.spaces.Discrete(3)), "must be the same Box or MultiBinary space"),
    ],
)
def test_other_environments_are_refused(env, message):
    with pytest.raises(ConfigurationError, match=message):
        Hindsight(env, 4)


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ConfigurationError, match="her_strategy must be one of future, final, not"):
        Hindsight(make_env("BitFlip-v0"), 4, "past")  # type: ignore[arg-type]


@pytest.mark.parametrize("reward", [float("nan"), -float("inf"), 1e300])
def test_a_computed_reward_that_is_not_finite_is_refused(reward):
    game, hindsight = flips()
    game.play(30)
    hindsight.compute_reward = lambda achieved, *_: np.full(len(achieved), reward, np.float32)
    with np.errstate(over="ignore"), pytest.raises(RunError, match=r"compute_reward gave -?(n|i)"):
        relabelled(game, hindsight)


def test_goals_that_are_stored_otherwise_are_refused():
    game, hindsight = flips(preprocess=lambda obs: {k: torch.zeros(2, 3) for k in obs})
    game.play(30)
    with pytest.raises(ConfigurationError, match=r"has 3 numbers, the environment's \[6\]"):
        relabelled(game, hindsight)


def test_an_encoder_that_leaves_out_a_goal_is_refused():
    game, hindsight = flips()
    ignoring = DictEncoder(
        EnvSpec(game.space, game.env.single_action_space), ignore=["achieved_goal"]
    )
    game.player.preprocess = ignoring.preprocess_raw
    game.play(30)
    with pytest.raises(ConfigurationError, match=r"leaves out achieved_goal.*ignore"):
        relabelled(game, hindsight)
