"""Measures tasks and the process tree of a driver: CPU-seconds, wall seconds, memory.

A task measures itself in the process that runs it. CPU-seconds are those of the process (user and system, all threads)
and of children that ended meanwhile. Tasks that run in one process at the same time share them evenly, so their sum is
what the process used. The kernel keeps one peak of resident memory per process (VmHWM) for its whole life, and nothing
here resets it, since others read it too. So the peak of a task is exact if the task raised that record. Otherwise it is
the largest value seen at its start, at its end and between its row groups.

Costs 0.1 ms per task and 10 us per look; adding up a tree costs 20 us for each process of this machine.
"""

import os
import resource
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """Resources used."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    peak_bytes: int = 0
    """Peak resident memory of its process."""


# --- a task --------------------------------------------------------------------------------------------------------


class TaskMeter:
    """Measures the code in its `with` blocks; `usage` is their sum."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        """Added by the clock of the process, which all active meters share."""
        self._wall_s = 0.0
        self._began = 0.0
        self._record_bytes = _peak_bytes()
        self.seen_bytes = _resident_bytes()

    def __enter__(self) -> "TaskMeter":
        self._began = time.perf_counter()
        _PROCESS.begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _PROCESS.end(self)
        self._wall_s += time.perf_counter() - self._began

    def usage(self) -> Usage:
        """The usage of the blocks so far."""
        record = _peak_bytes()
        seen = max(self.seen_bytes, _resident_bytes())
        return Usage(self.cpu_s, self._wall_s, record if record > self._record_bytes else seen)


class _ProcessClock:
    """Divides the CPU-seconds of this process among the active meters."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at_work: list[TaskMeter] = []
        self._last_s = 0.0

    def begin(self, meter: TaskMeter) -> None:
        with self._lock:
            self._deal()
            self._at_work.append(meter)

    def end(self, meter: TaskMeter) -> None:
        with self._lock:
            self._deal()
            self._at_work.remove(meter)

    def look_at_memory(self) -> None:
        with self._lock:
            if self._at_work:
                resident = _resident_bytes()
                for meter in self._at_work:
                    meter.seen_bytes = max(meter.seen_bytes, resident)

    def _deal(self) -> None:
        now_s = _own_cpu_s()
        for meter in self._at_work:
            meter.cpu_s += (now_s - self._last_s) / len(self._at_work)
        self._last_s = now_s


_PROCESS = _ProcessClock()


def look_at_memory() -> None:
    """Record the current memory of this process for its active tasks."""
    _PROCESS.look_at_memory()


def _own_cpu_s() -> float:
    """CPU-seconds of this process, and of its children that it has waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES


def _peak_bytes() -> int:
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    # Some sandboxes do not provide it. It may include memory that the parent held when it started this process.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- a driver ------------------------------------------------------------------------------------------------------


class TreeMeter:
    """CPU and wall seconds of this process and all below it, from one `lap` to the next."""

    def __init__(self) -> None:
        self._last_cpu_s = tree_cpu_s()
        self._last = time.perf_counter()

    def lap(self) -> Usage:
        """What was used since the last lap or, before the first one, since this meter was made."""
        cpu_s, now = tree_cpu_s(), time.perf_counter()
        # The usage of a process is lost if nobody waits for it.
        lap = Usage(max(0.0, cpu_s - self._last_cpu_s), now - self._last)
        self._last_cpu_s, self._last = cpu_s, now
        return lap


def tree_cpu_s() -> float:
    """CPU-seconds of this process and its descendants: running ones, and ended ones that were waited for."""
    parents, cpu_s = _processes()
    below: dict[int, list[int]] = {}
    for process, parent in parents.items():
        below.setdefault(parent, []).append(process)
    total, todo = _own_cpu_s(), list(below.get(os.getpid(), ()))
    while todo:
        process = todo.pop()
        total += cpu_s[process]
        todo += below.get(process, ())
    return total


def _processes() -> tuple[dict[int, int], dict[int, float]]:
    """For every visible process: its parent, and its CPU-seconds including children that it waited for."""
    parents, cpu_s = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_bytes()
            except OSError:  # it has ended
                continue
            # The name of the program, which may be anything, ends with the last bracket.
            fields = text.rpartition(b")")[2].split()
            parents[int(folder.name)] = int(fields[1])
            cpu_s[int(folder.name)] = sum(map(int, fields[11:15])) / _TICKS_PER_S
    return parents, cpu_s
