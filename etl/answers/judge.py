"""Verdicts on pairs of answers, by math-verify in a process of its own.

math-verify and the computer algebra below it may run for ever, take all memory, or need signals of the main thread. So
they run in a child process (etl/answers/child.py), one for each Judge. It starts with the first pair that is not plain,
and again after a pair that killed it. It is started by subprocess, not multiprocessing, so daemonic workers of Spark,
Beam and the local pool may have one. The parent holds two pipes, but no thread or signal handler. Plain pairs cost
50 µs; child.py gives the cost of the others.

The verdict of a pair does not depend on the pairs before it, on the machine's load (the limit is CPU time), or on the
hash seed. Nothing is read from the network.
"""

import contextlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Final, cast

from etl.answers.clean import clean
from etl.answers.plain import Outcome, Verdict, plain_verdict
from etl.errors import ConfigError
from etl.extras import without_package

MAX_LETTERS: Final = 2000
"""A longer text is no final answer and is not read."""
_START_S: Final = 120.0
"""Seconds for the child to import its libraries on a busy machine."""
_WALL_FACTOR: Final = 20.0
"""The parent kills a child that gets this little of a CPU, or hangs."""


class Judge:
    """Compares answers. Close it after use; at the latest it closes with the process.

    Threads that share one take turns. After a fork each process has its own child.

    Args:
        cpu_s: CPU seconds per pair; one that takes more is unparseable for the reason `time`.
        memory_bytes: address space of the child; a pair that needs more is unparseable for the reason `memory`.
    """

    def __init__(self, cpu_s: float = 5.0, memory_bytes: int = 2 << 30) -> None:
        """Starts nothing.

        Raises:
            ConfigError: math-verify is not installed.
        """
        if importlib.util.find_spec("math_verify") is None:
            raise without_package("No module named 'math_verify'") or AssertionError("math_verify is of an extra")
        self._cpu_s, self._memory_bytes = cpu_s, memory_bytes
        self._lock = threading.Lock()
        self._owner = 0
        self._child: _Child | None = None

    def compare(self, answer: str, expected: str) -> Verdict:
        """Whether an answer is the expected one.

        Raises:
            ConfigError: the process of math-verify does not start.
        """
        ours, theirs = clean(answer[: MAX_LETTERS + 1]), clean(expected[: MAX_LETTERS + 1])
        if len(answer) > MAX_LETTERS or len(expected) > MAX_LETTERS:
            return Verdict("equal") if answer == expected else Verdict("unparseable", "length")
        plain = plain_verdict(ours, theirs)
        if plain is not None:
            return plain
        with self._lock:
            if self._owner != os.getpid():
                self._child, self._owner = None, os.getpid()
            if self._child is None or not self._child.is_alive:
                self._child = _Child(self._cpu_s, self._memory_bytes)
            child, self._child = self._child, None
            # If this is interrupted, the child ends with `child`: it would give this answer to the next question.
            verdict = child.ask(ours, theirs)
            if verdict is None:
                return Verdict("unparseable", child.close())
            self._child = child
            return verdict

    def close(self) -> None:
        """End the child; another pair starts a new one."""
        with self._lock:
            if self._child is not None and self._owner == os.getpid():
                self._child.close()
            self._child = None

    def __enter__(self) -> "Judge":
        """For a with statement."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __reduce__(self) -> tuple[type["Judge"], tuple[float, int]]:
        """A copy in another process has a child of its own."""
        return Judge, (self._cpu_s, self._memory_bytes)


class _Child:
    """A running process."""

    def __init__(self, cpu_s: float, memory_bytes: int) -> None:
        # -P and this path give the child the packages of its parent, also those of a zip that an engine shipped.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "etl.answers.child", str(cpu_s), str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},
            bufsize=0,
        )
        self._wall_s = cpu_s * _WALL_FACTOR
        self._rest = b""
        self._ended = False
        self._closer = weakref.finalize(self, _end, self._process, os.getpid())
        said = self._read(_START_S)
        if said is None or said[0] != "ready":
            self.close()
            raise ConfigError(
                f"the process that compares answers does not start ({said[1] if said else 'it ended'}); "
                "pip install 'stillhouse[answers]'"
            )

    def ask(self, answer: str, expected: str) -> Verdict | None:
        """The verdict; None if the pair ended the process."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([answer, expected]).encode("ascii") + b"\n")
        except BrokenPipeError:
            return None
        said = self._read(self._wall_s)
        return None if said is None else Verdict(cast("Outcome", said[0]), said[1])

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def close(self) -> str:
        """End it; returns why it ended, as the reason of a verdict."""
        if self._ended:
            self._process.wait()
        self._closer()
        return "time" if self._process.returncode in (-signal.SIGPROF, -signal.SIGKILL) else "crash"

    def _read(self, wall_s: float) -> list[str] | None:
        """One line; None if the process ends or the time is up first."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + wall_s
        pipe = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while b"\n" not in self._rest:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return None
            data = os.read(pipe, 65536)
            if not data:
                self._ended = True
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)


def _end(process: "subprocess.Popen[bytes]", owner: int) -> None:
    """Kill a child of this process; leave alone a copy that a fork has made."""
    if owner != os.getpid():
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
