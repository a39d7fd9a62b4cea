"""Reports the rank and step of a hang, and stores what a rank was training on at a NaN.

Every rank has one file, `rank-00003.txt`, whose first line is its last sign of life: step, phase and time. When a rank
has made no progress for `hang_timeout_s`, a thread compares the files of all ranks (of those that share the folder),
says which rank is furthest behind, adds the Python stacks of all threads to standard error and to the file, and ends
the process with HANG_EXIT_CODE, so that a supervisor takes the other ranks down. The rank that stopped first waits
longest, so it is the first to speak. Where a native call holds the interpreter's lock and the thread cannot run,
faulthandler's own timer dumps the stacks at twice the timeout and ends the process with code 1.

A sign of life costs one small write and one timer, 0.14 ms: some six times a step, and three times a micro-batch.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pydantic import Field

from etl.config import Config

if TYPE_CHECKING:
    from training.data.collate import Pack

HANG_EXIT_CODE = 86
"""Of a process that the watchdog ended. No signal, launcher or error class of ours uses it."""

_LINE_BYTES = 256


class WatchdogConfig(Config):
    """When a run counts as hanging."""

    hang_timeout_s: float = Field(default=1800.0, gt=0)
    """Seconds without progress (a new phase of a step) after which the run is stopped; must exceed the longest
    checkpoint, evaluation, compilation or wait for data."""

    @property
    def collective_timeout_s(self) -> float:
        """How long a rank may wait for the others in one collective: longer than it takes to be called stuck."""
        return 2 * self.hang_timeout_s


@dataclass(frozen=True)
class Beat:
    """A sign of life of one rank."""

    rank: int
    step: int
    """The step that is being made, from 1."""
    phase: str
    time: float
    """Seconds since 1970."""
    count: int = 0
    """Signs of life in this step before this one; each rank gives the same ones in the same order."""

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds")
        return f"rank {self.rank} at step {self.step} in phase {self.phase} since {when}"


class Watchdog:
    """The watch over this process; one at a time, because faulthandler has one timer a process."""

    def __init__(self, config: WatchdogConfig, folder: Path, rank: int, world_size: int) -> None:
        """`folder` is a local or shared folder of the run; what an earlier run left of this rank is overwritten."""
        self._timeout_s = config.hang_timeout_s
        self._folder = folder
        self._rank = rank
        self._world_size = world_size
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._last = (time.monotonic(), 0, "start", 0)

    def __enter__(self) -> "Watchdog":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = _path(self._folder, self._rank).open("w+b", buffering=0)
        self._file.write(_line(Beat(self._rank, 0, "start", time.time())))
        self.beat(0, "start")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._over.set()
        self._thread.join()
        self._file.close()

    def beat(self, step: int, phase: str) -> None:
        """The rank has reached a phase of a step; the timer restarts."""
        count = self._last[3] + 1 if step == self._last[1] else 0
        self._last = (time.monotonic(), step, phase, count)
        os.pwrite(self._file.fileno(), _line(Beat(self._rank, step, phase, time.time(), count)), 0)
        faulthandler.dump_traceback_later(2 * self._timeout_s, exit=True, file=self._file.fileno())

    def phase(self, phase: str) -> None:
        """As `beat`, in the same step."""
        self.beat(self._last[1], phase)

    def progress(self) -> None:
        """As `beat`, in the same phase: so a rank that hangs stands behind those that wait for it further on."""
        self.beat(*self._last[1:3])

    def _watch(self) -> None:
        while not self._over.wait(min(self._timeout_s / 4, 10.0)):
            if time.monotonic() - self._last[0] > self._timeout_s:
                self._abort()

    def _abort(self) -> None:
        """Report the position of every rank and the stacks of this one's threads, and end the process."""
        standing = beats(self._folder, self._world_size)
        report = [
            f"no progress for {self._timeout_s:g} s; {behind(standing)} is behind",
            *(f"  {beat}" for beat in standing),
            f"stacks of rank {self._rank}:",
        ]
        text = "".join(f"watchdog: {line}\n" for line in report)
        for target in (self._file.fileno(), sys.__stderr__.fileno() if sys.__stderr__ else None):
            if target is not None:
                os.write(target, text.encode())
                faulthandler.dump_traceback(file=target, all_threads=True)
        os._exit(HANG_EXIT_CODE)


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.txt"


def _line(beat: Beat) -> bytes:
    """Of a fixed length, so that it can be written over in place."""
    return json.dumps(asdict(beat)).ljust(_LINE_BYTES - 1).encode()[: _LINE_BYTES - 1] + b"\n"


def beats(folder: Path, world_size: int) -> list[Beat]:
    """The last sign of life of each rank that writes to the folder, by rank; an earlier run may have had more."""
    paths = [path for path in (_path(folder, rank) for rank in range(world_size)) if path.exists()]
    lines = [path.read_bytes()[:_LINE_BYTES] for path in paths]
    return [Beat(**json.loads(line)) for line in lines if len(line) == _LINE_BYTES]


def behind(standing: Sequence[Beat]) -> Beat:
    """The rank that stopped first: the lowest step, among equals the fewest signs of life in it, then the oldest one.

    In a step of many ranks one hangs and the others wait for it further on, in a collective operation.
    """
    return min(standing, key=lambda beat: (beat.step, beat.count, beat.time))


def write_nan(folder: Path, rank: int, record: dict[str, Any], packs: "Sequence[Pack]") -> Path:
    """Keep what a rank was training on: the record of the step and the id hashes of each of its packs, as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"nan-step-{record['step']:08d}-rank-{rank:05d}.json"
    documents = [[f"{number:016x}" for number in pack.id_hash.tolist()] for pack in packs]
    path.write_text(json.dumps({**record, "rank": rank, "id_hash_of_packs": documents}, indent=1) + "\n")
    return path
