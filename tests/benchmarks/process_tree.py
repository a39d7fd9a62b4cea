"""CPU-seconds and memory of a command and of all that it starts, read from /proc 10 times a second. Linux only.

What the kernel adds up for a parent (wait4, `time`) leaves out children that nobody waits for: pyspark's daemon ignores
SIGCHLD, so Spark's Python workers, half of a run, are in no such sum. Sampling sees them, and loses what each process
takes after its last sample, and processes that live between two. Neither counts anything twice, so the larger of the
two sums is reported. Reading takes about 3 ms of the sampling process, which is outside the tree.
"""

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, NamedTuple

POLL_S: Final = 0.1
_SHARES_EVERY: Final = 10
"""Samples from one look at proportional sets to the next; one takes the kernel some milliseconds a process."""
LEFTOVER_S: Final = 20.0
"""How long processes that outlive the command are still watched: a JVM takes a while to go."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Process(NamedTuple):
    """What /proc/PID/stat says of a process.

    Attributes:
        name: of the executable, at most 15 characters.
        parent: its PID.
        cpu_s: user and system time of its own, without children.
        start: in ticks since the machine started; distinguishes two processes with one PID.
        resident_bytes: resident set, shared pages included.
    """

    name: str
    parent: int
    cpu_s: float
    start: int
    resident_bytes: int


@dataclass(frozen=True)
class TreeUse:
    """What a command and all that it started took.

    Attributes:
        exit_code: of the command.
        wall_s: seconds until it ended.
        cpu_s: CPU-seconds of the tree.
        cpu_s_by_kind: sampled CPU-seconds of `driver` (the command's own process), `jvm` and `workers` (all others).
        peak_bytes: the largest sum of resident sets at one time; a page that processes share counts once in each.
        peak_pss_bytes: the same of proportional sets, in which a page of n processes counts an nth in each; looked at
            once a second.
    """

    exit_code: int
    wall_s: float
    cpu_s: float
    cpu_s_by_kind: dict[str, float]
    peak_bytes: int
    peak_pss_bytes: int


def read_pss(pid: int) -> int:
    """Bytes of the proportional set of a process; 0 where it has ended or is somebody else's."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def read_process(pid: int) -> Process:
    """One process.

    Raises:
        OSError: there is none with this PID.
    """
    text = Path(f"/proc/{pid}/stat").read_text()
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    ticks = int(fields[11]) + int(fields[12])
    return Process(name, int(fields[1]), ticks / _TICKS, int(fields[19]), int(fields[21]) * _PAGE_BYTES)


def read_processes() -> dict[int, Process]:
    """Every process of this machine, by PID."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = read_process(int(entry.name))
            except OSError:
                continue
    return found


def descendants(table: dict[int, Process], roots: set[int]) -> set[int]:
    """PIDs below the roots, and the roots that are in the table."""
    found = roots & table.keys()
    more = found
    while more:
        more = {pid for pid, process in table.items() if process.parent in found} - found
        found |= more
    return found


def run_measured(command: Sequence[str], messages: IO[str], answers: IO[str] | int | None = None) -> TreeUse:
    """Run a command to its end, its output going to the two files (`answers`: stdout, by default also `messages`)."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=messages if answers is None else answers, stderr=messages)
    tree = _Tree(process.pid)
    while True:
        tree.look()
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(POLL_S)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.monotonic() - began
    while tree.look() and time.monotonic() < began + wall_s + LEFTOVER_S:
        time.sleep(POLL_S)
    by_kind = tree.cpu_s_by_kind()
    cpu_s = max(sum(by_kind.values()), usage.ru_utime + usage.ru_stime)
    return TreeUse(process.returncode, wall_s, cpu_s, by_kind, tree.peak_bytes, tree.peak_pss_bytes)


class _Tree:
    """What has been seen of the processes below a root."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._seen: dict[tuple[int, int], Process] = {}
        self._looks = 0
        self.peak_bytes = 0
        self.peak_pss_bytes = 0

    def look(self) -> bool:
        """Take a sample; False when no process of the tree is left."""
        table = read_processes()
        # Whoever was seen once is looked at whatever its parent is now: when a parent dies, init takes its children.
        known = {pid for pid, process in table.items() if (pid, process.start) in self._seen}
        alive = descendants(table, known | {self._root} if not self._seen else known)
        self._seen |= {(pid, table[pid].start): table[pid] for pid in alive}
        self.peak_bytes = max(self.peak_bytes, sum(table[pid].resident_bytes for pid in alive))
        if self._looks % _SHARES_EVERY == 0:
            self.peak_pss_bytes = max(self.peak_pss_bytes, sum(map(read_pss, alive)))
        self._looks += 1
        return bool(alive)

    def cpu_s_by_kind(self) -> dict[str, float]:
        """Of `driver`, `jvm` and `workers`, as far as there were any."""
        found: dict[str, float] = {}
        for (pid, _), process in self._seen.items():
            kind = "driver" if pid == self._root else "jvm" if process.name == "java" else "workers"
            found[kind] = found.get(kind, 0.0) + process.cpu_s
        return found
