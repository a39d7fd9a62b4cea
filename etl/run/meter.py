"""The local engine with a meter: CPU-seconds and shuffled bytes of each job, and some of what map sides emitted."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from etl.engine import EmitFn, Exchange, Reduce, Task, Work
from etl.engines.local import LocalEngine


@dataclass
class JobUse:
    """What a job took."""

    cpu_s: float
    tasks: int
    shuffle_bytes: int = 0
    """Arrow bytes that the map side emitted."""


@dataclass
class _Meter:
    """A map side that counts what it emits and keeps some columns of it; all in one process."""

    emit: EmitFn
    schema: pa.Schema
    kept_columns: tuple[str, ...]
    num_bytes: int = 0
    kept: list[pa.RecordBatch] = field(default_factory=list)

    def __call__(self, split: Any) -> Iterator[pa.RecordBatch]:
        for batch in self.emit(split):
            batch = batch.cast(self.schema)
            self.num_bytes += batch.nbytes
            if self.kept_columns:
                self.kept.append(batch.select(self.kept_columns))
            yield batch


class MeteredEngine(LocalEngine):
    """Runs in this process.

    Args:
        keep: job to the columns of what its map side emits that are kept.

    Attributes:
        jobs: job to what it took. The name of several maps that ran as one job joins theirs with "+".
        emitted: job to the kept columns of its map side.
    """

    def __init__(self, keep: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.jobs: dict[str, JobUse] = {}
        self.emitted: dict[str, pa.Table] = {}
        self._keep = keep

    def run_splits(self, work: Work, items: Sequence[tuple[int, Any]], task: Task) -> None:
        began = time.process_time()
        super().run_splits(work, items, task)
        self.jobs[work.stage] = JobUse(time.process_time() - began, len(items))

    def run_buckets(self, work: Work, buckets: Sequence[int], exchange: Exchange, reduce: Reduce) -> None:
        columns = self._keep.get(work.stage, ())
        meter = _Meter(exchange.emit, exchange.schema, columns)
        began = time.process_time()
        super().run_buckets(work, buckets, replace(exchange, emit=meter), reduce)
        num_tasks = len(exchange.splits) + len(buckets)
        self.jobs[work.stage] = JobUse(time.process_time() - began, num_tasks, meter.num_bytes)
        if columns:
            schema = pa.schema([exchange.schema.field(name) for name in columns])
            self.emitted[work.stage] = pa.Table.from_batches(meter.kept, schema)
