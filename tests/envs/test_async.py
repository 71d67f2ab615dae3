"""Environments in processes: what goes wrong in one of them ends the run, in one sentence."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from test_make import equal
from training import fit

from rl_lightning import PPO
from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.data import RolloutDataModule
from rl_lightning.envs import async_env, make_env, make_vector_env
from rl_lightning.envs.async_env import WorkerTraceback

pytestmark = pytest.mark.distributed
SECONDS = 10.0  # much more than it takes, and much less than a minute


def moody(num_envs=3, **kwargs):
    return make_vector_env("probes:Moody-v0", num_envs, "async", kwargs)


def steps(env, count=10):
    env.reset(seed=0)
    for _ in range(count):
        env.step(np.zeros(env.num_envs, int))


def test_the_main_process_keeps_its_signal_handlers():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    env = make_vector_env("CartPole-v1", 1, "async")
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    env.close()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_environments_leave_signals_to_the_main_process():
    env = moody(2, mood="none")
    env.reset(seed=0)
    for process in env.processes:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(process.pid, number)
    time.sleep(0.1)
    steps(env)
    env.close()


@pytest.mark.parametrize("shared", [True, False])
def test_the_same_results_as_gymnasium_s(shared):
    kind = ("CartPole-v1", {}) if shared else ("TextMaze-v0", {"max_steps": 5})
    ours = make_vector_env(kind[0], 2, "async", kind[1])
    theirs = AsyncVectorEnv(
        [partial(make_env, *kind)] * 2,
        shared_memory=shared,
        autoreset_mode=AutoresetMode.SAME_STEP,
        context="forkserver",
    )
    assert ours.shared_memory == shared
    assert equal(ours.reset(seed=3), theirs.reset(seed=3))
    ours.action_space.seed(0)
    for _ in range(40):
        action = ours.action_space.sample()
        assert equal(ours.step(action), theirs.step(action))
    assert ours.get_attr("render_mode") == theirs.get_attr("render_mode")
    for env in (ours, theirs):
        env.set_attr("mark", [1, 2])
    assert ours.get_attr("mark") == theirs.get_attr("mark") == (1, 2)
    for env in (ours, theirs):
        env.close()


def ends(env):
    """Nothing of it is left a moment after it raised, and closing it again is no matter."""
    began = time.monotonic()
    env.close()
    assert time.monotonic() - began < SECONDS
    assert not any(process.is_alive() for process in env.processes)
    assert all(pipe.closed for pipe in env.parent_pipes)


@pytest.mark.parametrize(
    ("mood", "slow", "words"),
    [
        ("raise", False, r"'Moody-v0' raised in step: RuntimeError: the licence server is gone \("),
        ("odd", True, r"OddError: the licence server is gone \(probes.py:\d+\)"),
        ("unpicklable", False, r"'Moody-v0' raised in step: .*pickle"),
        ("die", False, r"process of environment 1 of 3 .*Moody-v0.* was killed by SIGKILL"),
        ("die", True, r"process of environment 1 of 3 .* was killed by SIGKILL.*num_envs"),
        ("leave a child", False, r"process of environment 1 of 3 .* ended with status 3"),
        ("leave a child", True, r"process of environment 1 of 3 .* ended with status 3"),
        ("exit", True, r"SystemExit: 3.* ended the program"),
    ],
)
def test_the_first_to_fail_ends_all(mood, slow, words):
    """Also while another one takes a minute over its step."""
    env = moody(mood=mood, slow=slow)
    began = time.monotonic()
    with pytest.raises(RunError, match=words) as caught:
        steps(env)
    assert time.monotonic() - began < SECONDS
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    ends(env)


def test_one_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(async_env, "PATIENCE", 1000)
    env = moody(1, mood="none")
    env.reset(seed=0)
    process = env.processes[0].pid
    os.kill(process, signal.SIGSTOP)
    threading.Timer(1.6, os.kill, (process, signal.SIGCONT)).start()
    with pytest.warns(
        UserWarning, match=r"environment 0 of 1 \('probes:Moody-v0'.* not answered for 1 s"
    ):
        env.step(np.zeros(1, int))
    env.close()


def test_an_environment_that_cannot_be_reset_is_a_mistake_in_the_configuration():
    env = moody(mood="reset")
    with pytest.raises(ConfigurationError, match="raised in reset: RuntimeError: the licence"):
        steps(env)
    ends(env)


def test_an_environment_that_cannot_be_made_in_its_process_is_explained():
    before = multiprocessing.active_children()
    with pytest.raises(ConfigurationError, match=r"Moody-v0.*the licence server is gone"):
        moody(mood="born")
    assert multiprocessing.active_children() == before


def test_a_death_between_two_steps_is_noticed_by_the_next():
    env = moody(2, mood="none")
    env.reset(seed=0)
    os.kill(env.processes[0].pid, signal.SIGKILL)
    env.processes[0].join()
    with pytest.raises(RunError, match=r"environment 0 of 2 .* SIGKILL"):
        env.step(np.zeros(2, int))
    ends(env)


@pytest.mark.parametrize("method", ["get_attr", "render"])
def test_other_calls_end_too(method):
    env = moody(2, mood="none")
    env.reset(seed=0)
    os.kill(env.processes[1].pid, signal.SIGKILL)
    with pytest.raises(RunError, match="environment 1 of 2"):
        env.get_attr("length") if method == "get_attr" else env.render()
    ends(env)


def test_closing_does_not_wait_for_a_step_that_was_not_waited_for():
    env = moody(2, mood="none", slow=True)
    steps(env, 2)
    env.step_async(np.zeros(2, int))
    began = time.monotonic()
    env.close(timeout=0.5)
    assert time.monotonic() - began < SECONDS
    ends(env)


def test_the_worker_s_traceback_is_the_cause():
    env = moody(2)
    with pytest.raises(RunError) as caught:
        steps(env)
    assert isinstance(caught.value.__cause__, WorkerTraceback)
    assert "in be_moody" in str(caught.value.__cause__)


def test_training_ends_in_the_same_sentence():
    data = RolloutDataModule(
        "probes:Moody-v0", num_envs=2, rollout_steps=8, total_frames=64, vectorization="async"
    )
    with pytest.raises(RunError, match="'Moody-v0' raised in step: RuntimeError: the licence"):
        fit(PPO(data.spec), data)


HOLD = """
import os, sys, time, numpy as np
from rl_lightning.envs import make_env, make_vector_env
if __name__ == "__main__":
    env = make_vector_env("CartPole-v1", 2, "async")
    env.reset(seed=0)
    print(*(process.pid for process in env.processes), flush=True)
    if sys.argv[1] == "exit":
        env.step_async(np.zeros(2, int))
        raise SystemExit("an error somewhere else")
    time.sleep(600)
"""


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("how", ["exit", "kill"])
def test_processes_end_with_the_main_one(how, tmp_path):
    """When it leaves them in the middle of a step, and when it is killed."""
    script = tmp_path / "hold.py"
    script.write_text(HOLD)
    main = subprocess.Popen(
        [sys.executable, str(script), how],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    )
    assert main.stdout is not None
    pids = main.stdout.readline().split()
    assert len(pids) == 2
    if how == "kill":
        main.kill()
    main.wait(60)
    until = time.monotonic() + SECONDS
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)
