"""Runs that are killed at random, and disks that fail: nothing is lost and nothing is left behind.

    OMP_NUM_THREADS=1 python -m pytest -s -m storm tests/system/test_storm.py

About twenty minutes; each test prints a row of the table in docs/reliability.md.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import rl_lightning.core.types  # noqa: F401  (lets `weights_only` load an EnvSpec)

pytestmark = [pytest.mark.slow, pytest.mark.storm, pytest.mark.distributed]

KILLS = 15
SHARED_MEMORY = Path("/dev/shm")
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "check_val_every_n_epoch": 3,
}
ROLLOUTS = {
    "class_path": "RolloutDataModule",
    "init_args": {
        "env": "CartPole-v1",
        "num_envs": 4,
        "rollout_steps": 128,
        "minibatch_size": 128,
        "passes": 6,
        "val_episodes": 4,
        "total_frames": 40 * 512,
    },
}
REPLAY = {
    "class_path": "ReplayDataModule",
    "init_args": {
        "env": "CartPole-v1",
        "num_envs": 2,
        "buffer_frames": 4000,
        "warmup_frames": 200,
        "frames_per_epoch": 250,
        "total_frames": 40 * 250 + 200,
        "val_episodes": 4,
    },
}


def changed(data, **init_args):
    return {**data, "init_args": {**data["init_args"], **init_args}}


KINDS = {
    "PPO": ("PPO", ROLLOUTS, {}),
    "DQN, prioritised": ("DQN", changed(REPLAY, prioritized=True, n_step=3), {}),
    "DQN, buffer on disk": ("DQN", changed(REPLAY, storage="disk", storage_dir="buffer"), {}),
    "PPO, environments in processes": (
        "PPO",
        changed(ROLLOUTS, vectorization="async", num_envs=2, val_num_envs=1),
        {},
    ),
    "PPO, two ranks": (
        "PPO",
        changed(ROLLOUTS, total_frames=80 * 512),
        {"strategy": "ddp", "devices": 2},
    ),
    "PPO, temporary files elsewhere": ("PPO", ROLLOUTS, {}),
}


class Run:
    """`rl-lightning fit` in a folder of its own.

    Args:
        place: The folder; configuration, log and checkpoints go there.
        kind: One of `KINDS`.
        temporary: The folder for temporary files.
    """

    def __init__(self, place: Path, kind: str, temporary: Path) -> None:
        place.mkdir(exist_ok=True)
        temporary.mkdir(exist_ok=True)
        agent, data, trainer = KINDS[kind]
        self.place, self.temporary, self.log = place, temporary, place / "log"
        self.checkpoints = place / "checkpoints"
        tree = {
            "model": {"class_path": agent},
            "data": data,
            "trainer": {**QUIET, **trainer, "default_root_dir": str(place)},
            "checkpoint": {"dirpath": str(self.checkpoints)},
        }
        (place / "run.yaml").write_text(yaml.safe_dump(tree))
        self.process: subprocess.Popen | None = None
        self.strays: list[str] = []

    def start(self, *options: str) -> None:
        command = [sys.executable, "-m", "rl_lightning", "fit", "--config", "run.yaml", *options]
        paths = [str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
        env = {
            **os.environ,
            "TMPDIR": str(self.temporary),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        with self.log.open("a") as out:
            self.process = subprocess.Popen(
                command, cwd=self.place, env=env, stdout=out, stderr=out, start_new_session=True
            )

    def finish(self, timeout: float = 300) -> int:
        assert self.process is not None
        try:
            status = self.process.wait(timeout)
            until = time.monotonic() + 10  # a server of processes ends after whom it served
            while (strays := members(self.process.pid)) and time.monotonic() < until:
                time.sleep(0.05)
            self.strays = strays
            return status
        finally:
            self.kill()

    def kill(self) -> None:
        """End the whole group as a machine's failure does."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.ckpt"

    def saved(self) -> float:
        return self.last.stat().st_mtime_ns if self.last.exists() else 0.0

    def wait_for_save(self, timeout: float = 120) -> bool:
        """Wait until the next checkpoint is whole; False if the run ends before."""
        assert self.process is not None
        before, until = self.saved(), time.monotonic() + timeout
        while self.saved() == before:
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < until, self.log.read_text()[-2000:]
            time.sleep(0.002)
        return True

    def wait_for_saving(self) -> None:
        """Wait until something unfinished lies beside the checkpoints."""
        assert self.process is not None
        until = time.monotonic() + 5
        while time.monotonic() < until and self.process.poll() is None:
            if any(self.checkpoints.glob(".*")):
                return

    def result(self) -> dict:
        checkpoint = torch.load(self.last, weights_only=True)
        keys = ("state_dict", "optimizer_states", "frames", "global_step")
        return {key: checkpoint[key] for key in keys}


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def members(group: int) -> list[str]:
    """Living processes of a group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(stat.parent.name)
    return found


def left_over(run: Run) -> list[str]:
    """What should not be there after a run has ended."""
    known = {"best.ckpt", "last.ckpt"}
    named = {p.name for p in run.checkpoints.iterdir()}
    folders = {n for n in named if n.startswith(("best.replay.", "last.replay."))}
    odd = {n for n in named - known - folders if n.startswith(".") or n.endswith(".ckpt")}
    if len(folders) > 2:
        odd |= folders
    buffer = run.place / "buffer"
    odd |= {f"buffer/{p.name}" for p in buffer.iterdir()} if buffer.exists() else set()
    return sorted(odd)


@pytest.fixture
def elsewhere():
    """A folder on another file system than pytest's."""
    place = SHARED_MEMORY / f"storm-{os.getpid()}"
    place.mkdir()
    yield place
    shutil.rmtree(place)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_a_run_ends_as_if_it_never_was(kind, tmp_path, elsewhere):
    other = kind == "PPO, temporary files elsewhere"
    temporary = elsewhere / "tmp" if other else tmp_path / "tmp"
    if other:
        assert elsewhere.stat().st_dev != tmp_path.stat().st_dev
    (tmp_path / "whole" / "buffer").mkdir(parents=True)
    (tmp_path / "storm" / "buffer").mkdir(parents=True)
    shared = set(os.listdir(SHARED_MEMORY))
    whole = Run(tmp_path / "whole", kind, temporary)
    whole.start()
    assert whole.finish() == 0, whole.log.read_text()[-3000:]

    run = Run(tmp_path / "storm", kind, temporary)
    draw = random.Random(1)
    kills = during = lost = 0
    while kills < KILLS:
        before = torch.load(run.last, weights_only=True)["frames"] if run.last.exists() else 0
        run.start(*(("--ckpt_path", "last") if run.last.exists() else ()))
        if not run.wait_for_save():
            assert run.process is not None
            assert run.process.returncode == 0, run.log.read_text()[-3000:]
            break
        if kills % 3 == 2:
            run.wait_for_saving()
        else:
            time.sleep(draw.uniform(0.0, 1.0))
        during += any(run.checkpoints.glob(".*"))
        run.kill()
        kills += 1
        after = torch.load(run.last, weights_only=True)["frames"]  # whole, whenever it was
        lost += after <= before
    run.start("--ckpt_path", "last")
    assert run.finish() == 0, run.log.read_text()[-3000:]
    strays = {
        "files": left_over(run),
        "processes": run.strays,
        "shared memory": sorted(set(os.listdir(SHARED_MEMORY)) - shared),
    }
    equal = same(whole.result(), run.result())
    print(f"\n| {kind} | {kills} | {during} | {'yes' if equal else 'NO'} | {strays} |")
    assert kills >= 12  # the run may be over a little earlier
    assert equal
    assert lost == 0
    assert not any(strays.values())


# --- disks and folders ---------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of so many kB."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(kilobytes, options=""):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k{options}", "tmpfs", place],
            capture_output=True,
        )
        if done.returncode:
            pytest.skip("needs the right to mount a file system")
        return place

    yield mount
    subprocess.run(["umount", place], capture_output=True)


def told(run: Run) -> str:
    text = run.log.read_text()
    assert "Traceback" not in text, text[-3000:]
    last = text.strip().splitlines()[-1]
    assert last.startswith("rl-lightning: error:"), text[-3000:]
    return last


@pytest.mark.parametrize("kind", ["PPO", "DQN, prioritised"])
def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(kind, tmp_path, small_disk):
    disk = small_disk(4000)
    run = Run(tmp_path / "run", kind, tmp_path / "tmp")
    run.checkpoints = disk / "checkpoints"
    run.start("--checkpoint.dirpath", str(run.checkpoints))
    assert run.wait_for_save()
    with contextlib.suppress(OSError), (disk / "other").open("wb") as file:
        while True:
            file.write(bytes(4096))
    status = run.finish()
    sentence = told(run)
    print(f"\n| {kind}, disk full | {status} | {sentence} |")
    assert status not in (0, None)
    assert "last.ckpt" in sentence or "checkpoints" in sentence
    frames = run.result()["frames"]
    (disk / "other").unlink()
    run.start("--checkpoint.dirpath", str(run.checkpoints), "--ckpt_path", "last")
    assert run.finish() == 0, run.log.read_text()[-3000:]
    assert run.result()["frames"] > frames


def test_a_disk_that_becomes_read_only_ends_the_run(tmp_path, small_disk):
    disk = small_disk(40_000)
    run = Run(tmp_path / "run", "PPO", tmp_path / "tmp")
    run.checkpoints = disk / "checkpoints"
    run.start("--checkpoint.dirpath", str(run.checkpoints))
    assert run.wait_for_save()
    while subprocess.run(["mount", "-o", "remount,ro", disk], capture_output=True).returncode:
        time.sleep(0.01)  # a file is open for writing
    status = run.finish()
    print(f"\n| PPO, disk read-only | {status} | {told(run)} |")
    assert status not in (0, None)
    assert run.result()["frames"] > 0


def test_a_folder_that_is_deleted_is_made_again_or_missed(tmp_path):
    run = Run(tmp_path / "run", "PPO", tmp_path / "tmp")
    run.start()
    assert run.wait_for_save()
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    status = run.finish()
    if status == 0:
        assert run.result()["frames"] == 40 * 512
        print("\n| PPO, folder deleted | 0 | made again |")
    else:
        print(f"\n| PPO, folder deleted | {status} | {told(run)} |")


@pytest.mark.parametrize("kind", ["PPO", "DQN, prioritised"])
@pytest.mark.parametrize("phase", ["set-up", "saving", "validation"])
def test_sigterm_ends_a_run_in_every_phase(kind, phase, tmp_path):
    run = Run(tmp_path / "run", kind, tmp_path / "tmp")
    options = ()
    if phase == "validation":
        options = ("--trainer.check_val_every_n_epoch=1", "--data.val_episodes=1000")
    run.start(*options)
    assert run.process is not None
    if phase == "set-up":
        time.sleep(3.0)  # imports, or environments: before the first epoch is over in any case
    else:
        until = time.monotonic() + 120
        while phase == "saving" and not any(run.checkpoints.glob(".*")):
            assert time.monotonic() < until
        if phase == "validation":  # 1,000 episodes follow each epoch of half a second
            assert run.wait_for_save()
            time.sleep(2.0)
    run.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    status = run.finish(120)
    print(f"\n| {kind}, SIGTERM in {phase} | {status} | after {time.monotonic() - began:.1f} s |")
    assert status in (128 + signal.SIGTERM, -signal.SIGTERM)
    assert "Traceback" not in run.log.read_text()
    assert not members(run.process.pid)
    if run.last.exists():
        assert run.result()["frames"] > 0
    assert not left_over(run) if run.checkpoints.exists() else True
