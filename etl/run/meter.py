"""The local engine with a meter: CPU-seconds and shuffled bytes of each job, and some columns from map sides."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from etl.engine import DEFAULT, EmitFn, Exchange, MapFn, Reduce, ReduceFn, Resources, Task, Work, nothing
from etl.engines.local import LocalEngine
from etl.storage.build import Job, SplitWriter
from etl.storage.dataset import Dataset, DatasetLike


@dataclass
class JobUse:
    """What a job used."""

    cpu_s: float
    tasks: int
    shuffle_bytes: int = 0
    """Arrow bytes that the map side emitted."""
    shuffle_rows: int = 0


@dataclass
class _Meter:
    """A map side that counts what it emits and keeps some columns of it; all in one process."""

    emit: EmitFn
    schema: pa.Schema
    kept_columns: tuple[str, ...]
    num_bytes: int = 0
    num_rows: int = 0
    kept: list[pa.RecordBatch] = field(default_factory=list)

    def __call__(self, split: Any) -> Iterator[pa.RecordBatch]:
        for batch in self.emit(split):
            batch = batch.cast(self.schema)
            self.num_bytes += batch.nbytes
            self.num_rows += batch.num_rows
            if self.kept_columns:
                self.kept.append(batch.select(self.kept_columns))
            yield batch


class MeteredEngine(LocalEngine):
    """Runs in this process.

    Attributes:
        jobs: every job by the name of its dataset, in the order in which the stages asked for it.
        uses: what each job used, in the order in which they ran. Several maps that ran as one have one entry, their
            names joined with "+"; a job without a task has none.
        emitted: by the name of the job's dataset, the columns of its map side that its `Growth` reads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, Job] = {}
        self.uses: dict[str, JobUse] = {}
        self.emitted: dict[str, pa.Table] = {}

    def map(
        self,
        job: Job,
        splits: Iterable[Any],
        fn: MapFn,
        resources: Resources = DEFAULT,
        then: Callable[[Dataset], None] = nothing,
    ) -> DatasetLike:
        self.jobs[job.stage] = job
        return super().map(job, splits, fn, resources, then)

    def shuffle(self, job: Job, exchange: Exchange, fn: ReduceFn) -> Dataset:
        self.jobs[job.stage] = job
        return super().shuffle(job, exchange, fn)

    def gather(
        self, job: Job, exchange: Exchange, fn: ReduceFn, then: Callable[[Dataset], None] = nothing
    ) -> DatasetLike:
        """Like a shuffle: rows that are gathered in a sample cross the network when there are more of them."""
        dataset = self.shuffle(job, exchange, fn)
        then(dataset)
        return dataset

    def drive(self, job: Job, fn: Callable[[SplitWriter], None]) -> Dataset:
        self.settle()
        self.jobs[job.stage] = job
        began = time.process_time()
        dataset = super().drive(job, fn)
        self.uses[job.stage] = JobUse(time.process_time() - began, 1)
        return dataset

    def run_splits(self, work: Work, items: Sequence[tuple[int, Any]], task: Task) -> None:
        began = time.process_time()
        super().run_splits(work, items, task)
        self.uses[work.stage] = JobUse(time.process_time() - began, len(items))

    def run_buckets(self, work: Work, buckets: Sequence[int], exchange: Exchange, reduce: Reduce) -> None:
        columns = self.jobs[work.stage].grows.looks_at
        meter = _Meter(exchange.emit, exchange.schema, columns)
        began = time.process_time()
        super().run_buckets(work, buckets, replace(exchange, emit=meter), reduce)
        num_tasks = len(exchange.splits) + len(buckets)
        self.uses[work.stage] = JobUse(time.process_time() - began, num_tasks, meter.num_bytes, meter.num_rows)
        if columns:
            schema = pa.schema([exchange.schema.field(name) for name in columns])
            self.emitted[work.stage] = pa.Table.from_batches(meter.kept, schema)
