"""Signals end every phase of every command: one sentence, status 128 + n, and nothing left."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rl_lightning.cli.command import main

SECONDS = 60.0  # until a phase is reached, on a busy machine
AGENT = "--model=PPO"
SIZES = ("--data.num_envs=2", "--data.rollout_steps=8", "--data.total_frames=1000000")
QUIET = (
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)


def arguments(command, folder, env="probes:Moody-v0", **kwargs):
    places = (f"--trainer.default_root_dir={folder}", f"--checkpoint.dirpath={folder}")
    own = [f"--data.env_kwargs.{key}={value}" for key, value in kwargs.items()]
    sizes = ("--data.val_num_envs=2", "--data.val_episodes=2", "--data.val_seed=0")
    data = ("--data=RolloutDataModule", f"--data.env={env}", *SIZES, *sizes)
    return [command, AGENT, *data, *own, *QUIET, *places]


class Unhandled(Exception):  # noqa: N818
    """A signal that nobody took."""


def unhandled(number, frame):
    raise Unhandled(number)


@pytest.fixture
def handlers():
    """Whoever fails to handle a signal fails a test, not the test run."""
    before = {n: signal.signal(n, unhandled) for n in (signal.SIGINT, signal.SIGTERM)}
    yield
    assert all(signal.getsignal(n) is unhandled for n in before)  # and all of them are put back
    for number, handler in before.items():
        signal.signal(number, handler)


def stopped(number, mark, args, times=1):
    """The status of a command that gets a signal when `mark` appears."""

    def send():
        until = time.monotonic() + SECONDS
        while not mark.exists() and time.monotonic() < until:
            time.sleep(0.01)
        for _ in range(times):
            time.sleep(0.05)
            os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    began = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        main(args)
    sender.join()
    assert time.monotonic() - began < SECONDS
    return caught.value.code


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("command", "number", "phase"),
    [
        ("fit", signal.SIGTERM, "import"),
        ("fit", signal.SIGINT, "make"),
        ("validate", signal.SIGTERM, "reset"),
        ("validate", signal.SIGINT, "step"),
        ("test", signal.SIGTERM, "step"),
        ("predict", signal.SIGTERM, "step"),
    ],
)
def test_a_signal_ends_what_is_no_training_at_once(command, number, phase, tmp_path, capsys):
    mark = tmp_path / "mark"
    if phase == "import":
        module = tmp_path / "takes_long_to_import.py"
        module.write_text(f"import time\nopen({str(mark)!r}, 'w')\ntime.sleep(600)\n")
        sys.path.insert(0, str(tmp_path))
        args = arguments(command, tmp_path, "takes_long_to_import:Moody-v0")
    else:
        args = arguments(command, tmp_path, mood="wait", mark=mark, waits_in=phase)
    try:
        assert stopped(number, mark, args) == 128 + number
    finally:
        if phase == "import":
            sys.path.remove(str(tmp_path))
    errors = capsys.readouterr().err
    assert errors.strip().splitlines()[-1] == f"rl-lightning: stopped by {number.name}"
    assert "Traceback" not in errors


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_training_at_once(number, tmp_path, capsys):
    mark = tmp_path / "mark"
    args = [*arguments("fit", tmp_path, mood="wait", mark=mark), "--data.seed=0"]
    assert stopped(number, mark, args, times=2) == 128 + number
    errors = capsys.readouterr().err
    assert errors.strip().splitlines()[-1] == f"rl-lightning: stopped by {number.name}"
    assert "Traceback" not in errors


def begin(args):
    return subprocess.Popen(
        [sys.executable, "-m", "rl_lightning", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
        start_new_session=True,
    )


def members(group):
    """Living processes of a group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@linux
@pytest.mark.distributed
def test_ctrl_c_in_a_terminal_leaves_no_process(tmp_path):
    """It reaches all processes at once, while their environments wait."""
    mark = tmp_path / "mark"
    args = arguments("validate", tmp_path, mood="wait", mark=mark)
    run = begin([*args, "--data.vectorization=async"])
    until = time.monotonic() + 2 * SECONDS
    while not mark.exists():
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)
    output, _ = run.communicate(timeout=SECONDS)
    assert run.returncode == 128 + signal.SIGINT, output
    assert output.strip().splitlines()[-1] == "rl-lightning: stopped by SIGINT"
    assert "Traceback" not in output
    time.sleep(0.2)
    assert not members(run.pid)


@linux
@pytest.mark.distributed
def test_a_signal_ends_the_imports_too(tmp_path):
    run = begin(arguments("fit", tmp_path))
    until = time.monotonic() + SECONDS
    caught = 0
    while not caught & 1 << (signal.SIGTERM - 1):  # until it is not deadly any more
        assert time.monotonic() < until
        status = Path(f"/proc/{run.pid}/status").read_text()
        caught = int(status.split("SigCgt:")[1].split()[0], 16)
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=SECONDS)
    assert (run.returncode, output) == (143, "rl-lightning: stopped by SIGTERM\n")
