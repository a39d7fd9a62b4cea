"""The engine protocol: two verbs, `map` and `shuffle`, and both end in a committed dataset.

What is the same on every engine is here: adopt a dataset that is already committed, plan, find the splits without a
receipt, let the engine run them, commit. What differs is in the two abstract methods that etl/engines implements.
Tasks hand back counts for the engine's own display; their receipts are the result.

Maps are held back until a result is asked for (a barrier: a shuffle, a threshold, the end of the run). Those over the
same splits then run as one job, split by split: a task does its split of each dataset in turn, and reads what it wrote
a moment ago. Each dataset is committed by itself, as if its map had run alone. The file is long because it is the whole
protocol: what an engine's author has to read.
"""

import contextlib
import functools
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
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
from etl.storage.manifest import FLOW, Plan, Receipt
from etl.usage import TaskMeter, TreeMeter, Usage

MapFn = Callable[[Any], Iterable[Chunk]]
"""From a split, as the plan describes it, to what it writes. Runs on a worker, so it must pickle."""

EmitFn = Callable[[Any], Iterable[pa.RecordBatch]]
"""From a split of the map side to batches with an int32 column `bucket`."""

ReduceFn = Callable[[int, Iterator[pa.RecordBatch]], Iterable[Chunk]]
"""From a bucket and its rows, sorted, in batches of any size, to what the bucket writes."""


@dataclass(frozen=True)
class Resources:
    """What one task needs of its worker; zero leaves it to the engine's own settings."""

    cpus: int = 0
    gpus: int = 0
    memory_bytes: int = 0


DEFAULT = Resources()
"""Whatever the engine gives."""

WORKER = "STILLHOUSE_WORKER"
"""Environment variable that an engine with worker processes of its own sets in each of them: its number, from 0."""


def worker_number() -> int:
    """Number of the process that runs this task among those of its engine on this machine; 0 where there is one alone.

    It is the same for all tasks that a process runs, so a task can choose a GPU by it.
    """
    return int(os.environ.get(WORKER, "0"))


@dataclass(frozen=True)
class Work:
    """What an engine is about to run, for its scheduler and for people who watch."""

    stage: str
    num_tasks: int
    of_tasks: int
    """Tasks of the whole dataset; those that are not to run were done by an earlier run."""
    resources: Resources = DEFAULT


@dataclass(frozen=True)
class Counts:
    """What one task did, for an engine's counters; the dataset's own accounts come from receipts alone."""

    rows_in: int = 0
    rows_out: int = 0
    tokens: int = 0
    dropped: int = 0

    @classmethod
    def of(cls, receipt: Receipt) -> "Counts":
        losses = [
            rows
            for steps in receipt.accounting.values()
            for counts in steps.values()
            for reason, rows in counts.items()
            if reason not in FLOW
        ]
        tokens = sum(part.tokens or 0 for part in receipt.parts)
        return cls(receipt.rows_in, receipt.rows_out, tokens, sum(losses))

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


Task = Callable[[int, Any], Counts]
"""Does one split: its number and its value in the plan. Pickles; a worker process unpickles it once a job."""

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
    """Whether the reducer is the same without rows that no other row of their bucket equals in the first column of the
    order, an int64: an engine may leave some of them out."""

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
    """What is read of it; those that it lacks are left out."""


@dataclass(frozen=True)
class _HeldMap:
    """A map whose work waits for a barrier."""

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
    """A task of a shuffle: writes what a bucket comes to. Pickles as far as `fn` does."""

    writer: SplitWriter
    fn: ReduceFn

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Counts:
        with self.writer.measured(bucket):
            return Counts.of(self.writer.write(bucket, self.fn(bucket, batches)))


@dataclass(frozen=True)
class MeasuredEmit:
    """The map side of a shuffle, which leaves what it took beside the costs of the buckets. Pickles as `emit` does.

    Only what `emit` does between two batches is measured: what the engine does with them is its own.
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
    """What the driver's process tree has taken that no commit accounts for yet.

    Inside a run it goes on from commit to commit, so that all that the driver does is in it; outside of one it begins
    with the plan of a dataset, since the process may have done anything else before.
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
        """All since the last time."""
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
    """Those that were written now, and not by an earlier run."""
    num_map_tasks: int = 0


@dataclass(frozen=True)
class _Gather:
    """A map that does a bucket of a shuffle, both sides of it. Pickles as far as those do."""

    exchange: Exchange
    fn: ReduceFn

    def __call__(self, bucket: int) -> Iterator[Chunk]:
        wanted = self.exchange
        with wanted.sorter() as rows:
            for split in wanted.splits:
                for batch in wanted.emit(split):
                    mine = batch.cast(wanted.schema)
                    rows.add(mine.filter(pc.equal(mine.column("bucket"), bucket)) if wanted.num_buckets > 1 else mine)
            yield from self.fn(bucket, rows.sorted())


def nothing(*_: object) -> None:
    """For a hook that nobody uses."""


class Engine(ABC):
    """Runs tasks somewhere. Subclasses implement `run_splits` and `run_buckets`.

    Attributes:
        guard: called before a folder is cleared and before every commit; raises when this run may not write any more.
        permit: called before work is planned that is not committed yet; raises when it is not this run's to do.
        may_write: false where the output cannot be written, so that what is committed is taken as it lies there.
        ledger: what the driver took for the dataset that is committed next.
    """

    def __init__(self) -> None:
        self.guard: Callable[[], None] = nothing
        self.permit: Callable[[Job], None] = nothing
        self.may_write = True
        self.ledger = _Ledger()
        self._held: list[_HeldMap] = []

    def map(
        self,
        job: Job,
        splits: Iterable[Any],
        fn: MapFn,
        resources: Resources = DEFAULT,
        then: Callable[[Dataset], None] = nothing,
    ) -> DatasetLike:
        """Write one dataset, split by split, at the latest when its result is asked for.

        Args:
            job: what is written.
            splits: one JSON value for each split; `fn` gets it as the plan stores it.
            fn: does one split.
            resources: what `fn` needs.
            then: called with the dataset when it is committed, or at once when it is already.
        """
        build = Build(job)
        if job.waits and build.is_occupied():
            # What is committed there may be what this map would write; only its inputs' digests can tell.
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
        """Run and commit every map that is held back."""
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
        self.run_splits(Work(stage, len(numbers), len(group[0].plan.splits), group[0].resources), items, task)

    def shuffle(self, job: Job, exchange: Exchange, fn: ReduceFn) -> Dataset:
        """Write one dataset, bucket by bucket; rows travel to the bucket that their column `bucket` names.

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
        """As `shuffle` of few rows, held back as a map is: the task of a bucket runs the map side and keeps its rows.

        Nothing crosses between workers, so maps before and after it run in the same job. Every bucket costs the whole
        map side: for a shuffle into one bucket, or one that moves no more than a task reads at once.

        Args:
            job: what is written.
            exchange: where the rows come from, the number of buckets and the order inside one.
            fn: does one bucket.
            then: called with the dataset when it is committed, or at once when it is already.
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
        """Write a table of the engine's catalog as a dataset, unless it is there and the table has not changed.

        Args:
            table: what is read.
            folder: of the dataset.

        Raises:
            ConfigError: the engine has no catalog.
            SourceError: there is no such table, or it has none of the columns.
        """
        raise ConfigError(
            f"sources.{table.source}.table={table.name}: only the Spark engine reads tables of a catalog; run "
            f"the recipe with it, or give sources.{table.source}.path"
        )

    def _write(
        self, job: Job, splits: Iterable[Any], run: Callable[[SplitWriter, list[int]], None], num_map_tasks: int = 0
    ) -> Dataset:
        """The dataset, now: committed already, or after `run` has written the splits that are missing."""
        self.settle()
        build = Build(job)
        done = self._committed(build)
        if done is not None:
            return done
        plan = self._plan(build, splits)
        missing = build.missing(plan)
        if missing:
            run(build.writer(plan), missing)
        (dataset,) = self._commit([Written(build, plan, missing, num_map_tasks)])
        return dataset

    def _committed(self, build: Build) -> Dataset | None:
        """The dataset, if it is there already."""
        return build.reopen() if self.may_write else build.committed()

    def _plan(self, build: Build, splits: Iterable[Any]) -> Plan:
        self.permit(build.job)
        self.guard()
        self.ledger.open()
        return build.plan(splits)

    def _commit(self, written: Sequence[Written]) -> Iterator[Dataset]:
        """Commit what one job has written."""
        costs = [one.build.costs(one.plan, one.num_map_tasks) for one in written]
        for one, cost, engine in zip(written, costs, self._engine_costs(written, costs), strict=True):
            self.guard()
            yield one.build.commit(one.plan, cost, engine)

    def _engine_costs(self, written: Sequence[Written], costs: Sequence[BuildCosts]) -> Iterator[EngineCost]:
        """What this engine took around the tasks of one job, shared by its datasets as their tasks' CPU-seconds are."""
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
        """Give back what the engine holds."""


@contextlib.contextmanager
def sole_writer(engine: Engine, output: Location) -> Iterator[None]:
    """Hold the lock of an output, and let the engine commit only while it is ours.

    Raises:
        DataError: another run is at work there.
    """
    with RunLock(output) as lock, engine.ledger.kept():
        engine.guard = lock.check
        try:
            yield
        finally:
            engine.guard = nothing


@contextlib.contextmanager
def reader(engine: Engine, refusal: StillhouseError) -> Iterator[None]:
    """Let the engine take what is committed in an output that cannot be written; anything else raises the refusal."""

    def refuse() -> None:
        raise refusal

    engine.guard, engine.may_write = refuse, False
    try:
        yield
    finally:
        engine.guard, engine.may_write = nothing, True
