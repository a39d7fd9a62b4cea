"""A shuffle on the local engine whose reducers wait for a signal: what is left of it when one comes.

python -m tests.engines.blocked_shuffle FOLDER PROCESSES [fork]

`blocked` runs it, `is_alive` looks at the processes that it names.
"""

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from etl.engine import Exchange, Work
from etl.engines.local import LocalEngine
from etl.storage.progress import Counts
from tests.environment import PROJECT
from tests.services.process import wait_until

SCHEMA = pa.schema([("bucket", pa.int32()), ("n", pa.int64())])


def emit(split):
    yield pa.record_batch([pa.array([0, 1], pa.int32()), pa.array([split, split])], schema=SCHEMA)


@dataclass(frozen=True)
class Block:
    """Leaves the number of its process in a file, then waits for ever."""

    folder: Path

    def __call__(self, bucket, batches):
        list(batches)
        partial = self.folder / f"_{bucket}"
        partial.write_text(str(os.getpid()))
        partial.rename(self.folder / f"pid-{bucket}")
        while True:
            signal.pause()
        return Counts()


def main(folder: Path, processes: int, *how: str) -> None:
    exchange = Exchange((1, 2, 3), emit, SCHEMA, ("n",), 2)
    with contextlib.closing(LocalEngine(processes)) as engine:
        if how:
            engine.fork()
        engine.run_buckets(Work("blocked", 2, 2), [0, 1], exchange, Block(folder))


@contextlib.contextmanager
def blocked(folder, processes, *how):
    """A process whose reducers wait, in a session of its own, and the numbers of the processes that they are in."""
    command = [sys.executable, "-m", "tests.engines.blocked_shuffle", folder, str(processes), *how]
    environment = {**os.environ, "TMPDIR": str(folder)}
    process = subprocess.Popen(command, cwd=PROJECT, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    try:
        wait_until(lambda: len(list(folder.glob("pid-*"))) == processes or process.poll() is not None, "the reducers")
        yield process, [int(path.read_text()) for path in folder.glob("pid-*")]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def is_alive(pid):
    """Whether there is such a process that is no zombie."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
