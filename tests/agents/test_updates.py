"""Many updates in one step of the trainer are the updates that each in its own step would be."""

import math
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    Timer,
    TQDMProgressBar,
)
from lightning.pytorch.loggers.logger import DummyLogger
from training import fit, make_trainer

from rl_lightning import (
    A2C,
    DQN,
    PPO,
    ActorCritic,
    Loss,
    QNetwork,
    QTable,
    ReplayDataModule,
    RolloutDataModule,
)
from rl_lightning.core.errors import ConfigurationError

PLAIN = partial(PPO, network=partial(ActorCritic, hidden=(8,)))
DEEP = partial(DQN, network=partial(QNetwork, hidden=(8,)))


class Single(Callback):
    """Needs each update by itself, and does nothing."""

    def __init__(self):
        self.steps = 0

    def on_train_batch_end(self, *args):
        self.steps += 1


class Runs(Single):
    takes_runs = True


class Points(DummyLogger):
    """Keeps what is written."""

    def __init__(self):
        super().__init__()
        self.points = []

    def log_metrics(self, metrics, step=None):
        self.points.append((step, dict(metrics)))

    def of(self, name):
        return [(step, metrics[name]) for step, metrics in self.points if name in metrics]


def rollouts(**kwargs):
    given = {"num_envs": 2, "rollout_steps": 8, "minibatch_size": 4, "passes": 3, "seed": 0}
    return RolloutDataModule("CartPole-v1", **{**given, "total_frames": 64, **kwargs})


def replay(**kwargs):
    given = {"batch_size": 16, "warmup_frames": 20, "frames_per_epoch": 20, "seed": 0}
    return ReplayDataModule("CartPole-v1", **{**given, "total_frames": 100, **kwargs})


KINDS = {"ppo": (PLAIN, rollouts, 48), "dqn": (DEEP, replay, 80)}


def train(name, *callbacks, agent=None, data=None, **trainer):
    torch.manual_seed(0)
    make, source, _ = KINDS[name]
    module = source(**(data or {}))
    return fit(make(module.spec, **(agent or {})), module, callbacks=list(callbacks), **trainer)


def equal(a, b):
    return all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


@pytest.mark.parametrize("name", KINDS)
def test_runs_and_single_updates_learn_the_same_and_count_the_same(name):
    listener, other = Single(), Runs()
    runs, single = train(name, other), train(name, listener)
    assert equal(runs, single)
    assert runs.updates == single.updates == KINDS[name][2] == listener.steps
    assert runs.trainer.global_step == single.trainer.global_step == listener.steps
    assert other.steps == 4  # rollouts, or epochs of 20 updates
    assert not runs.automatic_optimization
    assert single.automatic_optimization


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("every", [1, 3, 12, 50])
def test_logging_counts_updates(name, every):
    written = []
    for callback in (Runs(), Single()):
        logger = Points()
        train(name, callback, logger=logger, log_every_n_steps=every)
        written.append([(step, m) for step, m in logger.points if "optim/lr" in m])
    assert len(written[0]) == KINDS[name][2] // every
    assert [step for step, _ in written[0]] == [step for step, _ in written[1]]
    for (_, ours), (_, theirs) in zip(*written, strict=True):
        names = {key for key in ours if not key.startswith("time/")}
        assert names == {key for key in theirs if not key.startswith("time/")}
        for key in names:
            assert ours[key] == pytest.approx(theirs[key], abs=1e-6), key


@pytest.mark.parametrize("name", KINDS)
def test_a_point_is_the_mean_since_the_last_one(name):
    every, loss = {}, {"ppo": "loss/policy", "dqn": "loss/q"}[name]
    for n in (1, 6):
        logger = Points()
        train(name, logger=logger, log_every_n_steps=n)
        every[n] = [value for _, value in logger.of(loss)]
    groups = [every[1][i : i + 6] for i in range(0, len(every[6]) * 6, 6)]
    assert [sum(g) / 6 for g in groups] == pytest.approx(every[6], abs=1e-6)
    assert len(set(every[1])) > 6


def test_never_logged_is_never_asked_for():
    class Counts(PPO):
        asked = 0

        def loss(self, batch):
            loss = super().loss(batch)

            def metrics():
                self.asked += 1
                return {}

            return Loss(loss.value, metrics)

    module = rollouts()
    agent = fit(Counts(module.spec), module, log_every_n_steps=0)
    assert agent.asked == 0
    module = rollouts()
    assert fit(Counts(module.spec), module, log_every_n_steps=7).asked == 48


def test_many_notes_are_summed_up():
    module = rollouts()
    agent = fit(PLAIN(module.spec), module, log_every_n_steps=10**9)
    for value in range(1000):
        agent.note(Loss(torch.tensor(0.0), {"a": torch.tensor(float(value)), "b": 1.0}), False)
        assert len(agent._noted) < 256
    agent._sums.pop("loss/policy", None)
    assert agent.mean_metrics()["a"] == pytest.approx(499.5)


# --- what needs single updates -------------------------------------------------------------------


class OwnStep(PPO):
    def training_step(self, batch, batch_idx):
        assert batch.batch_size == (4,)
        return super().training_step(batch, batch_idx)


class OwnZero(PPO):
    def on_before_zero_grad(self, optimizer):
        pass


class OwnClipping(PPO):
    clipped = 0

    def configure_gradient_clipping(self, *args, **kwargs):
        self.clipped += 1


class Bar(TQDMProgressBar):
    pass


class BarThatLooks(TQDMProgressBar):
    def on_train_batch_end(self, *args, **kwargs):
        super().on_train_batch_end(*args, **kwargs)


def test_what_needs_single_updates(tmp_path):
    files = {"dirpath": tmp_path, "filename": "x"}
    for single, callbacks, trainer in (
        (False, [], {}),
        (False, [Runs(), Timer(), ModelSummary(), Bar(refresh_rate=0)], {}),
        (False, [ModelCheckpoint(**files), LearningRateMonitor("epoch")], {"logger": Points()}),
        (False, [], {"precision": "bf16-mixed"}),
        (True, [LambdaCallback(on_train_batch_start=lambda *args: None)], {}),
        (True, [BarThatLooks(refresh_rate=0)], {}),
        (True, [ModelCheckpoint(**files, every_n_train_steps=5)], {}),
        (True, [LearningRateMonitor("step")], {"logger": Points()}),
        (True, [EMAWeightAveraging()], {}),
        (True, [GradientAccumulationScheduler({0: 2})], {}),
        (True, [], {"profiler": "simple"}),
        (True, [], {"max_steps": 10}),
        (True, [], {"accumulate_grad_batches": 2}),
        (True, [], {"val_check_interval": 4}),
        (True, [], {"fast_dev_run": 3}),
    ):
        module = rollouts()
        bar = any(isinstance(callback, TQDMProgressBar) for callback in callbacks)
        saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
        more = {"enable_checkpointing": saves, "enable_progress_bar": bar, **trainer}
        agent = fit(PPO(module.spec), module, callbacks=callbacks, **more)
        assert module.runs is not single, (callbacks, trainer)
        assert agent.automatic_optimization is single
    for make in (OwnStep, OwnZero, OwnClipping):
        module = rollouts()
        agent = fit(make(module.spec), module)
        assert not module.runs
    assert agent.clipped == 48


def test_a_closure_is_for_the_optimizer_to_call():
    module = rollouts(minibatch_size=16, passes=1)
    fit(PPO(module.spec, optimizer=partial(torch.optim.LBFGS, max_iter=2)), module)
    assert not module.runs


def test_every_n_train_steps_and_ema_mean_updates(tmp_path):
    saver = ModelCheckpoint(
        dirpath=tmp_path, filename="{step}", every_n_train_steps=7, save_top_k=-1,
        auto_insert_metric_name=False,
    )  # fmt: skip
    ema = EMAWeightAveraging(decay=0.5)
    agent = train("dqn", saver, ema, enable_checkpointing=True)
    steps = sorted(
        torch.load(path, weights_only=True)["global_step"] for path in tmp_path.glob("*.ckpt")
    )
    assert agent.updates == 80
    assert set(steps) <= set(range(7, 81, 7))
    assert len(steps) >= 4  # named by frames: of one frame the last
    assert ema._average_model.n_averaged == 80


def test_the_rate_is_monitored_at_updates():
    logger = Points()
    monitor = LearningRateMonitor("step")
    train("ppo", monitor, logger=logger, log_every_n_steps=6)
    assert len(logger.of("lr-Adam")) == 8


# --- clipping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_the_trainers_clipping_is_every_agents(name, algorithm):
    clip = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm}
    runs, single = train(name, **clip), train(name, Single(), **clip)
    assert equal(runs, single)
    assert not equal(runs, train(name, gradient_clip_val=None))
    other = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": {"norm": "value"}.get(algorithm)}
    assert not equal(runs, train(name, **other))
    assert equal(train(name, gradient_clip_val=0.0), train(name, gradient_clip_val=None))


@pytest.mark.parametrize("listens", [False, True])
def test_max_grad_norm_is_another_name(listens):
    callbacks = [Single()] if listens else []
    by_model = train("dqn", *callbacks, agent={"max_grad_norm": 0.01}, gradient_clip_val=None)
    by_trainer = train("dqn", *callbacks, gradient_clip_val=0.01)
    both = train("dqn", *callbacks, agent={"max_grad_norm": 0.01}, gradient_clip_val=0.01)
    assert equal(by_model, by_trainer)
    assert equal(by_model, both)


def test_two_names_with_different_numbers_are_one_too_many():
    with pytest.raises(ConfigurationError, match=r"gradient_clip_val: 0\.5 .*max_grad_norm: 0\.1"):
        train("dqn", agent={"max_grad_norm": 0.1}, gradient_clip_val=0.5)
    with pytest.raises(ConfigurationError, match=r"0\.5 \(by value\).*max_grad_norm: 0\.5"):
        train(
            "dqn", agent={"max_grad_norm": 0.5}, gradient_clip_val=0.5,
            gradient_clip_algorithm="value",
        )  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_batches_are_accumulated(name):
    """Two minibatches of a half are one of the whole, where the loss is a mean over rows."""
    agent = train(name, accumulate_grad_batches=2, gradient_clip_val=None)
    assert agent.updates == agent.trainer.global_step == KINDS[name][2] // 2
    assert not equal(agent, train(name, gradient_clip_val=None))


def test_accumulated_halves_are_the_whole():
    ends = []
    for size, accumulate in ((16, 1), (8, 2)):
        torch.manual_seed(0)
        data = {"minibatch_size": size, "passes": 1, "total_frames": 16}
        agent = {"normalize_advantage": False, "optimizer": partial(torch.optim.SGD, lr=0.1)}
        ends.append(
            train(
                "ppo", agent=agent, data=data, accumulate_grad_batches=accumulate,
                gradient_clip_val=None,
            )
        )  # fmt: skip
    for a, b in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


# --- stopping, resuming, errors -------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 5, 12, 16])
def test_a_kl_stop_ends_the_run(every):
    written, ends = [], []
    for callback in (Runs(), Single()):
        logger = Points()
        ends.append(
            train(
                "ppo", callback, agent={"target_kl": 1e-7}, logger=logger, log_every_n_steps=every
            )
        )  # fmt: skip
        written.append(logger.of("policy/kl"))
    assert equal(*ends)
    assert 4 <= ends[0].updates == ends[1].updates < 48
    assert 0 < len(written[0]) <= len(written[1])  # which writes some of them twice
    assert {step for step, _ in written[0]} == {step for step, _ in written[1]}


@pytest.mark.parametrize("callback", [Runs, Single])
def test_a_stop_loses_no_metrics(callback):
    """Two updates of each rollout are made of twelve, and the first point is in the second."""
    seen = []

    class Stops(PPO):
        def loss(self, batch):
            loss = super().loss(batch)
            seen.append(loss.value.item())
            stop = torch.tensor(1.0 if len(seen) % 2 == 0 else -1.0)
            return Loss(loss.value, {"loss/all": loss.value}, stop=stop)

    module, logger = rollouts(), Points()
    fit(Stops(module.spec), module, callbacks=[callback()], logger=logger, log_every_n_steps=20)
    assert len(seen) == 8
    values = [value for _, value in logger.of("loss/all")]
    assert values[0] == pytest.approx(sum(seen[:4]) / 4)
    assert len(values) == 2


class SavesOnce(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, agent):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("name", KINDS)
def test_a_run_goes_on_with_updates_of_the_other_kind(name, tmp_path):
    whole = train(name)
    for first, second in ((Runs(), Single()), (Single(), Runs())):
        path = tmp_path / f"{type(first).__name__}.ckpt"
        train(name, first, SavesOnce(path))
        assert torch.load(path, weights_only=True)["global_step"] == KINDS[name][2] // 2
        again = train(name, second, ckpt_path=str(path))
        assert equal(again, whole)
        assert again.trainer.global_step == whole.trainer.global_step == KINDS[name][2]
        assert again.updates == KINDS[name][2]


def test_a_second_fit_may_clip_too():
    module = rollouts()
    agent = PLAIN(module.spec)
    for _ in range(2):
        make_trainer(gradient_clip_val=0.5).fit(agent, module)
        assert not agent.automatic_optimization


def test_a_table_takes_runs_and_single_steps():
    for callback in (Runs(), Single()):
        torch.manual_seed(0)
        data = RolloutDataModule(
            "FrozenLake-v1", num_envs=1, rollout_steps=4, total_frames=24, rollouts_per_epoch=3
        )
        agent = QTable(data.spec)
        fit(agent, data, gradient_clip_val=None, callbacks=[callback])
        assert agent.trainer.global_step == agent.updates == 6
        assert callback.steps == 6  # one update a rollout either way


def test_nan_in_the_middle_of_a_run_is_told():
    class Breaks(A2C):
        def loss(self, batch):
            loss = super().loss(batch)
            return Loss(loss.value * (math.nan if self.updates == 3 else 1.0))

    module = rollouts(minibatch_size=None, passes=1)
    with pytest.raises(Exception, match="the loss is nan"):
        fit(Breaks(module.spec), module)


class Fickle(PPO):
    """Its metric is now a tensor, now a number, and of other shapes."""

    kinds = (torch.tensor(1.0), 0.0, torch.tensor([2.0]), 3)

    def loss(self, batch):
        return Loss(super().loss(batch).value, {"x": self.kinds[self.updates % 4]})


def test_a_metric_may_change_its_kind():
    logger = Points()
    data = rollouts()
    fit(Fickle(data.spec), data, logger=logger, log_every_n_steps=4)
    assert [value for _, value in logger.of("x")] == [1.5] * 12


@pytest.mark.parametrize("every", [1, 4])
def test_a_metric_of_many_elements_is_refused_by_name(every):
    class Many(PPO):
        def loss(self, batch):
            return Loss(super().loss(batch).value, {"x": torch.ones(2)})

    data = rollouts()
    with pytest.raises(ConfigurationError, match="the metric 'x' of a loss has 2 elements"):
        fit(Many(data.spec), data, log_every_n_steps=every)
