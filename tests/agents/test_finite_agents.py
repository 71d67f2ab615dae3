"""An agent whose numbers are lost says so, and is never saved."""

from functools import partial

import pytest
import strange  # noqa: F401  (registers environments)
import torch
import training
from lightning.pytorch.callbacks import ModelCheckpoint
from training import make_trainer

from rl_lightning.agents import A2C, DQN, PPO, SAC, QTable
from rl_lightning.agents.agent import adam
from rl_lightning.agents.finite import learned, not_finite
from rl_lightning.core.errors import RunError
from rl_lightning.data import ReplayDataModule, RolloutDataModule
from rl_lightning.encoders import MLPEncoder


def fit(agent, data, **kwargs):
    return training.fit(agent, data, **{"gradient_clip_val": None, **kwargs})


def rollouts(**kwargs):
    small = {"num_envs": 2, "rollout_steps": 8, "total_frames": 96, "val_episodes": 2}
    return RolloutDataModule("Strange-v0", **{**small, **kwargs})


def replay(**kwargs):
    small = {"num_envs": 2, "buffer_frames": 200, "batch_size": 8, "warmup_frames": 8}
    small |= {"collect_frames": 2, "frames_per_epoch": 16, "total_frames": 96, "val_episodes": 2}
    return ReplayDataModule("Strange-v0", **{**small, **kwargs})


def lost(make, data, tmp_path, match, **trainer):
    """Trains until it stops; every checkpoint that was written must be good."""
    agent = make(data.spec)
    every = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    last = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    with pytest.raises(RunError, match=match) as caught:
        fit(agent, data, enable_checkpointing=True, callbacks=[every, last], **trainer)
    text = str(caught.value)
    assert text.startswith(f"{type(agent).__name__} on 'Strange-v0': ")
    assert "\n" not in text
    assert len(text) < 700
    for path in tmp_path.glob("*.ckpt"):
        saved = torch.load(path, weights_only=True)
        assert all(x.isfinite().all() for x in saved["state_dict"].values()), path
    return agent


def huge(env):
    return 1e38 if env.steps > 20 else 1.0


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (PPO, rollouts),
        (PPO, partial(rollouts, minibatch_size=4, passes=3)),
        (A2C, rollouts),
        (partial(DQN, error="mse"), replay),
        (partial(DQN, error="mse"), partial(replay, prioritized=True)),
    ],
)
def test_a_loss_that_overflows_stops_the_run(make, data, tmp_path):
    """Rewards are finite, their squares are not."""
    agent = lost(make, data(env_kwargs={"reward": huge}), tmp_path, r"after \d+ frames")
    assert agent.frames < 96
    assert list(tmp_path.glob("last*.ckpt"))


class Broken(PPO):
    """Loses its weights in a way that no loss shows, after the third rollout."""

    what = "weight"

    def after_update(self):
        if self.frames < 48:
            return
        parameter = self.policy.actor[0].weight if self.what == "weight" else None
        with torch.no_grad():
            if parameter is not None:
                parameter[0, 0] = float("inf")
            else:
                optimizer = self.trainer.optimizers[0]
                next(iter(optimizer.state.values()))["exp_avg_sq"][0] = float("inf")


class Frozen(Broken):
    """Its optimizer's state overflows, so that weights never move again."""

    what = "optimizer"


@pytest.mark.parametrize(
    ("make", "match"),
    [(Broken, r"actor.*weight is not finite"), (Frozen, "optimizer's exp_avg_sq of .* not finite")],
)
def test_so_do_weights_and_the_optimizer_s_state(make, match, tmp_path):
    agent = lost(make, rollouts(), tmp_path, match + " after 48 frames")
    assert agent.frames == 48


class Raises(PPO):
    """Meets its NaN as an exception from somewhere deep."""

    def training_step(self, batch, batch_idx):
        if self.frames >= 48:
            with torch.no_grad():
                next(self.policy.parameters()).fill_(float("nan"))
            torch.multinomial(torch.full((2, 2), float("nan")), 1)
        return super().training_step(batch, batch_idx)


class RaisesInReplay(DQN):
    """The same, of an agent that updates by itself."""

    def loss(self, batch):
        if self.frames >= 48:
            with torch.no_grad():
                next(self.policy.parameters()).fill_(float("nan"))
            torch.multinomial(torch.full((2, 2), float("nan")), 1)
        return super().loss(batch)


class RaisesActing(PPO):
    """The same, while it acts."""

    def act(self, x, **kwargs):
        if self.frames >= 48:
            next(self.policy.parameters()).fill_(float("nan"))
            raise ValueError("invalid distribution")
        return super().act(x, **kwargs)


@pytest.mark.parametrize(
    ("make", "data"), [(Raises, rollouts), (RaisesInReplay, replay), (RaisesActing, rollouts)]
)
def test_nan_explains_what_comes_of_it(make, data, tmp_path):
    lost(make, data(), tmp_path, "is not finite after 4.|is not finite after 50")


class Fails(PPO):
    """Fails for another reason."""

    def training_step(self, batch, batch_idx):
        raise ZeroDivisionError("of its own")


def test_what_nan_does_not_explain_is_left_alone():
    data = rollouts()
    with pytest.raises(ZeroDivisionError, match="of its own"):
        fit(Fails(data.spec), data)


class ActsNaN(SAC):
    """Has lost its numbers on the way to an action."""

    def act(self, x, **kwargs):
        out = super().act(x, **kwargs)
        return {**out, "action": out["action"] * float("nan")}


@pytest.mark.parametrize("evaluates", [False, True])
def test_an_action_of_nan_is_the_agent_s_fault(evaluates):
    data = ReplayDataModule("Pendulum-v1", total_frames=40, warmup_frames=8, val_episodes=1)
    agent = ActsNaN(data.spec)
    trainer = make_trainer(gradient_clip_val=None, limit_val_batches=1.0)
    run = trainer.validate if evaluates else trainer.fit
    with pytest.raises(RunError, match=r"Pendulum-v1.*the policy's action is nan, at step"):
        run(agent, data)


def test_a_lost_agent_is_not_evaluated():
    data = rollouts()
    agent = PPO(data.spec)
    with torch.no_grad():
        next(agent.policy.parameters()).fill_(float("nan"))
    for stage in ("validate", "test", "predict"):
        trainer = make_trainer(limit_val_batches=1.0)
        with pytest.raises(RunError, match=r"PPO on 'Strange-v0': .* is not finite"):
            getattr(trainer, stage)(agent, data)


def test_a_table_is_looked_at_too(tmp_path):
    """Its weights are no parameters, and it has no optimizer."""
    from gymnasium.spaces import Discrete

    more = {"space": Discrete(3), "reward": 3e38}
    data = rollouts(env_kwargs=more)
    make = partial(QTable, gamma=1.0, alpha=1.0)
    lost(make, data, tmp_path, "QTable on .*the table is not finite")


# --- looking -------------------------------------------------------------------------------------


def test_not_finite_names_the_first():
    tensors = {"a": torch.ones(3), "b": torch.tensor([1.0, float("nan")]), "c": torch.zeros(0)}
    assert not_finite(tensors.items()) == "b"
    tensors["b"] = torch.tensor([1.0, -float("inf")])
    assert not_finite(tensors.items()) == "b"
    assert not_finite([("n", torch.tensor([1, 2]))]) is None
    assert not_finite([]) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_norm_that_overflows_is_no_number_that_does(dtype):
    large = torch.full((9,), torch.finfo(dtype).max, dtype=dtype)
    assert not_finite([("large", large), ("one", torch.ones(1))]) is None
    assert not_finite([("large", large), ("inf", large * 2)]) == "inf"


def test_learned_are_weights_statistics_and_the_optimizer_s_state():
    spec = rollouts().spec
    agent = PPO(spec, encoder=partial(MLPEncoder, normalize=True))
    frozen = next(agent.policy.parameters()).requires_grad_(False)
    optimizer = adam([p for p in agent.parameters() if p.requires_grad])
    sum(p.sum() for p in agent.parameters()).backward()
    optimizer.step()
    found = dict(learned(agent, [optimizer]))
    trained = [p for p in agent.parameters() if p is not frozen]
    # The frozen one is saved, too, as a target network's are.
    assert all(any(t is p for t in found.values()) for p in [*trained, frozen])
    assert sum("exp_avg_sq" in name for name in found) == len(trained)
    assert any(name.endswith("norm.running.moments") for name in found)
