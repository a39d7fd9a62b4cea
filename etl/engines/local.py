"""The local engine: both verbs in this process or in a pool of processes on this machine. No JVM, no service.

A shuffle goes over local scratch files below TMPDIR. The map side of a split writes one Arrow file, its rows in slices
of one bucket each; a bucket then reads its slices from all of them and sorts them (etl.sorting). So no process holds a
shuffle: a worker holds some 130 MB on the map side and at most twice `etl.machine.held_bytes()` on the other. Scratch
takes the bytes of the shuffle and is removed when the shuffle ends, also by an error or Ctrl-C.

Costs nothing to start in this process. A pool costs 1.5 CPU-seconds of imports a worker, once, or 10 ms where `fork` is
called before anything else is done (etl.engines.pool).
"""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from etl.engine import Engine, Exchange, Reduce, Task, Work
from etl.engines.pool import WorkerPool, may_fork
from etl.engines.spill import ReduceSpills, Spill, WriteSpill
from etl.errors import ConfigError
from etl.storage.progress import Counts

_LOG = logging.getLogger(__name__)


class LocalEngine(Engine):
    """Runs tasks on this machine.

    A task that needs `cpus` counts as that many processes; the user has to divide memory and GPUs. With a pool,
    `etl.engine.worker_number()` says on a task's side which process it is in, from 0.

    Args:
        processes: 1 runs everything in this process, in sequence; more are workers of a pool.

    Raises:
        ConfigError: fewer than one process.
    """

    def __init__(self, processes: int = 1) -> None:
        super().__init__()
        if processes < 1:
            raise ConfigError(f"processes={processes}: the local engine needs at least 1")
        self._pool = WorkerPool(processes) if processes > 1 else None

    def fork(self) -> None:
        """Start the workers now, as forks of this process, if that is possible (etl.engines.pool)."""
        if self._pool is not None and may_fork():
            self._pool.fork()

    def close(self) -> None:
        """End the workers, if there are any."""
        if self._pool is not None:
            self._pool.close()

    def run_splits(self, work: Work, items: Sequence[tuple[int, Any]], task: Task) -> None:
        with _counted(work) as count:
            self._run(work, task, items, count)

    def run_buckets(self, work: Work, buckets: Sequence[int], exchange: Exchange, reduce: Reduce) -> None:
        wanted = np.zeros(exchange.num_buckets, np.bool_)
        wanted[list(buckets)] = True
        pool_folder = None if self._pool is None else self._pool.folder
        with (
            _counted(work) as count,
            tempfile.TemporaryDirectory(
                prefix="stillhouse-shuffle-", dir=pool_folder, ignore_cleanup_errors=True
            ) as folder,
        ):
            spills: list[Spill] = []
            write = WriteSpill(exchange.emit, exchange.schema, wanted, Path(folder))
            self._run(work, write, list(enumerate(exchange.splits)), spills.append)
            read = ReduceSpills(sorted(spills, key=lambda spill: spill.path), exchange.sorter, reduce)
            self._run(work, read, [(bucket,) for bucket in buckets], count)

    def _run(
        self, work: Work, task: Callable[..., Any], calls: Sequence[tuple[Any, ...]], done: Callable[[Any], None]
    ) -> None:
        if self._pool is None:
            for call in calls:
                done(task(*call))
            return
        at_once = max(1, self._pool.processes // max(1, work.resources.cpus))
        self._pool.run(task, calls, at_once, done)


@contextlib.contextmanager
def _counted(work: Work) -> Iterator[Callable[[Counts], None]]:
    """Around a job: collects the counts of each task, and writes their sum to the log."""
    counts: list[Counts] = []
    yield counts.append
    _LOG.info("%s: %s", work.stage, sum(counts, Counts()))
