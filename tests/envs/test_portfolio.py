"""Trials chosen on other tasks."""

import numpy as np
import pytest

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.envs import make_env
from rl_lightning.envs.optimise.baselines import play
from rl_lightning.envs.optimise.portfolio import FixedTrials, choose_trials, portfolio

SMALL = {"data": ["wine"], "trials": 3, "epochs": 1}


def make(**kwargs):
    return make_env("HyperparameterSearch-v0", {**SMALL, **kwargs})


def test_each_row_adds_most_to_those_before_it():
    scores = np.array([[0.6, 0.6, 0.6], [0.9, 0.1, 0.1], [0.5, 0.8, 0.0], [0.0, 0.0, 0.9]])
    assert portfolio(scores, 1) == [0]
    assert portfolio(scores, 2) == [0, 1]  # as good as the last: +0.3
    assert portfolio(scores, 4) == [0, 1, 3, 2]


@pytest.mark.parametrize("actions", ["continuous", "discrete"])
def test_trials_are_chosen_by_what_they_score(actions):
    env = make(actions=actions)
    chosen = choose_trials(env, [0, 1], candidates=6)
    assert len(chosen.actions) == 3

    def alone(action):
        one = make(actions=actions, trials=1)
        scores = [play(one, FixedTrials([action]), seed)["best_accuracy"] for seed in (0, 1)]
        return np.mean(scores)

    everything = choose_trials(make(actions=actions, trials=6), [0, 1], candidates=6).actions
    assert alone(chosen.actions[0]) == max(alone(action) for action in everything)
    first, other = (choose_trials(env, [0], 2, seed).actions for seed in (0, 1))
    assert not np.array_equal(first, other)


def test_trials_are_the_same_for_every_task():
    env = make(trials=4)
    baseline = FixedTrials([np.zeros(4), np.ones(4)])
    for seed in (1, 2):
        baseline.begin(env, seed)
        env.reset(options={"task_seed": seed})
        rates = [env.step(baseline.act(None, {}))[-1]["lr"] for _ in range(4)]
        assert rates == pytest.approx([10**-1.5, 1, 10**-1.5, 1])


def test_what_cannot_be_chosen():
    with pytest.raises(ConfigurationError, match="at least one"):
        FixedTrials([])
    with pytest.raises(ConfigurationError, match="on some tasks"):
        choose_trials(make(), [])
    with pytest.raises(ConfigurationError, match="in HyperparameterSearch-v0"):
        choose_trials(make_env("ParameterTuning-v0"), [0])
    with pytest.raises(ConfigurationError, match="candidates must be at least 1"):
        choose_trials(make(), [0], candidates=0)
