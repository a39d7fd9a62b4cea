"""A pool of worker processes on this machine: each gets a job's task once, then its calls in sequence.

Workers are spawned, not forked: threads of torch and gRPC, and a CUDA context, do not survive a fork. A start costs
each worker 1.5 CPU-seconds of imports; they are kept until `close`. A process that has imported everything and done
nothing else may `fork` all of them instead, 10 ms each, and they share its memory until they write to it. What a task
object holds stays in its worker from call to call of a job, so a model is loaded once a worker. As with any spawned
process, a script that uses a pool needs the guard `if __name__ == "__main__"`.

No worker outlives its parent: Ctrl-C and an error of the pool kill them, and each ends itself when its parent is gone.
Their temporary files are in one folder, which is removed with them.
"""

import contextlib
import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from threadpoolctl import threadpool_limits

from etl.engine import WORKER
from etl.engines.forks import freeze_for_forks
from etl.errors import DataError, StillhouseError
from etl.machine import usable_cpus

_CLOSE_S = 10.0
"""Seconds to wait for an idle worker to end by itself."""
_THREADS = "OMP_NUM_THREADS"
_THREADED = ("apache_beam", "grpc", "pyspark", "torch")
"""Packages that start threads of their own, or hold a CUDA context."""


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    has_task: bool = False
    """Whether it has the task of the current job."""


class WorkerPool:
    """Processes that run the calls of one job at a time; one starts with the first job that has a call for it.

    Args:
        processes: maximum number of workers; each gets an equal share of the CPUs for the threads of Arrow and BLAS.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._workers: list[_Worker] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def folder(self) -> Path:
        """Folder for temporary files that are removed with the workers."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="stillhouse-local-", ignore_cleanup_errors=True)
        return Path(self._folder.name)

    def fork(self) -> None:
        """Start all workers as forks of this process; those that start after `close` or an error are spawned.

        For a process that has imported what tasks need, and in which no library has started a thread that a fork would
        miss (`may_fork`). Only on Linux: elsewhere system libraries do not survive it.
        """
        freeze_for_forks()
        self._start(self.processes, "fork")

    def run(
        self, task: Callable[..., Any], calls: Sequence[tuple[Any, ...]], at_once: int, done: Callable[[Any], None]
    ) -> None:
        """Call `task` with every tuple of arguments.

        An exception of a call is raised unchanged when the calls under way are over; later calls are not made.

        Args:
            task: sent to each worker once, pickled; what it keeps in itself is there at that worker's next call.
            calls: arguments of each call.
            at_once: maximum number of calls at a time.
            done: gets the result of each call as it comes.

        Raises:
            DataError: a worker died.
        """
        try:
            errors = self._work_off(pickle.dumps(task), calls, at_once, done)
        except BaseException:
            self._kill()
            raise
        if errors:
            raise errors[0]

    def _work_off(
        self, task: bytes, calls: Sequence[tuple[Any, ...]], at_once: int, done: Callable[[Any], None]
    ) -> list[Exception]:
        self._start(min(at_once, len(calls)))
        for worker in self._workers:
            worker.has_task = False
        todo = iter(calls)
        errors: list[Exception] = []
        busy: dict[Any, _Worker] = {}
        for worker, call in zip(self._workers[:at_once], todo, strict=False):
            self._send(worker, task, call)
            busy[worker.connection] = worker
        while busy:
            for connection in wait(list(busy)):
                worker = busy.pop(connection)
                result, error = self._receive(worker)
                if error is not None:
                    errors.append(error)
                else:
                    done(result)
                for call in itertools.islice(todo, 0 if errors else 1):
                    self._send(worker, task, call)
                    busy[connection] = worker
        return errors

    def _send(self, worker: _Worker, task: bytes, call: tuple[Any, ...]) -> None:
        try:
            worker.connection.send((None if worker.has_task else task, call))
        except OSError as error:
            raise _died(worker) from error
        worker.has_task = True

    def _receive(self, worker: _Worker) -> tuple[Any, Exception | None]:
        try:
            return worker.connection.recv()
        except (EOFError, OSError) as error:
            raise _died(worker) from error

    def _start(self, count: int, method: Literal["spawn", "fork"] = "spawn") -> None:
        """Start workers up to this number; a job with few calls starts only as many as it can use."""
        context: Any = multiprocessing.get_context(method)
        threads = max(1, usable_cpus() // self.processes)
        with _quiet_children(threads):
            for number in range(len(self._workers), min(count, self.processes)):
                ours, theirs = context.Pipe()
                # A fork has a copy of every pipe. A worker ends when the last copy of its own pipe's end is closed.
                copies = [*(worker.connection for worker in self._workers), ours] if method == "fork" else []
                arguments = (theirs, number, threads, str(self.folder), copies)
                process = context.Process(target=_serve, args=arguments, name=f"stillhouse-{number}", daemon=True)
                process.start()
                theirs.close()
                self._workers.append(_Worker(process, ours))

    def _kill(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        self._forget()

    def close(self) -> None:
        """End the workers and remove their folder; the next job starts new ones."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(_CLOSE_S)
            worker.process.kill()
        self._forget()

    def _forget(self) -> None:
        for worker in self._workers:
            worker.connection.close()
            worker.process.join()
            worker.process.close()
        self._workers = []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def may_fork() -> bool:
    """Whether forks of this process would work: Linux, no second Python thread, no library whose threads they miss."""
    return sys.platform == "linux" and threading.active_count() == 1 and sys.modules.keys().isdisjoint(_THREADED)


def _died(worker: _Worker) -> DataError:
    worker.process.join(_CLOSE_S)
    code = worker.process.exitcode
    how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    memory = "; SIGKILL often means out of memory: use fewer processes" if how == "SIGKILL" else ""
    return DataError(f"worker process {worker.process.pid} died ({how}{memory}); run again to resume")


@contextlib.contextmanager
def _quiet_children(threads: int) -> Iterator[None]:
    """Settings that child processes inherit: SIGINT is blocked, so that only the parent gets Ctrl-C; a thread count."""
    is_ours = _THREADS not in os.environ
    if is_ours:
        # Read when OpenBLAS and OpenMP are loaded, so a worker cannot set it itself.
        os.environ[_THREADS] = str(threads)
    # Its start with the first worker would unblock SIGINT.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if is_ours:
            del os.environ[_THREADS]


# --- in a worker ---------------------------------------------------------------------------------------------------


def _serve(connection: Connection, number: int, threads: int, folder: str, copies: list[Connection]) -> None:
    """Answer each call with (result, None) or (None, exception), until the parent hangs up."""
    for copy in copies:
        copy.close()
    os.environ[WORKER] = str(number)
    if copies:
        threadpool_limits(threads)  # of what was loaded before the fork
    tempfile.tempdir = folder
    pa.set_cpu_count(threads)
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _answer_calls(connection)


def _answer_calls(connection: Connection) -> None:
    task: Any = None
    while True:
        pickled, call = connection.recv()
        answer: tuple[Any, Exception | None]
        try:
            if pickled is not None:
                task = None  # Drop what it holds before the next one loads its own.
                task = pickle.loads(pickled)  # noqa: S301 - the parent's
            answer = (task(*call), None)
        except Exception as error:  # noqa: BLE001 - raised in the parent
            answer = (None, _portable(error))
        connection.send(answer)


def _end_with_parent(folder: str) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """The exception in a form that can be pickled; unless it is bad input, with the worker's traceback as a note."""
    if isinstance(error, StillhouseError):
        return error
    error.add_note(f"in a worker process:\n{''.join(traceback.format_exception(error))}")
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - whatever an exception of somebody else's does when it is pickled
        return RuntimeError(f"{type(error).__name__}: {error}\n{error.__notes__[-1]}")
    return error
