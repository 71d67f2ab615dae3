"""What environments raise while they are played ends a run in one sentence that names them."""

from functools import partial

import pytest
from probes import CounterVector
from training import fit, make_trainer

from rl_lightning import DQN, PPO, ReplayDataModule
from rl_lightning.callbacks import VideoRecorder
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.data import RolloutDataModule
from rl_lightning.envs.failures import LONGEST, told

STEP = r"environment 'Moody-v0' raised in step: RuntimeError: the licence .* \(probes.py:\d+\)"
RESET = r"environment 'Moody-v0' raised in reset: RuntimeError: the licence .* \(probes.py:\d+\)"


def rollouts(**kwargs):
    sizes = {"num_envs": 2, "rollout_steps": 8, "total_frames": 64, "val_episodes": 2}
    return RolloutDataModule("Moody-v0", seed=0, val_seed=1, **sizes, env_kwargs=kwargs)


def replay(**kwargs):
    sizes = {"num_envs": 2, "total_frames": 60, "warmup_frames": 30, "frames_per_epoch": 10}
    sizes |= {"buffer_frames": 200, "batch_size": 8, "collect_frames": 2}
    return ReplayDataModule("Moody-v0", seed=0, **sizes, env_kwargs=kwargs)


def evaluated(stage, agent, data):
    trainer = make_trainer(limit_val_batches=1.0)
    return getattr(trainer, stage)(agent, data)


def filmed(agent, data):
    data.trainer = make_trainer()
    data.trainer.strategy._lightning_module = agent
    VideoRecorder()._play(data)


PLACES = {
    "rollouts": (PPO, rollouts, fit),
    "replay": (DQN, replay, partial(fit, gradient_clip_val=None)),
    "validation": (PPO, rollouts, partial(evaluated, "validate")),
    "test": (PPO, rollouts, partial(evaluated, "test")),
    "predict": (PPO, rollouts, partial(evaluated, "predict")),
    "video": (PPO, rollouts, filmed),
}


@pytest.mark.parametrize(
    ("mood", "kind", "words"), [("raise", RunError, STEP), ("reset", ConfigurationError, RESET)]
)
@pytest.mark.parametrize("place", PLACES)
def test_it_is_told_wherever_they_are_played(place, mood, kind, words):
    agent, data, play = PLACES[place]
    module = data(mood=mood)
    with pytest.raises(kind, match=words) as caught:
        play(agent(module.spec), module)
    assert isinstance(caught.value.__cause__, RuntimeError)  # with its traceback


def test_native_environments_too(monkeypatch):
    def step(self, actions):
        raise ZeroDivisionError

    monkeypatch.setattr(CounterVector, "step", step)
    data = RolloutDataModule("Counter-v0", vectorization="native", total_frames=64)
    with pytest.raises(RunError, match=r"'Counter-v0' raised in step: ZeroDivisionError \("):
        fit(PPO(data.spec), data)


def test_what_explains_itself_comes_through_as_it_is(monkeypatch):
    def step(self, actions):
        raise ConfigurationError("one sentence")

    monkeypatch.setattr(CounterVector, "step", step)
    data = RolloutDataModule("Counter-v0", vectorization="native", total_frames=64)
    with pytest.raises(ConfigurationError, match=r"^one sentence$"):
        fit(PPO(data.spec), data)


def test_long_messages_are_cut_and_lines_joined():
    assert told(ValueError("a\n  b")) == "ValueError: a b"
    assert len(told(ValueError("x" * 10_000))) < LONGEST + 50
    assert told(KeyError()) == "KeyError"
