"""The off-policy data module: what it collects and samples, when, and how long it goes on."""

import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from scipy.stats import chisquare, kstest
from training import fit, make_trainer

from rl_lightning import DQN, SAC, DictEncoder, MLPEncoder, QNetwork
from rl_lightning.data import ReplayBuffer, ReplayDataModule
from rl_lightning.data.collect.replay_collector import ReplayCollector
from rl_lightning.data.update_loader import UpdateLoader
from rl_lightning.exploration import EpsilonGreedy

TINY = partial(QNetwork, hidden=(8,))
SMALL = {
    "env": "Counter-v0",
    "num_envs": 2,
    "buffer_frames": 1000,
    "batch_size": 8,
    "warmup_frames": 12,
    "collect_frames": 4,
    "gradient_steps": 3,
    "frames_per_epoch": 16,
    "total_frames": 44,  # warm-up and two epochs of four rounds
}


class Watch(Callback):
    """Notes updates, epochs and frames, and the data module's last moments."""

    def __init__(self):
        self.updates = self.epochs = self.steps = 0
        self.frames = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.updates += 1

    def on_train_batch_end(self, *args):
        self.steps += 1

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs += 1
        self.frames.append(trainer.datamodule.frames)


def train(agent=DQN, callbacks=(), trainer=None, network=TINY, **data):
    """Returns what was watched, the data module and the agent."""
    torch.manual_seed(0)
    module, watch = ReplayDataModule(**{**SMALL, **data}), Watch()
    made = agent(module.spec, network=network) if network else agent(module.spec)
    settings = {"gradient_clip_val": None, **(trainer or {})}
    fit(made, module, callbacks=[watch, *callbacks], **settings)
    return watch, module, made


# --- one batch after the other ----------------------------------------------------------------


@pytest.fixture
def events(monkeypatch):
    """What happens, in order: (steps, uniformly) of a collection, "batch", "update"."""
    seen = []
    collect, batch = ReplayCollector.collect, ReplayDataModule.next_batch
    update = DQN.after_update

    def collecting(self, agent, buffer, steps, uniformly):
        seen.append((steps, uniformly))
        return collect(self, agent, buffer, steps, uniformly)

    def sampling(self):
        seen.append("batch")
        return batch(self)

    def updating(self):
        seen.append("update")
        return update(self)

    monkeypatch.setattr(ReplayCollector, "collect", collecting)
    monkeypatch.setattr(ReplayDataModule, "next_batch", sampling)
    monkeypatch.setattr(DQN, "after_update", updating)
    return seen


ROUND = [(2, False), *["batch", "update"] * 3]


@pytest.mark.parametrize("updates", [1, 5, 64])
def test_no_batch_is_sampled_before_the_update_before_it(updates, events, monkeypatch):
    monkeypatch.setattr(UpdateLoader, "UPDATES", updates)
    train()
    assert events == [(6, True), *ROUND * 8]


def test_nothing_is_collected_ahead_of_validation_and_checkpoints(events):
    class Note(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            events.append("epoch")

    train(callbacks=[Note()])
    assert events == [(6, True), *ROUND * 4, "epoch", *ROUND * 4, "epoch"]


def test_a_batch_comes_from_weights_and_rows_that_are_newest(monkeypatch):
    """The row written last can be in the very next batch."""
    newest = []
    draw = ReplayBuffer.draw

    def drawing(self, count):
        newest.append(int(self._counts.max()))
        return draw(self, count)

    monkeypatch.setattr(ReplayBuffer, "draw", drawing)
    train(gradient_steps=1, env_kwargs={"length": 1000})
    assert newest == [1 + 6 + 2 * i for i in range(1, 9)]


@pytest.mark.parametrize("updates", [1, 5, 7, 64])
@pytest.mark.parametrize("gradient_steps", [1, 3])
def test_loader_and_runs_have_the_lengths_they_say(updates, gradient_steps, monkeypatch):
    monkeypatch.setattr(UpdateLoader, "UPDATES", updates)
    counts, walk = [], UpdateLoader.__iter__

    def counting(self):
        counts.append([])
        for run in walk(self):
            counts[-1].append(len(run))
            yield run
        assert len(counts[-1]) == len(self)

    monkeypatch.setattr(UpdateLoader, "__iter__", counting)
    watch, _, _ = train(gradient_steps=gradient_steps)
    assert len(counts) == 2
    assert [sum(c) for c in counts] == [4 * gradient_steps] * 2
    assert watch.updates == 8 * gradient_steps
    assert watch.steps == 2 * len(counts[0])
    assert all(c <= max(updates, gradient_steps) for c in counts[0])


# --- frames, epochs, budget -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "frames", "updates"),
    [
        ({}, [28, 44], 24),
        ({"total_frames": 45}, [28, 44, 60], 36),
        ({"total_frames": 28}, [28], 12),
        ({"total_frames": 13}, [28], 12),
        ({"warmup_frames": 0, "total_frames": 32}, [16, 32], 24),
        ({"warmup_frames": 11}, [28, 44], 24),
        ({"warmup_frames": 13}, [30, 46], 24),
        ({"gradient_steps": 1}, [28, 44], 8),
        ({"collect_frames": 8}, [28, 44], 12),
        ({"collect_frames": None}, [28, 44], 48),
        ({"frames_per_epoch": 8}, [20, 28, 36, 44], 24),
        ({"num_envs": 1}, [28, 44], 24),
        ({"num_envs": 1, "collect_frames": 1}, [28, 44], 96),
        ({"num_envs": 4}, [28, 44], 24),
        ({"num_envs": 8, "collect_frames": None, "warmup_frames": 16}, [32, 48], 12),
    ],
)
def test_frames_updates_and_epochs(data, frames, updates):
    watch, module, agent = train(**data)
    assert watch.frames == frames
    assert watch.updates == updates
    assert watch.epochs == len(frames)
    assert module.frames == agent.frames == frames[-1]
    assert module.buffer._reward.size >= frames[-1]
    assert len(module.buffer) == frames[-1]


@pytest.mark.parametrize("num_envs", [1, 8])
@pytest.mark.parametrize("frames_per_epoch", [8, 40])
def test_resets_of_a_native_vector_env_are_no_frames(num_envs, frames_per_epoch, events):
    """Episodes of three steps and a reset, in all environments at once."""
    data = {"num_envs": num_envs, "collect_frames": 8, "frames_per_epoch": frames_per_epoch}
    watch, module, _ = train(
        vectorization="native", warmup_frames=50, total_frames=130, gradient_steps=1, **data
    )
    step = frames = 0

    def play(steps):
        nonlocal step, frames
        for _ in range(steps):
            frames += 0 if step % 4 == 3 else num_envs
            step += 1

    while frames < 50:
        play(-(-(50 - frames) // num_envs))
    expected = []
    while frames < 130:
        play(frames_per_epoch // num_envs)
        expected.append(frames)
    assert watch.frames == expected
    assert watch.updates == len(expected) * frames_per_epoch // 8
    assert len(module.buffer) == module.frames == frames
    collections = [event for event in events if isinstance(event, tuple)]
    uniform = [u for _, u in collections]
    assert uniform == sorted(uniform, reverse=True)  # chance first, and never again


def test_a_larger_budget_goes_on(tmp_path):
    saver = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    train(callbacks=[saver], trainer={"enable_checkpointing": True})
    larger, watch = ReplayDataModule(**{**SMALL, "total_frames": 76}), Watch()
    agent = DQN(larger.spec, network=TINY)
    fit(agent, larger, str(tmp_path / "last.ckpt"), callbacks=[watch], gradient_clip_val=None)
    assert watch.frames == [60, 76]
    assert watch.updates == 24
    assert len(larger.buffer) == 76


def test_max_epochs_limits_the_budget():
    assert train(trainer={"max_epochs": 1})[0].epochs == 1
    assert train(trainer={"max_epochs": 7})[0].epochs == 2


def test_a_second_fit_with_the_same_data_module_goes_on():
    _, module, agent = train()
    module.total_frames, watch, buffer = 76, Watch(), module.buffer
    fit(agent, module, callbacks=[watch], gradient_clip_val=None)
    assert watch.frames == [60, 76]
    assert module.buffer is buffer
    assert len(buffer) == 76


def test_another_agent_begins_at_frame_zero():
    _, module, _ = train()
    agent, watch, buffer = DQN(module.spec, network=TINY), Watch(), module.buffer
    fit(agent, module, callbacks=[watch], gradient_clip_val=None)
    assert watch.frames == [28, 44]
    assert module.buffer is not buffer
    assert len(module.buffer) == 44


# --- who acts ---------------------------------------------------------------------------------


@pytest.fixture
def actions(monkeypatch):
    """All actions that are written, in order."""
    seen, act = [], ReplayBuffer.act

    def acting(self, action, *args, **kwargs):
        seen.append(action.clone())
        return act(self, action, *args, **kwargs)

    monkeypatch.setattr(ReplayBuffer, "act", acting)
    return seen


GREEDY = partial(DQN, exploration=None)
LONG = {
    "buffer_frames": 3000,
    "warmup_frames": 2000,
    "frames_per_epoch": 200,
    "collect_frames": 200,
    "total_frames": 2200,
}


def test_warm_up_is_uniform_and_then_the_policy_acts(actions):
    train(GREEDY, num_envs=4, env="Acrobot-v1", **LONG)
    flat = torch.cat(actions)
    counts = torch.bincount(flat[:2000], minlength=3).numpy()
    assert chisquare(counts).pvalue > 1e-3
    greedy = torch.bincount(flat[2000:], minlength=3).numpy()
    assert greedy.sum() == 200
    assert chisquare(greedy).pvalue < 1e-6


def test_warm_up_of_continuous_actions_is_uniform(actions):
    train(SAC, network=None, num_envs=4, env="Pendulum-v1", **LONG)
    warm = torch.cat(actions)[:2000, 0].numpy()
    assert kstest(warm, "uniform", (-2, 4)).pvalue > 1e-3


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_action_masks_are_kept_to(actions, vectorization):
    """The probe raises if they are not."""
    env = {"env": "Probe-v0", "env_kwargs": {"task": "policy", "mask": True}}
    _, module, _ = train(**env, vectorization=vectorization)
    assert set(torch.cat(actions).tolist()) == {0, 1}
    batch = module.buffer.read(module.buffer.draw(50), 0.9)
    taken = batch["action_mask"].gather(1, batch["action"][:, None])
    assert taken.all()
    steps = batch["discount"] > 0
    assert (batch["action_mask"] != batch["next_action_mask"])[steps].all()


def test_exploration_follows_progress(monkeypatch):
    seen = []
    choose = EpsilonGreedy.choose

    def exploring(self, values, logits, progress, mask=None):
        seen.append((progress, self.strength(progress)))
        return choose(self, values, logits, progress, mask)

    monkeypatch.setattr(EpsilonGreedy, "choose", exploring)
    agent = partial(DQN, exploration=partial(EpsilonGreedy, 1.0, 0.2, 0.5))
    train(agent)
    # A step of two frames each; the clock stands where the collection before this one began.
    before = [0.0, *[(12 + 4 * i) / 44 for i in range(7)]]
    expected = [p for p in before for _ in range(2)]
    assert [p for p, _ in seen] == pytest.approx(expected)
    strengths = [max(1.0 - 0.8 * p / 0.5, 0.2) for p in expected]
    assert [e for _, e in seen] == pytest.approx(strengths)


# --- what a batch is --------------------------------------------------------------------------


def batches(callbacks=(), **data):
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        make = ReplayDataModule.next_batch

        def sampling(self):
            batch = make(self)
            seen.append(SimpleNamespace(batch=batch.clone(), frames=self.frames))
            return batch

        patch.setattr(ReplayDataModule, "next_batch", sampling)
        _, module, agent = train(callbacks=callbacks, **data)
    return seen, module, agent


def test_batch_size():
    seen, _, _ = batches(batch_size=5)
    assert {tuple(s.batch.batch_size) for s in seen} == {(5,)}


def test_n_step():
    """Counter-v0 pays 1, 2, 3 and terminates."""
    seen, _, agent = batches(n_step=3)
    rows = torch.cat([torch.stack([s.batch["reward"], s.batch["obs"][:, 0]]) for s in seen], 1)
    full = {0: 1 + 0.99 * 2 + 0.99**2 * 3, 1: 2 + 0.99 * 3, 2: 3.0}
    assert agent.gamma == 0.99
    shorter = {0: {1.0, 1 + 0.99 * 2}, 1: {2.0}, 2: set()}  # at the newest row
    for reward, obs in rows.T.tolist():
        allowed = {full[int(obs)], *shorter[int(obs)]}
        assert any(reward == pytest.approx(a) for a in allowed)
    plain, _, _ = batches()
    assert {s.item() for s in torch.cat([p.batch["reward"] for p in plain])} == {1.0, 2.0, 3.0}


def test_beta_follows_progress(monkeypatch):
    seen, draw = [], ReplayBuffer.draw_by_priority

    def drawing(self, count, beta):
        seen.append(beta)
        return draw(self, count, beta)

    monkeypatch.setattr(ReplayBuffer, "draw_by_priority", drawing)
    train(prioritized=True, priority_beta=0.6, gradient_steps=1)
    progress = [(12 + 4 * (i + 1)) / 44 for i in range(8)]
    assert seen == pytest.approx([0.6 + 0.4 * p for p in progress])


def test_priorities_are_the_errors_to_the_power_of_alpha(monkeypatch):
    given, errors = [], []
    loss, set_ = DQN.loss, ReplayBuffer.set_priorities

    def losing(self, batch):
        found = loss(self, batch)
        found.row_errors = -found.row_errors.abs()  # δ may have any sign
        errors.append(found.row_errors.abs())
        return found

    def setting(self, index, priority):
        given.append((index, priority))
        return set_(self, index, priority)

    monkeypatch.setattr(DQN, "loss", losing)
    monkeypatch.setattr(ReplayBuffer, "set_priorities", setting)
    seen, module, _ = batches(prioritized=True, priority_alpha=0.5, priority_eps=0.25)
    assert len(given) == len(errors) == len(seen) == 24  # the last ones too
    for error, (index, priority), drawn in zip(errors, given, seen, strict=True):
        torch.testing.assert_close(priority, (error + 0.25).sqrt())
        assert len(index) == len(error) == 8
        assert "weight" in drawn.batch
    index, priority = given[-1]
    last = dict(zip(index.tolist(), priority.tolist(), strict=True))
    leaves = module.buffer.priorities.tree.leaves
    assert [leaves[i] for i in last] == pytest.approx(list(last.values()))
    assert batches()[1].buffer.priorities is None


def test_weights_change_the_loss(monkeypatch):
    seen, _, _ = batches(prioritized=True, gradient_steps=1, priority_beta=1.0)
    weights = torch.cat([s.batch["weight"] for s in seen])
    assert weights.max() == 1
    assert weights.min() < 0.9
    flat, _, _ = batches(prioritized=True, gradient_steps=1, priority_alpha=0.0)
    assert (torch.cat([s.batch["weight"] for s in flat]) == 1).all()


def test_hindsight_relabels_batches():
    data = {"env": "BitFlip-v0", "env_kwargs": {"bits": 12}, "n_step": 1, "warmup_frames": 40}
    agent = partial(DQN, encoder=DictEncoder)
    shares = []
    for goals in (0, 4):
        seen, module, _ = batches(agent=agent, her_goals=goals, total_frames=104, **data)
        assert (module.hindsight is not None) == (goals > 0)
        hit = torch.cat([(s.batch["reward"] == 0).float() for s in seen])
        shares.append(hit.mean().item())
    assert shares[0] < 0.02 < 0.08 < shares[1]
    assert module.hindsight.share == 0.8
    _, module, _ = batches(agent=agent, her_goals=4, her_strategy="final", **data)
    assert module.hindsight.strategy == "final"


def test_the_last_observation_statistics_are_used_on_old_rows():
    agent = partial(DQN, encoder=partial(MLPEncoder, normalize=True))
    seen, _, made = batches(agent=agent, env_kwargs={"length": 1000})
    count = made.encoder.norm.running.count
    assert count == 44 + 2  # every observation once, with the reset's
    assert torch.cat([s.batch["obs"] for s in seen]).max() > 5  # raw


def test_progress_in_the_log():
    class Log(Callback):
        def on_train_batch_end(self, trainer, *args):
            self.last = dict(trainer.callback_metrics)

    log = Log()
    train(callbacks=[log], trainer={"log_every_n_steps": 1})
    assert log.last["replay/frames"] == log.last["time/frames"] == 44
    assert log.last["loss/q"].isfinite()


def test_a_run_without_anything_unusual_says_nothing():
    module = ReplayDataModule(**SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", "GPU available but not used")
        make_trainer(gradient_clip_val=None).fit(DQN(module.spec, network=TINY), module)
