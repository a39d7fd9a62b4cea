"""A shuffle on the local engine whose reducers wait for a signal: what is left of it when one comes.

python -m tests.engines.blocked_shuffle FOLDER PROCESSES
"""

import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from etl.engine import Counts, Exchange, Work
from etl.engines.local import LocalEngine

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


def main(folder: Path, processes: int) -> None:
    exchange = Exchange((1, 2, 3), emit, SCHEMA, ("n",), 2)
    with contextlib.closing(LocalEngine(processes)) as engine:
        engine.run_buckets(Work("blocked", 2, 2), [0, 1], exchange, Block(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
