"""Environments in processes of their own that neither hang the main process nor outlive it."""

import contextlib
import select
import signal
import time
import warnings
from collections.abc import Callable
from multiprocessing import forkserver, util
from multiprocessing.connection import Connection
from multiprocessing.context import (
    ForkServerContext,
    _concrete_contexts,  # type: ignore[attr-defined]
)
from typing import Any, NoReturn

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.envs.infos import add_info
from rl_lightning.envs.worker import serve

LOOK_AROUND = 1000  # milliseconds of waiting for one process, before looking at the others
PATIENCE = 60_000  # milliseconds without an answer, after which it is said; then twice as long
POLITE, URGENT = 5.0, 1.0  # seconds that processes have to close their environments


class _Unlocked:
    """Shared memory as `multiprocessing.Array` returns it, without the lock."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    def get_obj(self) -> Any:
        return self.raw


class _Lockless(ForkServerContext):
    """Starts processes without a semaphore: nothing of theirs has a name.

    A lock that processes share has a name in the system's shared memory. If all of them are killed
    at once, it stays there until the machine is restarted. Environments take turns by what comes
    through their pipes, and nobody reads Gymnasium's queue of errors.
    """

    def Array(self, typecode_or_type: Any, size_or_initializer: Any, **_: Any) -> Any:  # noqa: N802
        return _Unlocked(self.RawArray(typecode_or_type, size_or_initializer))

    def Queue(self, maxsize: int = 0) -> Any:  # noqa: N802
        return None


# Forking a process that has used torch's threads or tokenizers can deadlock.
_CONTEXT = "forkserver without locks"
_concrete_contexts[_CONTEXT] = _Lockless()


class WorkerTraceback(Exception):  # noqa: N818  (it is a cause, and never raised by itself)
    """Where in its own process an environment raised; the cause of what the main process raises."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class ProcessVectorEnv(AsyncVectorEnv):
    """Gymnasium's `AsyncVectorEnv` with autoreset mode SAME_STEP, for runs that must end.

    The same results as `AsyncVectorEnv(copy=False, autoreset_mode=SAME_STEP)`. But what an
    environment raises, and the death of its process, end the waiting for all others and all
    processes with it, in one sentence. Signals are the main process's business: its handlers stay
    what they were, and the environments' processes leave SIGINT and SIGTERM to it. They end when it
    ends, however that happens.

    Args:
        make: What makes each environment, in its process and once in this one; can be pickled.
        num_envs: B.
        name: Of the environment, for messages.
        shared_memory: Whether observations come through shared memory; texts must not.

    Raises:
        ConfigurationError: If the processes cannot be started, or an environment not be made.
        RunError: From every method that waits for the environments, if one raises or dies.
    """

    def __init__(
        self, make: Callable[[], gym.Env], num_envs: int, name: str, shared_memory: bool
    ) -> None:
        self._name = name
        self._workers: _Workers | None = None
        _start_forkserver()
        try:
            super().__init__(
                [make] * num_envs,
                shared_memory=shared_memory,
                copy=False,
                autoreset_mode=AutoresetMode.SAME_STEP,
                context=_CONTEXT,
                worker=serve,  # type: ignore[arg-type]
            )
        except BaseException:
            if self._workers is None and "processes" in self.__dict__:
                self._workers = _Workers(name, self.parent_pipes, self.processes)
            if self._workers is not None:
                self._workers.end(0.0)
            self.closed = True
            raise
        assert self._workers is not None
        self._workers.started = True

    def _check_spaces(self) -> None:
        # All processes are started, and nothing has been received from them yet.
        pipes, processes = self.parent_pipes, self.processes
        self._workers = workers = _Workers(self._name, pipes, processes)
        # Before multiprocessing's own at exit, which waits for processes that wait for this one.
        util.Finalize(self, workers.end, (URGENT,), exitpriority=100)
        watched: Any = [_WatchedPipe(workers, index) for index in range(len(pipes))]
        self.parent_pipes = watched
        super()._check_spaces()

    def _add_info(
        self, vector_infos: dict[str, Any], env_info: dict[str, Any], env_num: int
    ) -> dict[str, Any]:
        return add_info(vector_infos, env_info, env_num, self.num_envs)

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """End the processes; the ones that have not closed their environments in time are killed.

        Args:
            timeout: Seconds that they have for it; None: five.
            terminate: Do not wait for them.
        """
        if self._workers is not None:
            self._workers.end(0.0 if terminate else POLITE if timeout is None else timeout)


class _Workers:
    """The processes of a vector env: what became of them, and their end."""

    def __init__(self, name: str, pipes: list[Connection], processes: list[Any]) -> None:
        self.name, self.pipes, self.processes = name, pipes, processes
        self.started = self.ended = False
        self._ends = select.poll()
        self._index: dict[int, int] = {}
        for index, (pipe, process) in enumerate(zip(pipes, processes, strict=True)):
            self._index[pipe.fileno()] = index
            self._ends.register(pipe.fileno(), 0)  # that the other side hangs up is always told
            # What the process has started may hold its side of the pipe for ever.
            if process.pid is not None:
                self._index[process.sentinel] = index
                self._ends.register(process.sentinel, select.POLLIN)

    def look_around(self) -> None:
        """Raise if any process has ended."""
        for fd, _ in self._ends.poll(0):
            self.died(self._index[fd])

    def still_waiting(self, index: int, seconds: int) -> None:
        """Say that a process lives and does not answer."""
        warnings.warn(
            f"environment {index} of {len(self.processes)} ({self.name!r}, vectorization: async) "
            f"has not answered for {seconds} s: its process {self.processes[index].pid} is alive, "
            "and busy, asleep or stopped",
            stacklevel=2,
        )

    def died(self, index: int) -> NoReturn:
        """Raise what a process that has ended said last, or that it ended."""
        with contextlib.suppress(EOFError, OSError):
            while self.pipes[index].poll():
                answer, success = self.pipes[index].recv()
                if not success:
                    self.failed(answer)
        process = self.processes[index]
        process.join(URGENT)
        code = process.exitcode
        self.end(URGENT)
        if not self.started and code == 1:
            raise ConfigurationError(
                "vectorization: async could not start its processes: they ended with status 1. A "
                'script that uses it must keep its own work under `if __name__ == "__main__":`, '
                "because the processes import it; or the environment ends its process while it "
                "is made"
            )
        how = f"ended with status {code}"
        if code is not None and code < 0:
            how = f"was killed by {_signal_name(-code)}"
        raise RunError(
            f"the process of environment {index} of {len(self.processes)} ({self.name!r}, "
            f"vectorization: async) {how}; a crash of the environment, or too little memory for "
            "so many, does this: try fewer data.num_envs"
        )

    def failed(self, failure: tuple[bool, str, str]) -> NoReturn:
        """Raise what an environment raised in its process."""
        misconfigured, sentence, trace = failure
        self.end(URGENT)
        kind = ConfigurationError if misconfigured else RunError
        raise kind(sentence) from WorkerTraceback(trace)

    def end(self, seconds: float) -> None:
        """Let the processes end, and kill those that have not done so in time."""
        if self.ended:
            return
        self.ended = True
        for pipe in self.pipes:
            pipe.close()  # which is how a process learns that it is to end
        running = [process for process in self.processes if process.pid is not None]
        until = time.monotonic() + seconds
        for process in running:
            process.join(max(until - time.monotonic(), 0.0))
        for process in running:
            if process.is_alive():
                process.kill()
        for process in running:
            process.join(URGENT)


class _WatchedPipe:
    """The main process's end of a pipe, in whose place it stands; does not wait for the dead."""

    def __init__(self, workers: _Workers, index: int) -> None:
        self._workers, self._index = workers, index
        self._pipe = workers.pipes[index]
        self._ready = select.poll()  # kept: making one takes longer than asking it
        self._ready.register(self._pipe.fileno(), select.POLLIN)

    @property
    def closed(self) -> bool:
        return self._pipe.closed

    def send(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            self._workers.died(self._index)

    def recv(self) -> Any:
        waited, told = 0, PATIENCE
        try:
            while not self._ready.poll(LOOK_AROUND):
                self._workers.look_around()
                waited += LOOK_AROUND
                if waited >= told:
                    self._workers.still_waiting(self._index, waited // 1000)
                    told *= 2
            answer, success = self._pipe.recv()
        except (EOFError, OSError):
            self._workers.died(self._index)
        if not success:
            self._workers.failed(answer)
        return answer, True

    def poll(self, timeout: float = 0.0) -> bool:
        return self._pipe.poll(timeout)

    def close(self) -> None:
        self._pipe.close()


def _start_forkserver() -> None:
    """Start what forks the processes, such that a terminal's Ctrl-C passes them by from birth."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
