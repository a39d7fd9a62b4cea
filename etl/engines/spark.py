"""The Spark engine: `map` is a narrow job over an RDD of splits, `shuffle` is repartitionById + sortWithinPartitions.

With a local master both sides of a shuffle see one disk, so it is two narrow jobs with scratch files between them.
Splits are not a DataFrame because Spark's SQL takes 5 CPU-seconds of a run to load, plan and compile. Only what is
one, a shuffle on a cluster or a table, makes the session.

The context is made on first use, so a run that finds everything committed starts no JVM. It is the user's when a
session is active or when spark-submit configured one; only what nobody set gets a default. A cold local one costs about
4 s, a job about 0.1 s.

Every job has a group and a description ("stillhouse: filter, 12 of 40 splits"), which the web page, the event log and
the history server show, and an accumulator of its tasks' counts, which the log shows: Spark gives a Python accumulator
no name and therefore does not show it on the page of a stage.

For people without a recipe: `apply(df, steps)` and `read(session, path)`.
"""

import contextlib
import functools
import itertools
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl.engine import Engine, Exchange, Reduce, Table, Task, Work, Written, nothing
from etl.engines.spark_frames import apply, read
from etl.engines.spark_resources import Ask, ask
from etl.engines.spark_session import active_session, make_context, workers_fault
from etl.engines.spark_tables import land_partition, open_table
from etl.engines.spill import ReduceSpills, SpillSplit, WriteSpill
from etl.errors import StillhouseError
from etl.storage.build import Build
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from etl.storage.progress import Counts

__all__ = ["SparkEngine", "apply", "read"]

_LOG = logging.getLogger(__name__)


class SparkEngine(Engine):
    """Runs tasks as Spark jobs.

    Args:
        session: an active SparkSession; None makes or adopts one at the first job.
        report: gets a line about needs of a task that the master cannot meet.
        detail: gets a line about the Java that was found.
    """

    def __init__(
        self, session: Any = None, report: Callable[[str], None] = print, detail: Callable[[str], None] = nothing
    ) -> None:
        super().__init__()
        self._session = session
        self._context: Any = None if session is None else session.sparkContext
        self._is_ours = False
        self._report = report
        self._detail = detail
        self._told = {""}
        self._numbers = itertools.count()

    @property
    def context(self) -> Any:
        """The SparkContext of the jobs."""
        if self._context is None:
            self._session = active_session()
            if self._session is None:
                self._context = make_context(self._detail)
                self._is_ours = True
            else:
                self._context = self._session.sparkContext
        return self._context

    @property
    def session(self) -> Any:
        """The SparkSession, for work with DataFrames."""
        from pyspark.sql import SparkSession

        context = self.context
        if self._session is None:
            self._session = SparkSession(context)
        return self._session

    def close(self) -> None:
        """Stop the context, and the session, if this engine made them."""
        if self._is_ours:
            (self._session or self._context).stop()
            self._session = self._context = None
            self._is_ours = False

    @property
    def tasks_run_here(self) -> bool:
        # Nothing was run if there is no context.
        return self._context is None or str(self._context.master).startswith("local")

    def run_splits(self, work: Work, items: Sequence[tuple[int, Any]], task: Task) -> None:
        self._run_tasks(work, "splits", items, task)

    def _run_tasks(self, work: Work, unit: str, items: Sequence[tuple[Any, ...]], task: Callable[..., Counts]) -> None:
        asked = self._ask(work)
        width = min(len(items), asked.at_once or len(items))
        splits = self.context.parallelize(items, width)
        if asked.profile is not None:
            splits = splits.withResources(asked.profile)
        with self._job(work, unit) as job:
            counts = job.counts

            def run(items: Iterator[tuple[Any, ...]]) -> Iterator[str | None]:
                _see_own_gpus()
                return (_error(functools.partial(task, *item), counts) for item in items)

            job.run(splits.mapPartitions(run).collect)

    def run_buckets(self, work: Work, buckets: Sequence[int], exchange: Exchange, reduce: Reduce) -> None:
        if self.context.master.startswith("local"):
            self._run_buckets_here(work, buckets, exchange, reduce)
        else:
            self._run_buckets_anywhere(work, buckets, exchange, reduce)

    def _run_buckets_here(self, work: Work, buckets: Sequence[int], exchange: Exchange, reduce: Reduce) -> None:
        """Through scratch files on this machine: Spark would turn every row into one of its own, sort and store it."""
        wanted = np.zeros(exchange.num_buckets, np.bool_)
        wanted[list(buckets)] = True
        with tempfile.TemporaryDirectory(prefix="stillhouse-shuffle-", ignore_cleanup_errors=True) as folder:
            splits = list(enumerate(exchange.splits))
            write = SpillSplit(WriteSpill(exchange.emit, exchange.schema, wanted, Path(folder)))
            if splits:
                self._run_tasks(work, "splits", splits, write)
            spills = [write.spill_of(number) for number, _ in splits]
            read = ReduceSpills(spills, exchange.sorter, reduce)
            self._run_tasks(work, "buckets", [(bucket,) for bucket in buckets], read)

    def _run_buckets_anywhere(self, work: Work, buckets: Sequence[int], exchange: Exchange, reduce: Reduce) -> None:
        from pyspark import TaskContext
        from pyspark.sql.pandas.types import from_arrow_schema

        asked = self._ask(work)
        numbers = list(buckets)
        position = np.full(exchange.num_buckets, -1, np.int32)
        position[numbers] = np.arange(len(numbers), dtype=np.int32)
        schema = _routed(exchange.schema)
        width = max(1, len(exchange.splits))
        with self._broadcast(exchange.splits) as splits, self._job(work, "buckets") as job:
            counts = job.counts

            def emit(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
                for batch in batches:
                    for index in batch.column(0).to_pylist():
                        if index == 0:
                            yield _notes(len(numbers), exchange.schema, _OPENER)
                        try:
                            for rows in exchange.emit(splits.value[index]) if splits.value else ():
                                yield _route(rows.cast(exchange.schema), position)
                        except StillhouseError as failure:
                            yield _notes(len(numbers), exchange.schema, failure.to_text())

            def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
                _see_own_gpus()
                bucket = numbers[TaskContext().partitionId()]
                sorted_rows = (_without_notes(rows, exchange.schema) for rows in batches)
                yield _outcome(lambda: reduce(bucket, sorted_rows), counts)

            frame = self.session.range(0, width, 1, width).mapInArrow(emit, from_arrow_schema(schema))
            frame = frame.repartitionById(len(numbers), _TARGET).sortWithinPartitions(*exchange.order)
            job.run(_errors(frame.mapInArrow(run, _OUTCOME, False, asked.profile)))

    def land(self, table: Table, folder: Location) -> Dataset:
        opened = open_table(self.session, table)
        build = Build(opened.job(table, folder))
        done = self._committed(build) if opened.tells_changes else None
        if done is not None:
            return done
        self.permit(build.job)
        self.ledger.open()
        build.give_up()
        num_partitions = opened.num_partitions
        # A name of its own keeps stragglers of an earlier landing out. A table landed anew in every run has to get
        # the same name each time: it is in the files, and equal rows must give equal files.
        name = uuid.uuid4().hex if opened.tells_changes else ""
        plan = build.plan([[name, number] for number in range(num_partitions)])
        land = land_partition(build.writer(plan), opened.schema, num_partitions)
        with self._job(Work(build.job.stage, num_partitions, num_partitions), "partitions") as job:
            counts = job.counts

            def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
                yield _outcome(lambda: land(batches), counts)

            job.run(_errors(opened.frame.mapInArrow(run, _OUTCOME)))
        (dataset,) = self._commit([Written(build, plan, range(num_partitions))])
        return dataset

    def _ask(self, work: Work) -> Ask:
        """How this session provides the resources of the tasks; what it cannot provide is reported once."""
        asked = ask(self.context, work)
        if asked.line not in self._told:
            self._told.add(asked.line)
            self._report(asked.line)
        return asked

    @contextlib.contextmanager
    def _broadcast(self, value: Any) -> Iterator[Any]:
        """A value that each executor gets once, for one job; destroyed when the job is over, however it ended."""
        shared = self.context.broadcast(value)
        try:
            yield shared
        finally:
            shared.destroy()

    @contextlib.contextmanager
    def _job(self, work: Work, unit: str) -> Iterator["_Job"]:
        """A job group of its own; afterwards the thread's group is again the one that the user had set."""
        context = self.context
        before = {key: context.getLocalProperty(key) for key in _GROUP_PROPERTIES}
        job = _Job(context, work, f"stillhouse-{next(self._numbers)}-{work.stage}")
        done = "" if work.num_tasks == work.of_tasks else f"{work.num_tasks:,} of "
        context.setJobGroup(
            job.group, f"stillhouse: {work.stage}, {done}{work.of_tasks:,} {unit}", interruptOnCancel=True
        )
        try:
            yield job
        finally:
            for key, value in before.items():
                context.setLocalProperty(key, value)


class _CountsParam:
    """Adds up counts for Spark."""

    def zero(self, value: Counts) -> Counts:
        return Counts()

    def addInPlace(self, value: Counts, more: Counts) -> Counts:
        return value + more


class _Job:
    """One Spark job of ours: its group, and the counts of its tasks so far."""

    def __init__(self, context: Any, work: Work, group: str) -> None:
        self.group = group
        self.counts = context.accumulator(Counts(), _CountsParam())
        self._work = work

    def run(self, errors: Callable[[], list[str | None]]) -> None:
        """Run it, by a Spark action that returns the error of each task, or None.

        Raises:
            StillhouseError: the first one of a task.
        """
        try:
            failures = [error for error in errors() if error is not None]
        except Exception as error:
            fault = workers_fault(str(error))
            if fault is None:
                raise
            raise fault from error
        _LOG.info("%s: %s", self._work.stage, self.counts.value)
        if failures:
            raise StillhouseError.from_text(failures[0])


_GROUP_PROPERTIES = ("spark.jobGroup.id", "spark.job.description", "spark.job.interruptOnCancel")
_TARGET = "_target"
_NOTE = "_note"
_OPENER = ""
"""The note of a row that only makes its bucket exist; any other note is an error of the map side."""
_OUTCOME = "error string"


def _see_own_gpus() -> None:
    """Show CUDA the GPUs that Spark gave this task; a cluster without containers shows every task all of them."""
    from pyspark import TaskContext

    given = TaskContext().resources().get("gpu")
    if given is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(given.addresses)


def _error(work: Callable[[], Counts], counts: Any) -> str | None:
    """None, or an error that the user can fix. Counts are added to the accumulator.

    Such an error is the same in every attempt, so Spark must not see a failed task. Other exceptions are left to Spark.
    """
    try:
        counts.add(work())
    except StillhouseError as failure:
        return failure.to_text()
    return None


def _outcome(work: Callable[[], Counts], counts: Any) -> pa.RecordBatch:
    """The error of a DataFrame's task, as its only row."""
    return pa.record_batch({"error": pa.array([_error(work, counts)], pa.string())})


def _errors(frame: Any) -> Callable[[], list[str | None]]:
    return lambda: [row["error"] for row in frame.collect()]


def _routed(schema: pa.Schema) -> pa.Schema:
    fields = [field.with_nullable(True) for field in schema]  # Notes are null except in their own column.
    return pa.schema([*fields, pa.field(_TARGET, pa.int32()), pa.field(_NOTE, pa.string())])


def _route(rows: pa.RecordBatch, position: npt.NDArray[np.int32]) -> pa.RecordBatch:
    """Keep the rows of the wanted buckets (position >= 0) and say which partition each goes to."""
    targets = position[rows.column("bucket").to_numpy()]
    columns = [*rows.columns, pa.array(targets), pa.nulls(rows.num_rows, pa.string())]
    return pa.RecordBatch.from_arrays(columns, schema=_routed(rows.schema)).filter(pa.array(targets >= 0))


def _notes(num_buckets: int, schema: pa.Schema, note: str) -> pa.RecordBatch:
    """A row of nulls for every bucket, before all others in it.

    An empty note is needed because Spark's optimiser removes a shuffle without rows, including its reduce side.
    A note with an error reaches every bucket, so that none is written from the rows emitted before it.
    """
    columns = [pa.nulls(num_buckets, field.type) for field in schema]
    targets = pa.array(np.arange(num_buckets, dtype=np.int32))
    return pa.RecordBatch.from_arrays([*columns, targets, pa.repeat(note, num_buckets)], schema=_routed(schema))


def _without_notes(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    notes = rows.column(_NOTE)
    if notes.null_count < len(notes):
        told = [note for note in notes.drop_null().to_pylist() if note != _OPENER]
        if told:
            raise StillhouseError.from_text(told[0])
        rows = rows.filter(notes.is_null())
    return rows.drop_columns([_TARGET, _NOTE]).cast(schema)
