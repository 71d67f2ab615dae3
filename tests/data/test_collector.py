"""What a rollout holds, in both autoreset modes, step by step."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data.collect.collector import Collector
from rl_lightning.envs import make_vector_env


class Script:
    """An agent without weights: acts by a rule and remembers what it was shown."""

    device = torch.device("cpu")

    def __init__(self, state: bool = False) -> None:
        self.state = state
        self.observed: list[np.ndarray] = []

    def observe(self, obs):
        self.observed.append(np.array(obs))

    def preprocess(self, obs):
        return torch.as_tensor(obs, dtype=torch.float32)

    def initial_state(self, num_envs):
        return torch.zeros(num_envs, 1) if self.state else None

    def read_mask(self, info):
        return None

    def act(self, x, explore, state, mask):
        out = {"action": torch.ones(len(x), dtype=torch.int64), "log_prob": torch.zeros(len(x))}
        if state is not None:
            out["next_state"] = state + 1  # counts steps since the episode began
        return out


def collect(vectorization, steps=8, num_envs=2, state=False, **kwargs):
    env = make_vector_env("Counter-v0", num_envs, vectorization, kwargs)
    collector = Collector(env, steps, seed=0)
    return collector, collector.collect(Script(state))


def test_same_step_rollout_by_hand():
    collector, rollout = collect("sync", length=3)
    steps = rollout.steps
    assert steps["obs"][:, 0, 0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert steps["reward"][:, 0].tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    assert steps["terminated"][:, 0].tolist() == [0, 0, 1, 0, 0, 1, 0, 0]
    assert not steps["truncated"].any()
    assert "valid" not in steps
    assert rollout.final_obs is None
    assert rollout.last_obs[:, 0].tolist() == [2, 2]
    assert list(collector.episodes.returns) == [6.0] * 4
    assert list(collector.episodes.lengths) == [3] * 4
    assert list(collector.episodes.successes) == [1.0] * 4


def test_next_step_rollout_by_hand():
    collector, rollout = collect("native", length=3)
    steps = rollout.steps
    # Step 3 starts from the final observation and only resets: its reward and action mean nothing.
    assert steps["obs"][:, 0, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert steps["valid"][:, 0].tolist() == [1, 1, 1, 0, 1, 1, 1, 0]
    assert steps["reward"][steps["valid"]].tolist() == [1, 1, 2, 2, 3, 3] * 2
    assert list(collector.episodes.returns) == [6.0] * 4
    assert list(collector.episodes.lengths) == [3] * 4


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_truncated_episodes_hand_over_their_final_observation(vectorization):
    _, rollout = collect(vectorization, steps=4, length=3, truncate=True)
    assert rollout.final_index is not None
    t, b = rollout.final_index
    assert t.tolist() == [2, 2]
    assert b.tolist() == [0, 1]
    assert rollout.final_obs[:, 0].tolist() == [3, 3]


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_the_next_rollout_goes_on_where_the_last_one_ended(vectorization):
    env = make_vector_env("Counter-v0", 2, vectorization, {"length": 3})
    collector, agent = Collector(env, 4, seed=0), Script()
    first = collector.collect(agent).steps.clone()
    second = collector.collect(agent).steps
    long = Collector(make_vector_env("Counter-v0", 2, vectorization, {"length": 3}), 8, seed=0)
    both = long.collect(Script()).steps
    for key in list(both.keys()):
        assert torch.equal(torch.cat([first[key], second[key]]), both[key]), key


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_recurrent_state_starts_anew_with_each_episode(vectorization):
    _, rollout = collect(vectorization, steps=9, length=3, truncate=True, state=True)
    steps = rollout.steps
    valid = steps["valid"][:, 0] if vectorization == "native" else torch.ones(9, dtype=torch.bool)
    # In these environments the count of steps is the observation, and here also the state.
    assert steps["state"][valid, 0, 0].tolist() == steps["obs"][valid, 0, 0].tolist()
    begins = (steps["obs"][:, 0, 0] == 0).tolist()
    assert steps["start"][1:, 0].tolist() == begins[1:]
    # V(final observation) needs the state after the whole episode.
    assert rollout.final_state is not None
    assert rollout.final_state[:, 0].tolist() == [3.0] * len(rollout.final_state)


def test_observe_sees_every_observation_of_training_once():
    env = make_vector_env("Counter-v0", 1, "sync", {"length": 3})
    agent = Script()
    Collector(env, 4, seed=0).collect(agent)
    assert [o.item() for o in agent.observed] == [0, 1, 2, 0, 1]


def test_disabled_autoreset_is_refused():
    env = SyncVectorEnv([lambda: gym.make("Counter-v0")], autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(ConfigurationError, match="SAME_STEP or NEXT_STEP"):
        Collector(env, 4, seed=0)


def test_async_equals_sync():
    results = []
    for vectorization in ("sync", "async"):
        env = make_vector_env("CartPole-v1", 2, vectorization)
        rollout = Collector(env, 40, seed=3).collect(Script())
        results.append(rollout.steps.clone())
        env.close()
    for key in list(results[0].keys()):
        assert torch.equal(results[0][key], results[1][key]), key


def test_async_text_is_not_blank():
    env = make_vector_env("TextMaze-v0", 2, "async")
    obs, _ = env.reset(seed=0)
    env.close()
    assert all("exit" in text for text in obs)
