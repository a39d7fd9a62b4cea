"""Runs the ranks of one machine as child processes, which start and stop together.

SIGTERM, SIGINT and SIGHUP become one SIGTERM to each rank, which saves and exits 0 (stop.py beside this file); what
runs after the grace period, or at a second signal, is killed. A rank that fails takes the others down at once. Each
rank leads a process group, so that its own children go with it, and dies with the supervisor (PR_SET_PDEATHSIG, Linux),
even when that is killed. Rank 0's output passes as it is; the lines of the others carry their rank. Costs two threads a
rank and twenty looks a second.
"""

import collections
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import IO

from etl.errors import ConfigError
from etl.terminal import message
from training.launch.stop import SUPERVISED

KILLED = 128 + signal.SIGKILL
"""Exit code when ranks had to be killed after the grace period."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LOOK_S = 0.05
_TAIL_LINES = 30
_DRAIN_S = 5.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ranks:
    """Which ranks run on this machine."""

    per_node: int
    nodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    """Address of node 0 that the other nodes reach."""
    master_port: int | None = None
    """A free port of node 0, the same on every node; None takes one, for a single node."""

    def check(self) -> None:
        """Refuse what cannot run.

        Raises:
            ConfigError: a number is out of its range, or several nodes have no address in common.
        """
        if self.per_node < 1 or self.nodes < 1 or not 0 <= self.node_rank < self.nodes:
            raise ConfigError(
                f"--nproc {self.per_node} --nnodes {self.nodes} --node-rank {self.node_rank}: at least one process and "
                "one node, and a rank from 0 to nodes - 1"
            )
        if self.nodes > 1 and (self.master_port is None or self.master_addr == "127.0.0.1"):
            raise ConfigError(
                f"--nnodes {self.nodes} needs --master-addr and --master-port: an address and a free port of node 0, "
                "the same on every node"
            )

    def environment(self, local_rank: int, port: int) -> dict[str, str]:
        """What torch.distributed reads, and that there is a supervisor."""
        return {
            "RANK": str(self.node_rank * self.per_node + local_rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(self.nodes * self.per_node),
            "LOCAL_WORLD_SIZE": str(self.per_node),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(port),
            SUPERVISED: "1",
        }


def supervise(command: Sequence[str], ranks: Ranks, grace_s: float) -> int:
    """Run a command once a rank, until all have ended. Call it from the main thread.

    Args:
        command: the same for every rank; each learns which it is from RANK and its companions.
        ranks: how many, and where among several machines.
        grace_s: how long ranks may take to end after a signal.

    Returns:
        0 when every rank has exited with 0, also after SIGTERM or SIGHUP, and 130 after SIGINT; the code of the first
        rank that failed (128 + n for one that died of signal n); 137 when ranks had to be killed after the grace
        period or at a second signal.

    Raises:
        ConfigError: the numbers do not fit, or the command cannot be started.
    """
    ranks.check()
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(_Signals().caught())
        children = _Children()
        stack.callback(children.kill)
        children.start(command, ranks)
        return _watch(children, signals, grace_s)


def _watch(children: "_Children", signals: "_Signals", grace_s: float) -> int:
    deadline: float | None = None
    while children.running():
        failed = children.first_failure()
        if failed is not None:
            return _failed(failed, children, signals)
        if signals.count and deadline is None:
            deadline = time.monotonic() + grace_s
            late = f"ranks still running in {grace_s:g} s, or at a second signal, are killed"
            _tell(f"{signals.name}: the ranks save and stop; {late}")
            children.terminate()
        if deadline is not None and (time.monotonic() > deadline or signals.count > 1):
            late = ", ".join(str(child.rank) for child in children.running())
            children.kill()
            why = "after a second signal" if signals.count > 1 else f"{grace_s:g} s after the signal"
            _tell(
                f"rank {late} still ran {why} and was killed; unsaved progress is lost, complete checkpoints are kept"
            )
            return KILLED
        time.sleep(_LOOK_S)
    failed = children.first_failure()
    if failed is not None:
        return _failed(failed, children, signals)
    children.kill()
    return 128 + signal.SIGINT if signals.name == "SIGINT" else 0


def _failed(failed: "_Child", children: "_Children", signals: "_Signals") -> int:
    """Exit code after a rank has failed; the others are killed."""
    children.kill()
    if signals.count and failed.code == -signal.SIGTERM:
        _tell(f"{signals.name} before training had started: nothing to save; run the same command again")
        return 128 + signal.Signals[signals.name]
    _tell(failed.epitaph())
    return failed.exit_code


def _tell(text: str) -> None:
    sys.stderr.write(f"stillhouse: {message(text)}\n")
    sys.stderr.flush()


class _Signals:
    """How many signals have come."""

    def __init__(self) -> None:
        self.count = 0
        self.name = ""
        """Of the first."""

    @contextlib.contextmanager
    def caught(self) -> Iterator["_Signals"]:
        before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.name = self.name or signal.Signals(number).name


class _Child:
    """One rank."""

    def __init__(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        self.rank = rank
        self.process = process
        self.code: int | None = None
        """None while it runs; negative for a signal."""
        self._tail: collections.deque[bytes] = collections.deque(maxlen=_TAIL_LINES)
        self._threads: list[threading.Thread] = []

    def relay(self) -> None:
        """Begin to pass its output on."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        prefix = b"" if self.rank == 0 else f"[rank {self.rank}] ".encode()
        pairs = [(self.process.stdout, sys.stdout.buffer, None), (self.process.stderr, sys.stderr.buffer, self._tail)]
        for source, target, tail in pairs:
            thread = threading.Thread(target=_relay, args=(source, target, prefix, tail), daemon=True)
            thread.start()
            self._threads.append(thread)

    def look(self) -> None:
        """Learn whether it has ended, without reaping it: its group keeps its number until then."""
        if self.code is None:
            found = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None:
                self.code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    @property
    def exit_code(self) -> int:
        """As a shell reports it."""
        assert self.code is not None
        return self.code if self.code >= 0 else 128 - self.code

    def kill(self) -> None:
        """Kill its group, reap it, and pass on what it has still said."""
        if self.process.returncode is not None:
            return
        # Not there: it has ended and left nobody behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for thread in self._threads:
            thread.join(_DRAIN_S)

    def epitaph(self) -> str:
        assert self.code is not None
        how = f"exit code {self.code}" if self.code >= 0 else f"{signal.Signals(-self.code).name}"
        tail = b"".join(self._tail).decode(errors="replace").rstrip()
        last = f"; its last lines on stderr:\n{tail}" if tail else "; it printed nothing to stderr"
        return f"rank {self.rank} ended with {how}; the others were stopped{last}"


def _relay(source: IO[bytes], target: IO[bytes], prefix: bytes, tail: collections.deque[bytes] | None) -> None:
    """Whole lines; but what rank 0 writes to stderr (a tail and no prefix) as it comes: its progress line moves."""
    moves = tail is not None and not prefix
    read: Callable[[], bytes] = (lambda: source.read1(1 << 16)) if moves else source.readline  # type: ignore[attr-defined]
    rest = b""
    # The reader of our own output may be gone; the rank must not wait for it.
    is_open = True
    while data := read():
        if is_open:
            try:
                target.write(prefix + data)
                target.flush()
            except (OSError, ValueError):
                is_open = False
        if tail is not None:
            *lines, rest = (rest + data).splitlines(keepends=True)[-_TAIL_LINES - 1 :] or [b""]
            if rest.endswith(b"\n"):
                lines, rest = [*lines, rest], b""
            tail.extend(lines)
    if tail is not None and rest:
        tail.append(rest)


class _Children:
    """The ranks of this machine."""

    def __init__(self) -> None:
        self._all: list[_Child] = []

    def start(self, command: Sequence[str], ranks: Ranks) -> None:
        """Start all, before any thread: the hook between fork and exec must not meet one."""
        port = ranks.master_port or _free_port()
        hook = _dies_with_parent()
        for local_rank in range(ranks.per_node):
            own = ranks.environment(local_rank, port)
            try:
                process = subprocess.Popen(
                    list(command),
                    env={**_defaults(ranks, local_rank), **os.environ, **own},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    process_group=0,
                    preexec_fn=hook,  # no thread yet
                )
            except OSError as error:
                raise ConfigError(f"cannot start {command[0]}: {error}") from error
            self._all.append(_Child(int(own["RANK"]), process))
        for child in self._all:
            child.relay()

    def running(self) -> list[_Child]:
        for child in self._all:
            child.look()
        return [child for child in self._all if child.code is None]

    def first_failure(self) -> _Child | None:
        """Of those that have ended; the lowest rank where several fail between two looks."""
        return next((child for child in self._all if child.code), None)

    def terminate(self) -> None:
        """Ask the ranks themselves, not their children, which serve them until they end."""
        for child in self._all:
            if child.code is None:
                # Popen.send_signal may reap the child, and then its group has no number.
                os.kill(child.process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End all, and all that they have started."""
        for child in self._all:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if child.process.returncode is None:
                    os.killpg(child.process.pid, signal.SIGKILL)
        for child in self._all:
            child.kill()


def _defaults(ranks: Ranks, local_rank: int) -> dict[str, str]:
    """What a user's environment overrides."""
    found = {} if ranks.per_node == 1 else {"OMP_NUM_THREADS": "1"}
    if local_rank == 0 and sys.stderr.isatty():
        # The rank has a pipe, and would show no line that moves.
        found |= {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1", "COLUMNS": str(os.get_terminal_size(2).columns)}
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _dies_with_parent() -> Callable[[], None] | None:
    """What a child does before exec: ask the kernel to kill it when the supervisor ends, however it ends."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def hook() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return hook
