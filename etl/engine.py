"""The engine protocol: two verbs, `map` and `shuffle`; both end in a committed dataset.

Code that is the same for every engine is here: adopt a committed dataset, plan, find the splits without a receipt, let
the engine run them, commit. The two abstract methods differ; etl/engines implements them. Tasks return counts only for
the engine's display; their receipts are the result.

Maps are delayed until a result is needed (a barrier: a shuffle, a threshold, the end of the run). Maps over the same
splits then run as one job, split by split: a task writes its split of each dataset in turn, and reads what it has just
written. Each dataset is committed separately, as if its map had run alone. The file is long because it is the whole
protocol, which an engine's author has to read.
"""

import contextlib
import functools
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from etl.errors import ConfigError, StillhouseError
from etl.sorting import SortedRows
from etl.storage.build import Build, Chunk, Job, SplitWriter
from etl.storage.costs import BuildCosts, EngineCost, map_task, write_cost
from etl.storage.dataset import Dataset, DatasetLike, Pending
from etl.storage.location import Location
from etl.storage.lock import RunLock
from etl.storage.manifest import Plan
from etl.storage.progress import Counts, Writing
from etl.usage import TaskMeter, TreeMeter, Usage

MapFn = Callable[[Any], Iterable[Chunk]]
"""From a split, as the plan describes it, to what it writes. Runs on a worker, so it must pickle."""

EmitFn = Callable[[Any], Iterable[pa.RecordBatch]]
"""From a split of the map side to batches with an int32 column `bucket`."""

ReduceFn = Callable[[int, Iterator[pa.RecordBatch]], Iterable[Chunk]]
"""From a bucket and its rows, sorted, in batches of any size, to what the bucket writes."""


@dataclass(frozen=True)
class Resources:
    """What one task needs of its worker; zero keeps the engine's setting."""

    cpus: int = 0
    gpus: int = 0
    memory_bytes: int = 0


DEFAULT = Resources()
"""The engine's settings."""

WORKER = "STILLHOUSE_WORKER"
"""Environment variable with the number, from 0, of a worker process; set by engines that start their own."""


def worker_number() -> int:
    """Number of this task's process among those of its engine on this machine; 0 if there is only one.

    It is the same for all tasks of a process, so a task can choose a GPU by it.
    """
    return int(os.environ.get(WORKER, "0"))


@dataclass(frozen=True)
class Work:
    """What an engine is about to run, for its scheduler and for displays."""

    stage: str
    num_tasks: int
    of_tasks: int
    """Number of tasks of the whole dataset, including those that an earlier run has done."""
    resources: Resources = DEFAULT


Task = Callable[[int, Any], Counts]
"""Does one split, given its number and its value in the plan. Pickles; a worker process unpickles it once per job."""

Reduce = Callable[[int, Iterator[pa.RecordBatch]], Counts]
"""Does one bucket. Pickles."""


@dataclass(frozen=True)
class Exchange:
    """The map side of a shuffle and the order in which a bucket's rows arrive."""

    splits: tuple[Any, ...]
    emit: EmitFn
    schema: pa.Schema
    order: tuple[str, ...]
    num_buckets: int
    may_drop_lone: bool = False
    """Whether the reducer ignores rows whose value in the first column of the order (an int64) is unique in their
    bucket. An engine may then leave some of them out."""

    @property
    def sorter(self) -> Callable[[], SortedRows]:
        """Makes what sorts the rows of a bucket. Pickles small."""
        return functools.partial(SortedRows, self.order, may_drop_lone=self.may_drop_lone)


@dataclass(frozen=True)
class Table:
    """A table of an engine's catalog that is a source of a recipe."""

    source: str
    name: str
    columns: tuple[str, ...]
    """Columns to read; missing ones are ignored."""


@dataclass(frozen=True)
class _HeldMap:
    """A map that waits for a barrier."""

    build: Build
    plan: Plan
    fn: MapFn
    resources: Resources
    then: Callable[[Dataset], None]
    pending: Pending

    @property
    def together(self) -> tuple[int, Resources]:
        """What maps must agree on to run in one job."""
        return len(self.plan.splits), self.resources


def _pieces(group: list[_HeldMap], missing: list[set[int]], number: int) -> list[tuple[int, Any]]:
    """(place in the group, value of the split) of every map of a group that has this split to do."""
    return [(place, item.plan.splits[number]) for place, item in enumerate(group) if number in missing[place]]


def _writing(build: Build, plan: Plan, missing: Collection[int], num_map_tasks: int = 0) -> Writing:
    done = frozenset(range(len(plan.splits))).difference(missing)
    return Writing(build.ref(plan), plan.fingerprint, done, num_map_tasks)


@dataclass(frozen=True)
class _WriteSplit:
    """A task of a job of maps: writes a split of each of their datasets in turn. Pickles as far as the maps do."""

    maps: list[tuple[SplitWriter, MapFn]]

    def __call__(self, number: int, pieces: Any) -> Counts:
        counts = Counts()
        for place, split in pieces:
            writer, fn = self.maps[place]
            with writer.measured(number):
                counts += Counts.of(writer.write(number, fn(split)))
        return counts


@dataclass(frozen=True)
class _WriteBucket:
    """A task of a shuffle: writes the result of a bucket. Pickles as far as `fn` does."""

    writer: SplitWriter
    fn: ReduceFn

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Counts:
        with self.writer.measured(bucket):
            return Counts.of(self.writer.write(bucket, self.fn(bucket, batches)))


@dataclass(frozen=True)
class MeasuredEmit:
    """The map side of a shuffle; records its cost beside those of the buckets. Pickles as `emit` does.

    Measures only what `emit` does between two batches, not what the engine does with them.
    """

    emit: EmitFn
    folder: Location
    build: str

    def __call__(self, numbered: tuple[int, Any]) -> Iterator[pa.RecordBatch]:
        number, split = numbered
        meter = TaskMeter()
        with meter:
            batches = iter(self.emit(split))
        while True:
            with meter:
                batch = next(batches, None)
            if batch is None:
                break
            yield batch
        write_cost(self.folder, self.build, map_task(number), meter.usage())


class _Ledger:
    """Resources that the driver's process tree has used since the last commit.

    Within a run it covers everything from commit to commit. Outside a run it starts with the plan of a dataset, as the
    process may have done anything before.
    """

    def __init__(self) -> None:
        self._meter: TreeMeter | None = None
        self._is_kept = False

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Around a run."""
        self._meter, self._is_kept = TreeMeter(), True
        try:
            yield
        finally:
            self._meter, self._is_kept = None, False

    def open(self) -> None:
        """Work begins."""
        self._meter = self._meter or TreeMeter()

    def settle(self) -> Usage:
        """Everything since the last call."""
        assert self._meter is not None, "nothing is committed that was not planned"
        lap = self._meter.lap()
        if not self._is_kept:
            self._meter = None
        return lap


@dataclass(frozen=True)
class Written:
    """A dataset whose tasks are done."""

    build: Build
    plan: Plan
    splits: Collection[int]
    """Splits that this run wrote, not an earlier one."""
    num_map_tasks: int = 0


@dataclass(frozen=True)
class _Gather:
    """A map that does both sides of one bucket of a shuffle. Pickles as far as those do.

    A process runs the map side once and holds its few rows for all its buckets.
    """

    exchange: Exchange
    fn: ReduceFn

    def __call__(self, bucket: int) -> Iterator[Chunk]:
        with self.exchange.sorter() as rows:
            for batch in self._emitted:
                rows.add(batch.filter(pc.equal(batch.column("bucket"), bucket)))
            yield from self.fn(bucket, rows.sorted())

    def __getstate__(self) -> dict[str, Any]:
        return {"exchange": self.exchange, "fn": self.fn}

    @functools.cached_property
    def _emitted(self) -> list[pa.RecordBatch]:
        wanted = self.exchange
        return [batch.cast(wanted.schema) for split in wanted.splits for batch in wanted.emit(split)]


def nothing(*_: object) -> None:
    """Does nothing; for hooks that nobody uses."""


class Onlooker:
    """Sees what an engine is doing, to show it to people, and cannot influence it. This base class ignores it."""

    def job(self, writing: Sequence[Writing]) -> contextlib.AbstractContextManager[None]:
        """Around a job that writes datasets."""
        return contextlib.nullcontext()

    def committed(self, dataset: Dataset, wall_s: float, is_resumed: bool) -> None:
        """A dataset was committed.

        Args:
            dataset: the committed one.
            wall_s: its share of the time since the commit before.
            is_resumed: whether an earlier run wrote some of its splits.
        """


class Engine(ABC):
    """Runs tasks somewhere. Subclasses implement `run_splits` and `run_buckets`.

    Attributes:
        guard: called before a folder is cleared and before every commit; raises if this run may no longer write.
        permit: called before uncommitted work is planned; raises if this run must not do it.
        may_write: false if the output cannot be written, so that only committed datasets can be used.
        ledger: the driver's cost of the dataset that is committed next.
        onlooker: sees every job and every commit.
    """

    def __init__(self) -> None:
        self.guard: Callable[[], None] = nothing
        self.permit: Callable[[Job], None] = nothing
        self.may_write = True
        self.ledger = _Ledger()
        self.onlooker = Onlooker()
        self._held: list[_HeldMap] = []

    def map(
        self,
        job: Job,
        splits: Iterable[Any],
        fn: MapFn,
        resources: Resources = DEFAULT,
        then: Callable[[Dataset], None] = nothing,
    ) -> DatasetLike:
        """Write one dataset, split by split, at the latest when its result is needed.

        Args:
            job: what is written.
            splits: one JSON value per split; `fn` gets it as stored in the plan.
            fn: does one split.
            resources: what `fn` needs.
            then: called with the dataset as soon as it is committed.
        """
        build = Build(job)
        if job.waits and build.is_occupied():
            # The committed dataset may be the one that this map would write; the digests of its inputs decide.
            self.settle()
        if not job.waits:
            done = self._committed(build)
            if done is not None:
                then(done)
                return done
        plan = self._plan(build, splits)
        pending = Pending(build.ref(plan), self.settle)
        self._held.append(_HeldMap(build, plan, fn, resources, then, pending))
        return pending

    def settle(self) -> None:
        """Run and commit every delayed map."""
        while self._held:
            held, self._held = self._held, []
            for _, together in itertools.groupby(held, key=lambda item: item.together):
                group = list(together)
                self.ledger.open()
                missing = [set(item.build.missing(item.plan)) for item in group]
                self._run_together(group, missing)
                written = [Written(item.build, item.plan, done) for item, done in zip(group, missing, strict=True)]
                for item, dataset in zip(group, self._commit(written), strict=True):
                    item.pending.set_result(dataset)
                    item.then(dataset)

    def _run_together(self, group: list[_HeldMap], missing: list[set[int]]) -> None:
        numbers = sorted(set().union(*missing))
        if not numbers:
            return
        items = [(number, _pieces(group, missing, number)) for number in numbers]
        task = _WriteSplit([(item.build.writer(item.plan), item.fn) for item in group])
        stage = "+".join(item.build.job.stage for item in group)
        writing = [_writing(item.build, item.plan, splits) for item, splits in zip(group, missing, strict=True)]
        with self.onlooker.job(writing):
            self.run_splits(Work(stage, len(numbers), len(group[0].plan.splits), group[0].resources), items, task)

    def shuffle(self, job: Job, exchange: Exchange, fn: ReduceFn) -> Dataset:
        """Write one dataset, bucket by bucket; rows are sent to the bucket in their column `bucket`.

        Args:
            job: what is written.
            exchange: where the rows come from, the number of buckets and the order inside one.
            fn: does one bucket; it gets an empty iterator for a bucket without rows.
        """

        def run(writer: SplitWriter, missing: list[int]) -> None:
            work = Work(job.stage, len(missing), exchange.num_buckets)
            emit = MeasuredEmit(exchange.emit, writer.folder, writer.name)
            measured = replace(exchange, splits=tuple(enumerate(exchange.splits)), emit=emit)
            self.run_buckets(work, missing, measured, _WriteBucket(writer, fn))

        job = job.with_buckets(exchange.num_buckets)
        return self._write(job, range(exchange.num_buckets), run, len(exchange.splits))

    def gather(
        self, job: Job, exchange: Exchange, fn: ReduceFn, then: Callable[[Dataset], None] = nothing
    ) -> DatasetLike:
        """Like `shuffle`, delayed like a map: each bucket's task runs the map side and keeps its own rows.

        Nothing is sent between workers, so maps before and after it run in the same job. As every process runs and
        holds the whole map side, use it for no more data than a task reads at once.

        Args:
            job: what is written.
            exchange: where the rows come from, the number of buckets and the order inside one.
            fn: does one bucket.
            then: called with the dataset as soon as it is committed.
        """
        job = job.with_buckets(exchange.num_buckets)
        return self.map(job, range(exchange.num_buckets), _Gather(exchange, fn), then=then)

    def drive(self, job: Job, fn: Callable[[SplitWriter], None]) -> Dataset:
        """Write a dataset of one split on the driver: `fn` writes split 0."""

        def run(writer: SplitWriter, _: list[int]) -> None:
            with writer.measured(0):
                fn(writer)

        return self._write(job, [0], run)

    def land(self, table: Table, folder: Location) -> Dataset:
        """Write a table of the engine's catalog as a dataset, unless it exists and the table has not changed.

        Args:
            table: the table to read.
            folder: of the dataset.

        Raises:
            ConfigError: the engine has no catalog.
            SourceError: there is no such table, or it has none of the columns.
        """
        raise ConfigError(
            f"sources.{table.source}.table={table.name}: only the Spark engine can read tables of a catalog; use "
            f"it, or give sources.{table.source}.path"
        )

    def _write(
        self, job: Job, splits: Iterable[Any], run: Callable[[SplitWriter, list[int]], None], num_map_tasks: int = 0
    ) -> Dataset:
        """The dataset, at once: committed already, or after `run` has written the missing splits."""
        self.settle()
        build = Build(job)
        done = self._committed(build)
        if done is not None:
            return done
        plan = self._plan(build, splits)
        missing = build.missing(plan)
        if missing:
            with self.onlooker.job([_writing(build, plan, missing, num_map_tasks)]):
                run(build.writer(plan), missing)
        (dataset,) = self._commit([Written(build, plan, missing, num_map_tasks)])
        return dataset

    def _committed(self, build: Build) -> Dataset | None:
        """The dataset, if it is committed already."""
        return build.reopen() if self.may_write else build.committed()

    def _plan(self, build: Build, splits: Iterable[Any]) -> Plan:
        self.permit(build.job)
        self.guard()
        self.ledger.open()
        return build.plan(splits)

    def _commit(self, written: Sequence[Written]) -> Iterator[Dataset]:
        """Commit the datasets of one job."""
        costs = [one.build.costs(one.plan, one.num_map_tasks) for one in written]
        for one, cost, engine in zip(written, costs, self._engine_costs(written, costs), strict=True):
            self.guard()
            dataset = one.build.commit(one.plan, cost, engine)
            self.onlooker.committed(dataset, engine.wall_s, len(one.splits) < len(one.plan.splits))
            yield dataset

    def _engine_costs(self, written: Sequence[Written], costs: Sequence[BuildCosts]) -> Iterator[EngineCost]:
        """The engine's cost of one job beyond its tasks, divided among its datasets like their tasks' CPU-seconds."""
        spent = self.ledger.settle()
        in_tasks = [cost.cpu_s(one.splits) for one, cost in zip(written, costs, strict=True)]
        total_s = sum(in_tasks)
        beside_s = max(0.0, spent.cpu_s - total_s) if self.tasks_run_here else spent.cpu_s
        for task_s in in_tasks:
            share = task_s / total_s if total_s else 1 / len(in_tasks)
            yield EngineCost(cpu_s=round(beside_s * share, 6), wall_s=round(spent.wall_s * share, 6))

    @property
    def tasks_run_here(self) -> bool:
        """Whether tasks run in the process tree of the driver, whose CPU-seconds then contain theirs."""
        return True

    @abstractmethod
    def run_splits(self, work: Work, items: Sequence[tuple[int, Any]], task: Task) -> None:
        """Call `task` once (or more often, after a failure) for every (number, value) of a split.

        Raises:
            StillhouseError: what a task raised, as the class that it was.
        """

    @abstractmethod
    def run_buckets(self, work: Work, buckets: Sequence[int], exchange: Exchange, reduce: Reduce) -> None:
        """Call `reduce` once (or more often) for every bucket in `buckets`, with its rows sorted by exchange.order.

        A bucket without rows is called too. Nulls sort first, binary and strings bytewise.

        Raises:
            StillhouseError: what `exchange.emit` or `reduce` raised; then no bucket is written from half of its rows.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the engine's resources."""


@contextlib.contextmanager
def sole_writer(engine: Engine, output: Location) -> Iterator[None]:
    """Hold the lock of an output, and let the engine commit only while this run has it.

    Raises:
        DataError: another run is active there.
    """
    with RunLock(output) as lock, engine.ledger.kept():
        engine.guard = lock.check
        try:
            yield
        finally:
            engine.guard = nothing


@contextlib.contextmanager
def reader(engine: Engine, refusal: StillhouseError) -> Iterator[None]:
    """Let the engine use committed datasets of a read-only output; anything else raises the refusal."""

    def refuse() -> None:
        raise refusal

    engine.guard, engine.may_write = refuse, False
    try:
        yield
    finally:
        engine.guard, engine.may_write = nothing, True
