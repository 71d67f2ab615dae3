"""The contract with Lightning: all insides that `rl_lightning.trainer` uses mean what they did."""

import re
from importlib.metadata import version
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from rl_lightning import trainer as insides

ROOT = Path(__file__).parents[1]


class Model(L.LightningModule):
    def __init__(self, manual=False):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.automatic_optimization = not manual
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((insides.is_logged(self.trainer), insides.finished_epochs(self.trainer)))
        loss = self.layer(batch).mean()
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss.backward()
        insides.take_step(optimizer, optimizer.optimizer.step)
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(model, epochs=2, **arguments):
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        log_every_n_steps=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    trainer.fit(model, torch.utils.data.DataLoader(torch.ones(4, 1)))
    return trainer


def test_the_version_is_bounded():
    text = (ROOT / "pyproject.toml").read_text()
    low, high = re.search(r'"lightning>=([\d.]+),<([\d.]+)"', text).groups()
    parts = [tuple(map(int, v.split(".")[:2])) for v in (low, version("lightning"), high)]
    assert parts[0] <= parts[1] < parts[2]


def test_the_step_that_is_logged_and_the_epochs_that_are_over():
    model = Model()
    trainer = fit(model)
    assert [logged for logged, _ in model.seen] == [(i + 1) % 3 == 0 for i in range(8)]
    assert [epoch for _, epoch in model.seen] == [0] * 4 + [1] * 4
    assert insides.finished_epochs(trainer) == 2


@pytest.mark.parametrize("again", [True, False])
def test_what_is_logged_again_is_logged(again):
    class Logs(Model):
        def training_step(self, batch, batch_idx):
            told = {"a": torch.tensor(float(self.global_step)), "b": 2 * batch_idx}
            if self.global_step > 5:
                told["late"] = torch.tensor([3.0])
            (insides.log_again if again else type(self).log_dict)(self, told)
            results = self.trainer._results
            seen = {key: results[f"training_step.{key}"].value for key in told}
            self.seen.append({key: (float(v), v.dtype, v.shape) for key, v in seen.items()})
            return super().training_step(batch, batch_idx)

    model = Logs()
    trainer = fit(model)
    one, other = [s for s in model.seen if isinstance(s, dict)], {"a": 7.0, "b": 6.0, "late": 3.0}
    assert [step["a"][0] for step in one] == list(range(8))
    assert {key: float(v) for key, v in trainer.callback_metrics.items()} == other
    assert {value[1:] for step in one for value in step.values()} == {(torch.float32, ())}


def test_what_is_no_scalar_is_refused_again():
    class Logs(Model):
        def training_step(self, batch, batch_idx):
            insides.log_again(self, {"a": torch.ones(1 + batch_idx)})
            return super().training_step(batch, batch_idx)

    with pytest.raises(ValueError, match="single element"):
        fit(Logs())


def test_where_training_ends_can_be_changed_while_it_runs():
    class Ends(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            assert insides.max_epochs(trainer) in (9, 3)
            insides.set_max_epochs(trainer, 3)

    model = Model()
    fit(model, 9, callbacks=[Ends()])
    assert len(model.seen) == 12


def test_a_step_is_counted_and_taken():
    model = Model(manual=True)
    before = model.layer.weight.item()
    trainer = fit(model)
    assert trainer.global_step == 8
    assert model.layer.weight.item() == pytest.approx(before - 8 * 0.1)
    insides.count_update(trainer)
    assert trainer.global_step == 9


def test_who_listens_to_an_update():
    class Listens(Callback):
        def on_after_backward(self, trainer, pl_module):
            pass

    class Own(Model):
        def on_before_optimizer_step(self, optimizer):
            pass

    for model, callbacks, plain in (
        (Model(), [], True),
        (Model(), [Listens()], False),
        (Own(), [], False),
    ):
        trainer = fit(model, 1, callbacks=callbacks)
        assert insides.is_plain(trainer, model, Model) == plain
    trainer = fit(Model(), 1, precision="bf16-mixed")
    assert not insides.is_plain(trainer, Model(), Model)


def test_hyper_parameters_are_those_of_checkpoints():
    model = Model()
    insides.set_hyperparameters(model, {"a": 1})
    assert dict(model.hparams) == dict(model.hparams_initial) == {"a": 1}
    assert not insides.built_by_command_line()
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        model.load_from_checkpoint("x")


def test_attributes_of_a_run_are_those_there_are():
    model = Model()
    assert {name: getattr(model, name) for name in insides.NO_RUN} == insides.NO_RUN


def test_plugins_within_plugins():
    inner, other = TorchCheckpointIO(), TorchCheckpointIO()
    outer = AsyncCheckpointIO(inner)
    assert list(insides.wrapped_ios(outer)) == [outer]
    assert insides.written_by(outer) is inner
    insides.write_by(outer, other)
    assert outer.checkpoint_io is other
    assert list(insides.wrapped_ios(inner)) == []


def test_no_private_name_of_lightning_is_used_elsewhere():
    private = re.compile(
        r"fit_loop|epoch_loop|_checkpoint_io\b|_given_hyper|_set_hparams|_hparams_initial"
        r"|_on_(before|after)_step|from lightning[\w.]* import .*\b_|import lightning.*\._"
    )
    for path in (ROOT / "rl_lightning").rglob("*.py"):
        if path.name != "trainer.py":
            found = private.search(path.read_text())
            assert not found, f"{path.relative_to(ROOT)}: {found}"
