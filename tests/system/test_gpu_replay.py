"""Agents that learn from replay, and runs of updates, on a CUDA device."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from training import fit

from rl_lightning import (
    DDPG,
    DQN,
    PPO,
    SAC,
    TD3,
    ActorCritic,
    ContinuousNetwork,
    DiscreteSAC,
    MLPEncoder,
    QNetwork,
    QTable,
    ReplayDataModule,
    RolloutDataModule,
)
from rl_lightning.policies import DiscreteNetwork

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = {"accelerator": "gpu", "devices": 1}
SEEN = partial(MLPEncoder, normalize=True)
SMALL = {"hidden": (16,)}
AGENTS = {
    "dqn": (
        partial(DQN, network=partial(QNetwork, **SMALL), encoder=SEEN, target_update_frames=50),
        {},
    ),
    "rainbow": (
        partial(
            DQN,
            network=partial(QNetwork, dueling=True, noisy=True, **SMALL),
            exploration=None,
            double=True,
            distribution="categorical",
            value_range=(0.0, 100.0),
        ),
        {"prioritized": True, "n_step": 3},
    ),
    "quantile": (partial(DQN, distribution="quantile", atoms=8), {"prioritized": True}),
    "discrete_sac": (partial(DiscreteSAC, network=partial(DiscreteNetwork, **SMALL)), {}),
    "sac": (partial(SAC, network=partial(ContinuousNetwork, **SMALL), encoder=SEEN), {}),
    "td3": (partial(TD3, network=partial(ContinuousNetwork, **SMALL)), {}),
    "ddpg": (partial(DDPG, network=partial(ContinuousNetwork, **SMALL)), {}),
}
CLIPS = [{}, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}]
CONTINUOUS = ("sac", "td3", "ddpg")


class Single(Callback):
    """Needs each update by itself, and does nothing."""

    def on_train_batch_end(self, *args):
        pass


def replay(name, **kwargs):
    given = {"batch_size": 32, "warmup_frames": 64, "frames_per_epoch": 64, "seed": 0}
    env = "Pendulum-v1" if name in CONTINUOUS else "CartPole-v1"
    return ReplayDataModule(env, **{**given, "total_frames": 256, "val_episodes": 2, **kwargs})


def train(name, *callbacks, data=None, ckpt_path=None, agent=None, **trainer):
    torch.manual_seed(0)
    make, given = AGENTS[name]
    module = replay(name, **given, **(data or {}))
    made = make(module.spec, **(agent or {}))
    return fit(made, module, ckpt_path, callbacks=list(callbacks), **{**GPU, **trainer})


def close(a, b, **tolerances):
    for key, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[key], **tolerances)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("name", AGENTS)
def test_trains_in_every_precision(name, precision):
    before = AGENTS[name][0](replay(name).spec).state_dict()
    agent = train(name, precision=precision, limit_val_batches=1.0)
    assert agent.updates == 192
    assert agent.trainer.callback_metrics["val/return"].isfinite()
    after = agent.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(before[key], value.cpu()) for key, value in after.items())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("name", ["dqn", "sac"])
def test_runs_and_single_updates_of_replay_are_the_same(name, clip, precision):
    if name == "sac" and clip:
        clip = {"gradient_clip_val": 1e-3}
    runs = train(name, precision=precision, **clip)
    single = train(name, Single(), precision=precision, **clip)
    assert not runs.automatic_optimization
    assert single.automatic_optimization
    assert runs.updates == single.updates
    close(runs, single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("clip", [1e-3, 0.5])
def test_runs_and_single_updates_of_rollouts_are_the_same(clip, precision):
    learned = []
    for callbacks in ([], [Single()]):
        torch.manual_seed(0)
        given = {"num_envs": 4, "rollout_steps": 16, "minibatch_size": 16, "passes": 3}
        data = RolloutDataModule("CartPole-v1", total_frames=256, seed=0, **given)
        agent = PPO(data.spec, encoder=SEEN, network=partial(ActorCritic, hidden=(16,)))
        trainer = {**GPU, "gradient_clip_val": clip, "precision": precision}
        learned.append(fit(agent, data, callbacks=callbacks, **trainer))
        assert agent.updates == 48
    close(*learned, rtol=1e-4, atol=1e-5)


def test_clipping_sees_unscaled_gradients():
    """A limit that no gradient reaches changes nothing, however the loss is scaled."""
    close(
        train("dqn", precision="16-mixed", gradient_clip_val=None),
        train("dqn", precision="16-mixed", gradient_clip_val=1e4),
    )


@pytest.mark.parametrize("name", ["rainbow", "sac"])
def test_replay_resumes(name, tmp_path):
    def saver(folder):
        return ModelCheckpoint(tmp_path / folder, "last", save_on_train_epoch_end=True)

    kept = {"enable_checkpointing": True}
    whole = train(name, saver("whole"), **kept)
    train(name, saver("half"), max_epochs=2, **kept)
    last = tmp_path / "half" / "last.ckpt"
    rest = train(name, saver("rest"), ckpt_path=last, **kept)
    assert rest.updates == whole.updates
    close(whole, rest)
    loaded = type(rest).load_from_checkpoint(last, map_location="cpu")
    assert loaded.device.type == "cpu"


def test_a_table_learns_beside_cuda():
    data = RolloutDataModule("FrozenLake-v1", num_envs=4, total_frames=400, seed=0)
    agent = fit(QTable(data.spec), data, **GPU, gradient_clip_val=None, limit_val_batches=1.0)
    assert agent.updates > 0


def test_numbers_of_cuda_are_those_of_the_processor():
    """From the same weights, a batch's loss and gradients."""
    data = replay("dqn")
    torch.manual_seed(0)
    agent = DQN(data.spec, network=partial(QNetwork, **SMALL))
    fit(agent, data, accelerator="cpu")
    batch = data.next_batch()
    losses, gradients = [], []
    for device in ("cpu", "cuda"):
        agent.zero_grad()
        agent.to(device)
        loss = agent.loss(batch.to(device))
        loss.value.backward()
        losses.append(loss.value.detach().cpu())
        gradients.append([p.grad.cpu() for p in agent.policy.parameters()])
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
