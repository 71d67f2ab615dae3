"""The command line: `rl-lightning fit | validate | test | predict | export | compress`."""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import yaml
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from rl_lightning.agents import Agent
from rl_lightning.callbacks import FrameProgressBar, GracefulStop, RunFolder, TextPanel
from rl_lightning.callbacks.run_folder import find_checkpoint
from rl_lightning.cli.compress import compress
from rl_lightning.cli.config_file import refuse_repeated_keys
from rl_lightning.cli.explain import root_message
from rl_lightning.cli.export import export
from rl_lightning.cli.failures import explain_failure
from rl_lightning.cli.parser import (
    MONITORED,
    Parser,
    check_devices,
    check_parsed,
    fail,
    join_negative_numbers,
    use_own_monitor,
)
from rl_lightning.cli.stored_config import lone_checkpoint, stored_configuration, take_trust
from rl_lightning.core.errors import ConfigurationError, nearest
from rl_lightning.core.ranks import gather
from rl_lightning.core.stopping import ended_by_signals
from rl_lightning.data import RLDataModule
from rl_lightning.data.prompts.lines import as_lines, count_lines
from rl_lightning.data.recordings.dataset import read_dataset

# Lightning remarks that are right in general and wrong here.
_NOISE = (
    "train_dataloader yielded None",  # how a KL stop skips minibatches
    "does not have many workers",  # collecting in workers would act with stale weights
    "exists and is not empty",
    "smaller than the logging interval",
    "could not find the monitored key",  # before the first validation
    "module.* in eval mode",  # a language model is kept in eval mode on purpose
    "args parameter is intended",
    "LeafSpec",
)


class _SaveConfig(SaveConfigCallback):
    """Keeps the configuration beside the logs of a training run, and nowhere else."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit" and trainer.loggers:
            super().setup(trainer, pl_module, stage)


class RLCLI(LightningCLI):
    """LightningCLI for agents and their data: `data.spec` reaches the agent by itself."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.spec", "model.init_args.spec", apply_on="instantiate")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.dirpath": "checkpoints",
                "checkpoint.filename": "best",
                "checkpoint.monitor": MONITORED[0],
                "checkpoint.mode": MONITORED[1],
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.enable_version_counter": False,
                "checkpoint.save_on_train_epoch_end": True,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        check_parsed(self.config[self.config.subcommand])
        use_own_monitor(self.config[self.config.subcommand])

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, OSError, ImportError, MisconfigurationException) as error:
            # Constructors check their arguments and say what is wrong.
            raise ConfigurationError(root_message(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        checkpoint = self._get(self.config_init, "checkpoint")
        if (checkpoint.filename or "").casefold() == "last":
            raise ConfigurationError(
                f"checkpoint.filename: {checkpoint.filename} is the name of the last epoch's file; "
                "choose another for the best one's, e.g. best"
            )
        # Lightning's own `save_last` waits for a better best; this one does not.
        last = ModelCheckpoint(
            dirpath=checkpoint.dirpath,
            filename="last",
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        self.stopper = GracefulStop()
        wanted = self._get(self.config_init, "trainer")
        callbacks = [self.stopper, TextPanel()]
        own = wanted.callbacks if isinstance(wanted.callbacks, list) else [wanted.callbacks]
        if wanted.enable_progress_bar is not False and not _any(own, ProgressBar):
            callbacks.append(FrameProgressBar())
        if wanted.enable_checkpointing is not False:
            goes_on_from = self._get(self.config, "ckpt_path")
            callbacks += [last, RunFolder([checkpoint, last], self._dump(), goes_on_from)]
        else:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": callbacks}
        data: Any = self.datamodule
        if wanted.log_every_n_steps is None and data.logs_every is not None:
            kwargs["log_every_n_steps"] = data.logs_every
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except TypeError as error:
            raise ConfigurationError(f"trainer: {error}") from error
        check_devices(trainer, wanted.precision)
        return trainer

    def before_validate(self) -> None:
        self._say_untrained()

    def before_test(self) -> None:
        self._say_untrained()

    def before_predict(self) -> None:
        self._say_untrained()

    def _say_untrained(self) -> None:
        if self._get(self.config, "ckpt_path") is None and self.trainer.is_global_zero:
            print("no --ckpt_path: the model as it begins", file=sys.stderr)

    def before_fit(self) -> None:
        data: Any = self.datamodule
        data.check(self.model)  # first: what Lightning says of a wrong pair is about something else

    def _dump(self) -> str:
        """This command's configuration, all values written out."""
        name = self.config.subcommand
        return self._parser(name).dump(self.config[name], skip_none=False)

    def _parse_ckpt_path(self) -> None:
        """The configuration decides what is built; a checkpoint only fills it."""
        config = self.config[self.config.subcommand]
        path = config.get("ckpt_path")
        if path in (None, "hpc"):
            return
        if path in ("last", "best"):
            saver, fit = config.checkpoint, self.config.subcommand == "fit"
            now = yaml.safe_load(self._dump())
            found = find_checkpoint(path, saver.dirpath, saver.filename, now, fit)
            config.ckpt_path = path = None if found is None else str(found)
            if path is None:
                return
        if not Path(path).is_file():
            raise ConfigurationError(f"ckpt_path: there is no file {path}")
        if not is_zipfile(path):
            raise ConfigurationError(f"ckpt_path: {path} is no checkpoint")

    def after_fit(self) -> None:
        data: Any = self.datamodule
        if self.trainer.is_global_zero:
            unit = f"{data.unit}s"
            done = f"{data.frames:,} of {data.total_frames:,} {unit}"
            print(f"trained {done} at {data.fps():,.0f} {unit}/s")
            for callback in self.trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint) and callback.best_model_path:
                    print(_checkpoint_line(callback))
                elif isinstance(callback, ModelCheckpoint) and data.frames:
                    print(_missing_line(callback, self.trainer.callback_metrics))
        if self.stopper.received is not None:
            if self.trainer.is_global_zero:
                print("stopped early; the same command with --ckpt_path last goes on")
            sys.exit(128 + self.stopper.received)

    def predict(self, **kwargs: Any) -> None:
        """Play episodes, or complete prompts, and write one JSON line each beside the logs."""
        data: Any = self.datamodule
        found: Any = self.trainer.predict(**kwargs) or []
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        batches = [one if isinstance(one, list) else [one] for one in found]
        lines = [line for share in gather(batches) for batch in share for line in batch]
        if not self.trainer.is_global_zero:
            return
        path, holds = folder / data.prediction_file, ""
        if data.records_lines and data.record is not None:  # written already, batch by batch
            path = Path(data.record).expanduser()
            holds = f", which holds {count_lines(path)}"
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(as_lines(lines))
        worth = "reward" if lines and "reward" in lines[0] else "return"
        mean = sum(line[worth] for line in lines) / max(len(lines), 1)
        kind = Path(data.prediction_file).stem
        print(f"{len(lines)} {kind}, mean {worth} {mean:.4g}: {_short(path)}{holds}")
        if data.record is not None and not data.records_lines:
            total = read_dataset(data.record).total_episodes
            print(f"recorded in {_short(data.record)}, which holds {total} episodes")


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    A wrong configuration ends in one sentence and status 2, a run that fails in one and status 1, a
    signal in one and status 128 + its number.
    `validate`, `test` and `predict` need no configuration where the checkpoint holds one; classes
    outside this library are then imported only from packages named by `--trust`.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # `${seed_everything}` means the same in a file whether or not a subcommand stands above it.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    for message in _NOISE:
        warnings.filterwarnings("ignore", f".*{message}.*")
    # Advertisements arrive by the logger.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
    )
    if (sys.argv[1:] if args is None else args)[:1] != ["fit"]:
        # Said of bookkeeping that only training goes on with.
        warnings.filterwarnings("ignore", "The dirpath has changed from")
    refuse_repeated_keys()
    try:
        rest, trusted = take_trust(sys.argv[1:] if args is None else args)
        if rest[:1] == ["export"]:
            export(rest[1:], trusted)
            return
        if rest[:1] == ["compress"]:
            compress(rest[1:], trusted)
            return
        given = join_negative_numbers(rest)
        if trusted or lone_checkpoint(given) is None:
            _find_own_modules()
        with ended_by_signals(), stored_configuration(given, trusted) as arguments:
            _run(arguments)
    except Exception as error:
        found = explain_failure(error)
        if found is None:
            raise
        fail(*found)


def _find_own_modules() -> None:
    """Let modules of the current folder be imported, as `python -m` does, but installed ones first.

    Not for a checkpoint alone: its folder may be its author's, with a module in it whose name some
    package tries to import.
    """
    here = os.getcwd()
    if not {"", here} & set(sys.path):
        sys.path.append(here)


def _run(args: list[str]) -> None:
    RLCLI(
        Agent,
        RLDataModule,
        parser_class=Parser,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=_SaveConfig,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=1,
        trainer_defaults={"max_epochs": -1, "num_sanity_val_steps": 0, "benchmark": False},
        parser_kwargs={
            "parser_mode": "omegaconf+",
            "epilog": "rl-lightning export writes a policy, or a tuned language model, for others "
            "to run, rl-lightning compress a smaller checkpoint: see their --help",
        },
        args=args,
    )


def _any(things: list[Any], kind: type) -> bool:
    return any(isinstance(thing, kind) for thing in things)


def _checkpoint_line(callback: ModelCheckpoint) -> str:
    where = _short(callback.best_model_path)
    if callback.monitor is None:
        return f"last: {where}"
    return f"best {callback.monitor} {float(callback.best_model_score or 0):.4g}: {where}"


def _missing_line(callback: ModelCheckpoint, logged: Any) -> str:
    """Why there is no best checkpoint."""
    if callback.monitor is None or callback.monitor in logged:
        return "no checkpoint was due"
    kind = callback.monitor.partition("/")[0]
    if kind == "val" and not any(name.startswith("val/") for name in logged):
        return "no best checkpoint: no validation was due (trainer.check_val_every_n_epoch)"
    names = nearest(callback.monitor, (name for name in logged if name != "step"))
    there = f"; there is {', '.join(names[:3])}" if names else ""
    return f"no best checkpoint: {callback.monitor} was never logged{there}"


def _short(path: str | Path) -> str:
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
