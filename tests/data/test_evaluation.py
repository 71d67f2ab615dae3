"""Evaluation: which episodes, how they are counted, and that training does not notice."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from training import fit, make_trainer

from rl_lightning import PPO, ActorCritic, MLPEncoder
from rl_lightning.data import RolloutDataModule
from rl_lightning.data.collect.statistics import EpisodeStatistics

still = partial(torch.optim.SGD, lr=0.0)


class Episodes(Callback):
    """Keeps the episodes of every validation and what was logged of them."""

    def __init__(self):
        self.episodes, self.metrics = [], []

    def on_validation_start(self, trainer, pl_module):
        self.episodes.append([])

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, *args):
        self.episodes[-1].append(batch)

    def on_validation_end(self, trainer, pl_module):
        self.metrics.append(dict(trainer.callback_metrics))


def always(spec, action, **kwargs):
    """An agent that takes one action whatever it sees."""
    agent = PPO(spec, **kwargs)
    with torch.no_grad():
        agent.policy.action_head.linear.weight.zero_()
        agent.policy.action_head.linear.bias[action] = 50.0
    return agent


def validate(agent=None, env="Counter-v0", **data):
    """Metrics and episodes of one validation."""
    module, episodes = RolloutDataModule(env, **data), Episodes()
    trainer = make_trainer(limit_val_batches=1.0, callbacks=[episodes])
    made = (agent or PPO)(module.spec)
    return trainer.validate(made, module, verbose=False)[0], episodes.episodes[0]


@pytest.mark.parametrize("vectorization", ["sync", "native"])
@pytest.mark.parametrize("length", [3, 4])
def test_metrics_by_hand(vectorization, length):
    """Rewards are 1, 2, 3 …, so three steps return 6 and four return 10."""
    metrics, episodes = validate(
        env_kwargs={"length": length}, vectorization=vectorization, val_episodes=5, val_num_envs=2
    )
    assert metrics["val/return"] == {3: 6, 4: 10}[length]
    assert metrics["val/return_std"] == 0
    assert metrics["val/length"] == length
    assert {e["length"] for e in episodes} == {length}


@pytest.mark.parametrize(("action", "success"), [(0, 0.0), (1, 1.0)])
def test_success_is_what_info_says(action, success):
    metrics, _ = validate(partial(always, action=action), val_episodes=3)
    assert metrics["val/success"] == success


def test_mean_spread_and_success_of_mixed_episodes():
    """Observation probe: half the episodes return 1 and half −1, in expectation."""
    metrics, episodes = validate(
        env="Probe-v0",
        env_kwargs={"task": "observation"},
        val_episodes=40,
        success_threshold=0.5,
    )
    returns = torch.tensor([e["return"] for e in episodes])
    assert set(returns.tolist()) == {-1.0, 1.0}
    assert metrics["val/return"] == pytest.approx(returns.mean().item())
    assert metrics["val/return_std"] == pytest.approx(returns.std(correction=0).item())
    assert metrics["val/success"] == pytest.approx((returns == 1).float().mean().item())


def test_what_is_said_only_of_success_counts_failures_too():
    """Episodes whose info says nothing, beside ones that report a success, were failures."""
    agent = PPO(RolloutDataModule("Counter-v0").spec)
    said = [1.0, float("nan"), float("nan"), 1.0, float("nan")]
    logged = {}
    agent._episodes = [{"return": 0.0, "length": 1, "success": s} for s in said]
    agent._trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    agent.log_dict = logged.update  # type: ignore[assignment]
    agent._log_episodes("val")
    assert logged["val/success"] == pytest.approx(0.4)

    collected = EpisodeStatistics(num_envs=2)
    done = np.array([True, True])
    collected.finish(done, {}, None)
    assert "train/success" not in collected.metrics("train")
    collected.finish(done, {"success": np.array([1.0, 0.0])}, None)
    collected.finish(done, {}, None)
    assert collected.metrics("train")["train/success"] == pytest.approx(1 / 6)


def test_without_a_threshold_nothing_is_said_of_success():
    metrics, episodes = validate(env="Probe-v0", env_kwargs={"task": "observation"})
    assert "val/success" not in metrics
    assert all(e["success"] != e["success"] for e in episodes)


@pytest.mark.parametrize("vectorization", ["sync", "native"])
@pytest.mark.parametrize(
    ("episodes", "num_envs", "shares"),
    [(7, 3, [3, 2, 2]), (6, 3, [2, 2, 2]), (2, 8, [1, 1]), (1, 1, [1])],
)
def test_val_episodes_are_split_evenly(episodes, num_envs, shares, vectorization):
    _, played = validate(val_episodes=episodes, val_num_envs=num_envs, vectorization=vectorization)
    assert len(played) == episodes
    assert [sum(e["env"] == b for e in played) for b in range(len(shares))] == shares


def test_long_episodes_count_as_often_as_short_ones():
    """A pole that falls at once must not be played more often than one that stands."""
    _, played = validate(
        partial(always, action=1), env="CartPole-v1", val_episodes=12, val_num_envs=4
    )
    assert [sum(e["env"] == b for e in played) for b in range(4)] == [3, 3, 3, 3]
    assert len({e["length"] for e in played}) > 1


def observations(**data):
    """The first observation and result of environment 0's first episode."""
    data = {"val_episodes": 4, "val_num_envs": 2, "val_transcript_steps": 1, **data}
    _, played = validate(partial(always, action=1), env="CartPole-v1", **data)
    first = next(e for e in played if "transcript" in e)
    return first["transcript"][0]["observation"], [(e["env"], e["return"]) for e in played]


def test_val_seed_fixes_the_episodes():
    assert observations() == observations()
    assert observations() != observations(val_seed=5)
    assert observations(seed=1) == observations(seed=2)  # training's seed has no say


def test_test_and_predict_play_other_episodes_than_validation():
    seeds = []
    for stage in ("val", "test", "predict"):
        module = RolloutDataModule("CartPole-v1")
        module.trainer = make_trainer()
        seeds.append(getattr(module, f"{stage}_dataloader")().seed)
    assert len(set(seeds)) == 3


def test_val_env_kwargs_change_evaluation_alone():
    metrics, _ = validate(env_kwargs={"length": 3}, val_env_kwargs={"length": 4})
    assert metrics["val/length"] == 4
    module = RolloutDataModule(
        "Counter-v0",
        num_envs=2,
        rollout_steps=8,
        total_frames=16,
        val_env_kwargs={"length": 4},
    )
    agent = fit(PPO(module.spec), module)
    assert agent.clock_metrics["train/length"] == 3


@pytest.mark.parametrize("steps", [0, 2, 99])
def test_val_transcript_steps(steps):
    _, played = validate(val_episodes=4, val_num_envs=2, val_transcript_steps=steps)
    written = [e["transcript"] for e in played if "transcript" in e]
    if steps == 0:
        assert not written
        return
    assert len(written) == 1
    assert len(written[0]) == min(steps, 3)
    assert written[0][1]["observation"] == "[1.]"
    assert written[0][1]["reward"] == 2.0
    assert set(written[0][0]) == {"observation", "action", "reward", "probabilities", "value"}


# --- greedy or not, and what is left alone ----------------------------------------------------


def uncertain(spec, **kwargs):
    """Takes action 1 with probability 0.6."""
    agent = PPO(spec, **kwargs)
    with torch.no_grad():
        agent.policy.action_head.linear.weight.zero_()
        agent.policy.action_head.linear.bias[1] = 0.4055
    return agent


@pytest.mark.parametrize("explore", [True, False])
def test_val_explore(explore):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    metrics, played = validate(uncertain, val_episodes=200, val_explore=explore)
    # Success is the last action; greedily it is always 1.
    if explore:
        assert metrics["val/success"] == pytest.approx(0.6, abs=0.12)
    else:
        assert metrics["val/success"] == 1
    torch.manual_seed(4)
    again, played_again = validate(uncertain, val_episodes=200, val_explore=explore)
    assert [e["success"] for e in played] == [e["success"] for e in played_again]
    assert again == metrics
    torch.manual_seed(3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("explore", [True, False])
def test_the_global_random_numbers_are_left_alone(explore):
    module = RolloutDataModule("Counter-v0", val_explore=explore)
    agent, trainer = uncertain(module.spec), make_trainer(limit_val_batches=1.0)
    before = torch.get_rng_state()
    trainer.validate(agent, module, verbose=False)
    assert torch.equal(before, torch.get_rng_state())


def train(validating, explore=True, network=ActorCritic):
    torch.manual_seed(1)
    module = RolloutDataModule(
        "CartPole-v1",
        num_envs=2,
        rollout_steps=16,
        minibatch_size=16,
        passes=2,
        total_frames=32 * 4,
        normalize_reward=True,
        seed=0,
        val_episodes=3,
        val_explore=explore,
    )
    agent = PPO(module.spec, partial(MLPEncoder, normalize=True), network)
    episodes = Episodes()
    fit(agent, module, callbacks=[episodes], limit_val_batches=1.0 if validating else 0)
    assert len(episodes.episodes) == (4 if validating else 0)
    assert module._reward_norm is not None
    return {**agent.state_dict(), "reward": module._reward_norm.running.moments}


@pytest.mark.parametrize("network", [ActorCritic, partial(ActorCritic, recurrent="gru")])
@pytest.mark.parametrize("explore", [True, False])
def test_training_does_not_notice_that_it_is_evaluated(explore, network):
    """Weights, observation and reward statistics are the same to the bit."""
    without, with_ = (train(validating, explore, network) for validating in (False, True))
    assert without.keys() == with_.keys()
    assert all(torch.equal(without[key], with_[key]) for key in without)


def test_every_validation_of_a_run_plays_the_same_episodes():
    module, episodes = (
        RolloutDataModule(
            "CartPole-v1",
            num_envs=2,
            rollout_steps=8,
            total_frames=48,
            val_episodes=5,
            val_explore=True,
        ),
        Episodes(),
    )
    fit(PPO(module.spec, optimizer=still), module, callbacks=[episodes], limit_val_batches=1.0)
    first, second, third = ([(e["env"], e["length"]) for e in run] for run in episodes.episodes)
    assert first == second == third
    assert len(set(first)) > 1


def test_recurrent_evaluation_forgets_between_episodes():
    """A memory that survived an episode's end would change its successor's values."""
    module = RolloutDataModule(
        "Counter-v0", val_episodes=3, val_num_envs=1, val_transcript_steps=99
    )
    agent = PPO(module.spec, network=partial(ActorCritic, recurrent="gru", recurrent_size=4))
    seen = []
    act = agent.policy.act

    def noting(x, explore, state, mask):
        seen.append((x[0, 0].item(), state[0].tolist()))
        return act(x, explore, state, mask)

    agent.policy.act = noting
    make_trainer(limit_val_batches=1.0).validate(agent, module, verbose=False)
    assert [x for x, _ in seen] == [0, 1, 2] * 3
    assert seen[0:3] == seen[3:6] == seen[6:9]
    assert seen[0][1] == [0] * 4 != seen[2][1]  # state 1 has seen a 0 only
