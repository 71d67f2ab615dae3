"""Where a run's checkpoints go, so that none takes another's place, and which run to go on from.

The first run writes into `checkpoint.dirpath` itself. A run that does not go on from what lies
there gets `<dirpath>/version_N`, N the number of its logs (or the next that is free). Beside its
checkpoints lies its configuration, by which `--ckpt_path last` and `best` find it again.
"""

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.names import present_paths
from rl_lightning.data.resume.checkpoint_files import is_remote, replace_file, saving

RUN_CONFIG = "run_config.yaml"
# What a run may go on with in another way: how long it is, ...
BUDGET = r"data\.init_args\.total_\w+|trainer\.(min|max)_(epochs|steps|time)"
# ... and where it writes, and what it shows, which changes no number.
APPEARANCE = (
    r"ckpt_path|weights_only|verbose|return_predictions|checkpoint\.dirpath|data\.init_args\."
    r"(save_replay|storage|storage_dir)|trainer\.(logger|enable_progress_bar|enable_model_summary|"
    r"log_every_n_steps|default_root_dir|profiler|detect_anomaly|num_sanity_val_steps)"
)
# What is evaluated was trained by the rest.
EVALUATION = r"trainer|checkpoint|data\.init_args\.(val_\w+|record|success_threshold)"


class Run(NamedTuple):
    """A folder with checkpoints, and the configuration beside them, if there is one."""

    folder: Path
    config: Mapping[str, Any] | None


def differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], goes_on: bool
) -> list[tuple[str, Any, Any]]:
    """In what two configurations are those of different runs.

    Args:
        saved: Of a run.
        now: Of this command.
        goes_on: Whether it trains on: then all but the budget must be the same. Otherwise it only
            evaluates, and what was trained must be.

    Returns:
        Key, saved value and today's, of each difference.
    """
    free = f"{BUDGET}|{APPEARANCE}" + ("" if goes_on else f"|{EVALUATION}")
    if now.get("seed_everything") is True:  # any
        free += "|seed_everything"
    free = re.compile(rf"({free})(\..*)?")
    a, b = dict(_flat(saved)), dict(_flat(now))
    keys = [k for k in {**a, **b} if not free.fullmatch(k)]
    return [(k, a.get(k), b.get(k)) for k in keys if k not in a or k not in b or a[k] != b[k]]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", present_paths(value)  # an earlier version's may be others


def find_checkpoint(
    word: str,
    dirpath: str | Path | None,
    filename: str | None,
    config: Mapping[str, Any],
    fit: bool,
) -> Path | None:
    """The checkpoint that `--ckpt_path last` or `best` means: of the newest run that is this one.

    Args:
        word: `last` or `best`.
        dirpath: `checkpoint.dirpath`.
        filename: `checkpoint.filename`.
        config: Of this command.
        fit: Whether it trains on.

    Returns:
        The file; None if there is nothing to go on from yet.

    Raises:
        ConfigurationError: If there is none, or only those of other runs.
    """
    if dirpath is None:
        raise ConfigurationError(f"ckpt_path: {word} needs checkpoint.dirpath, or a file")
    name = "last" if word == "last" else filename
    if name is None or "{" in name:
        raise ConfigurationError(
            f"ckpt_path: {word} needs a checkpoint.filename that does not change, not {name}; give "
            "the file itself"
        )
    dirpath = Path(dirpath).expanduser()
    if is_remote(dirpath):
        return dirpath / f"{name}.ckpt"
    runs = [run for run in runs_in(dirpath) if (run.folder / f"{name}.ckpt").is_file()]
    if not runs:
        found = dirpath / f"{name}.ckpt"
        if word == "last" and fit:
            warnings.warn(f"there is no {found} to go on from: training starts", stacklevel=1)
            return None
        raise ConfigurationError(f"ckpt_path: there is no file {found}")
    same = [r for r in runs if r.config is not None and not differences(r.config, config, fit)]
    if not same and all(run.config is None for run in runs):
        same = runs  # of an earlier version of this library
        warnings.warn(
            f"no {RUN_CONFIG} lies beside the checkpoints in {dirpath}: it is taken on trust that "
            "they are of this configuration",
            stacklevel=1,
        )
    if not same:
        raise ConfigurationError(_only_others(word, dirpath, runs, config, fit))
    found = max(same, key=_age).folder / f"{name}.ckpt"
    _say(f"{'going on from' if fit else 'using'} {found}")
    return found


def _only_others(
    word: str, dirpath: Path, runs: Sequence[Run], config: Mapping[str, Any], fit: bool
) -> str:
    newest = max((run for run in runs if run.config is not None), key=_age)
    assert newest.config is not None
    key, saved, now = differences(newest.config, config, fit)[0]
    key = key.replace(".init_args", "")
    return (
        f"ckpt_path: {word} finds only runs of another configuration in {dirpath}: the newest, in "
        f"{newest.folder}, has {key}: {str(saved)[:80]}, not {str(now)[:80]}; give the file itself "
        "to use one of them" + (", or leave ckpt_path out to begin anew" if fit else "")
    )


@rank_zero_only
def _say(text: str) -> None:
    print(text)


def runs_in(dirpath: Path) -> list[Run]:
    """All runs whose checkpoints lie in a folder, or in one of its versions."""
    if not dirpath.is_dir():
        return []
    folders = [dirpath, *(p for p in dirpath.iterdir() if re.fullmatch(r"version_\d+", p.name))]
    return [Run(folder, _read_config(folder)) for folder in folders if _checkpoints(folder)]


def _read_config(folder: Path) -> Mapping[str, Any] | None:
    try:
        config = yaml.safe_load((folder / RUN_CONFIG).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return config if isinstance(config, Mapping) else None


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [p for p in folder.iterdir() if p.suffix == ".ckpt" and not p.name.startswith(".")]


def _age(run: Run) -> float:
    return max(path.stat().st_mtime for path in _checkpoints(run.folder))


class RunFolder(L.Callback):
    """Gives a run the folder for its checkpoints, and writes its configuration there.

    Args:
        savers: Callbacks that write to one folder.
        config: Of the run, as YAML.
        goes_on_from: The checkpoint it goes on from.
    """

    def __init__(
        self, savers: Sequence[ModelCheckpoint], config: str, goes_on_from: str | None
    ) -> None:
        self.savers = savers
        self.config = config
        self.goes_on_from = None if goes_on_from in (None, "hpc") else Path(goes_on_from)
        self._descriptor: int | None = None

    def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        # Before the savers': Lightning puts those last.
        dirpath: Any = self.savers[0].dirpath
        if dirpath is None and not trainer.loggers:  # with logs, it is in their versions
            dirpath = Path(trainer.default_root_dir) / "checkpoints"
        if stage != "fit" or trainer.fast_dev_run or self._descriptor is not None:
            return
        if dirpath is None or is_remote(dirpath):
            return
        answer: Any = None
        if trainer.is_global_zero:
            try:
                answer = str(self._choose(trainer, Path(dirpath).resolve()))
            except (ValueError, RuntimeError) as error:
                answer = error
        answer = trainer.strategy.broadcast(answer)
        if isinstance(answer, Exception):
            raise answer
        for saver in self.savers:
            saver.dirpath = answer

    def _choose(self, trainer: Any, root: Path) -> Path:
        inside = False
        if self.goes_on_from is not None:
            folder = self.goes_on_from.resolve().parent
            inside = folder.is_relative_to(root)
            own = folder == root or (folder.parent == root and folder.name.startswith("version_"))
            saved = _read_config(folder) if own else None
            now = yaml.safe_load(self.config)
            if own and (saved is None or not differences(saved, now, True)):
                if not self._take(folder, True):
                    raise ConfigurationError(
                        f"ckpt_path: another run is still writing to {folder}; wait for its end, "
                        "or leave ckpt_path out to begin anew"
                    )
                return folder
        # Lightning would remove what it knows of a saver's older files below its folder.
        if not inside and self._take(root, False):
            return root
        version = trainer.logger.version if trainer.logger is not None else None
        number = version if isinstance(version, int) else 1
        while not self._take(root / f"version_{number}", False):
            number += 1
        folder = root / f"version_{number}"
        _say(f"checkpoints go to {folder}: those of other runs stay")
        return folder

    def _take(self, folder: Path, used: bool) -> bool:
        """Make a folder this run's, if no other has it: neither its checkpoints nor its lock."""
        with saving(f"checkpoints in {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
            if _is_locked(descriptor) or (not used and _checkpoints(folder)):
                os.close(descriptor)
                return False
            self._descriptor = descriptor
            replace_file(folder / RUN_CONFIG, self.config.encode())
        return True

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._release()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._release()

    def _release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _is_locked(descriptor: int) -> bool:
    """Whether another run has locked a folder; if not, this one does, where there are locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False
