"""The Beam engine: a job of `map` is one ParDo over splits, `shuffle` is ParDo, GroupByKey and a sorting ParDo.

Any runner works: the in-process one (the default; no JVM, no network), a portable job service, Dataflow. Each job is a
pipeline of its own, and the engine waits for it. An element of a shuffle is an Arrow batch with rows of one bucket, so
there is no Python object per row. On this machine the batches are in scratch files below TMPDIR, as large as the
shuffle, and the elements are references to them; elsewhere the runner moves the batches. In process, a job of `map`
costs 35 ms and a shuffle 75 ms.

For people without a recipe: `ApplySteps` and `ToArrow`.
"""

import contextlib
import copy
import gc
import re
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics.metric import Metrics
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
    TestOptions,
)
from apache_beam.runners.runner import PipelineState

from etl.arrays import Bools
from etl.engine import EmitFn, Engine, Exchange, Reduce, Resources, Task, Work
from etl.engines.beam_frames import ApplySteps, RecordBatchCoder, TableCoder, ToArrow, no_rows
from etl.engines.beam_options import (
    WorkerOptions,
    is_one_worker,
    pipeline_options,
    runner_name,
    runner_of,
    runs_here,
)
from etl.engines.bucket_slices import bucket_slices
from etl.engines.spill import Spill, WriteSpill
from etl.errors import ConfigError, DataError, StillhouseError
from etl.sorting import SortedRows
from etl.storage.location import Location
from etl.storage.progress import Counts

__all__ = ["ApplySteps", "BeamEngine", "JobNotRun", "RecordBatchCoder", "TableCoder", "ToArrow"]

_ERROR = b"stillhouse.error"
"""Key in the schema metadata of a batch without rows that carries an error of the map side."""


# --- the engine ----------------------------------------------------------------------------------------------------


class JobNotRun(Exception):  # nothing went wrong
    """A job was only described (--template_location, --dry_run), not run, so the run cannot continue."""


class BeamEngine(Engine):
    """Runs tasks as Beam jobs, in sequence.

    Args:
        options: Beam's options, or flags for them; the default runner is the in-process one.
        report: gets one line for each job that runs elsewhere.
        scratch: folder that driver and workers reach, for passing errors back; None takes a local one, which only works
            for runners on this machine.

    Raises:
        ConfigError: a flag is wrong, or remote workers cannot reach the scratch folder.
    """

    def __init__(
        self,
        options: PipelineOptions | Sequence[str] = (),
        report: Callable[[str], None] = print,
        scratch: str | Location | None = None,
    ) -> None:
        super().__init__()
        # Importing Beam leaves 150,000 objects; a full collection, which its jobs cause, takes 0.2 s to visit them.
        gc.freeze()
        self.options = options if isinstance(options, PipelineOptions) else pipeline_options(options)
        self._report = report
        self._scratch = None if scratch is None else Location.of(scratch)
        if not runs_here(self.options) and (self._scratch is None or self._scratch.is_local):
            raise ConfigError(
                f"the workers of {self.options.view_as(StandardOptions).runner} cannot reach {scratch}; give a URL "
                "such as gs://bucket/folder"
            )
        named = self.options.view_as(GoogleCloudOptions).job_name
        self._job_prefix = named or f"stillhouse-{uuid.uuid4().hex[:8]}"

    def close(self) -> None:
        """Nothing is held between jobs."""

    @property
    def tasks_run_here(self) -> bool:
        return runs_here(self.options)

    def run_splits(self, work: Work, items: Sequence[tuple[int, Any]], task: Task) -> None:
        with self._failure() as failure:
            run = _RunTask(task, _Worker(work.stage, failure))
            self._run(work, _MapJob(self._dealt(items), run, self._hints(work.resources)))
            failure.raise_if_any()

    def run_buckets(self, work: Work, buckets: Sequence[int], exchange: Exchange, reduce: Reduce) -> None:
        wanted = np.zeros(exchange.num_buckets, np.bool_)
        wanted[list(buckets)] = True
        with self._failure() as failure, self._carrier(exchange, wanted) as carry:
            emit = _Emit(carry, exchange.schema, wanted)
            run = _Reduce(exchange.sorter, reduce, _Worker(work.stage, failure))
            splits, hints = self._dealt(list(enumerate(exchange.splits))), self._hints(work.resources)
            self._run(work, _ShuffleJob(splits, exchange.schema, buckets, emit, run, hints))
            failure.raise_if_any()

    def _dealt(self, values: Sequence[Any]) -> "_Deal":
        return _Deal(values, to_many=not is_one_worker(self.options))

    @contextlib.contextmanager
    def _carrier(self, exchange: Exchange, wanted: Bools) -> Iterator["_Carry"]:
        """How rows get to their bucket: in scratch files on this machine, through the runner elsewhere.

        The in-process runner would copy every byte several times and hold all of them.
        """
        if not runs_here(self.options):
            yield _InBatches(exchange.emit, exchange.schema, wanted)
            return
        with tempfile.TemporaryDirectory(prefix="stillhouse-shuffle-") as folder:
            yield _InSpills(WriteSpill(exchange.emit, exchange.schema, wanted, Path(folder)))

    @contextlib.contextmanager
    def _failure(self) -> Iterator["_Failure"]:
        name = f"_failure-{uuid.uuid4().hex}.txt"
        if self._scratch is not None:
            yield _Failure(self._scratch / name)
            return
        with tempfile.TemporaryDirectory(prefix="stillhouse-beam-") as folder:
            yield _Failure(Location.of(folder) / name)

    def _hints(self, resources: Resources) -> dict[str, Any]:
        hints: dict[str, Any] = {}
        if resources.cpus:
            hints["cpu_count"] = str(resources.cpus)
        if resources.memory_bytes:
            hints["min_ram"] = f"{resources.memory_bytes}B"
        gpu_type = self.options.view_as(WorkerOptions).gpu_type
        if resources.gpus and gpu_type:
            hints["accelerator"] = f"type:{gpu_type};count:{resources.gpus};install-nvidia-driver"
        elif resources.gpus and not runs_here(self.options):
            raise ConfigError("this stage needs a GPU on its workers; choose one with --gpu_type, e.g. nvidia-l4")
        return hints

    def _job_options(self, stage: str) -> PipelineOptions:
        """Options of one job: its own, as runners write into them. Its name and template are the stage's."""
        options = copy.deepcopy(self.options)
        cloud = options.view_as(GoogleCloudOptions)
        name = re.sub("[^a-z0-9]+", "-", stage.lower()).strip("-")
        cloud.job_name = f"{self._job_prefix}-{name}"
        if cloud.template_location:
            cloud.template_location = f"{cloud.template_location.rstrip('/')}/{name}"
        return options

    def _run(self, work: Work, job: beam.PTransform[Any, Any]) -> None:
        options = self._job_options(work.stage)
        pipeline = beam.Pipeline(runner=runner_of(options), options=options)
        _ = pipeline | work.stage >> job
        result = pipeline.run()
        self._stop_if_not_run(work, options)
        self._tell(work, options, result)
        state = result.wait_until_finish()
        if state not in (None, PipelineState.DONE):
            raise DataError(f"the job of {work.stage} ended in state {state}; run again to resume")

    def _stop_if_not_run(self, work: Work, options: PipelineOptions) -> None:
        template = options.view_as(GoogleCloudOptions).template_location
        if template and runner_name(options) == "dataflow":
            raise JobNotRun(
                f"{work.stage}: the template is {template}; start a job from it, then run this command again to "
                "commit the job's output and to get the next template"
            )
        if options.view_as(TestOptions).dry_run:
            raise JobNotRun(f"{work.stage}: the job was built but, because of --dry_run, not submitted")

    def _tell(self, work: Work, options: PipelineOptions, result: Any) -> None:
        if runner_name(options) == "dataflow":
            cloud = options.view_as(GoogleCloudOptions)
            self._report(
                f"{work.stage}  {work.num_tasks} of {work.of_tasks} tasks: {cloud.job_name} "
                f"https://console.cloud.google.com/dataflow/jobs/{cloud.region}/{result.job_id()}?project={cloud.project}"
            )


# --- what runs on workers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Failure:
    """The object in which a worker stores an error that the user can fix; the first one wins.

    Such an error is the same in every attempt. On a cluster a failed element would be retried four times and come back
    as a traceback, and a pipeline has no result that reaches the driver with every runner.
    """

    place: Location

    def note(self, error: StillhouseError) -> None:
        self.place.create(error.to_text().encode())

    def raise_if_any(self) -> None:
        try:
            text = self.place.read().decode()
        except FileNotFoundError:
            return
        self.place.remove()
        raise StillhouseError.from_text(text)


@dataclass(frozen=True)
class _Worker:
    """What every task of a stage shares: its counters, and the object for its errors."""

    stage: str
    failure: _Failure

    def run(self, work: Callable[[], Counts]) -> None:
        try:
            counts = work()
        except StillhouseError as error:
            self.failure.note(error)
            return
        for name in ("rows_in", "rows_out", "tokens", "dropped"):
            Metrics.counter(f"stillhouse/{self.stage}", name).inc(getattr(counts, name))


class _RunTask(beam.DoFn):
    """Does one split."""

    def __init__(self, task: Task, worker: _Worker) -> None:
        self._task = task
        self._worker = worker

    def process(self, element: tuple[int, Any]) -> None:
        self._worker.run(lambda: self._task(*element))


@dataclass(frozen=True)
class _InBatches:
    """The rows of a split as the elements themselves."""

    emit: EmitFn
    schema: pa.Schema
    wanted: Bools
    keyed: ClassVar[Any] = tuple[int, pa.RecordBatch]
    """Type of the elements, from which Beam finds their coder."""

    def __call__(self, number: int, split: Any) -> Iterator[tuple[int, pa.RecordBatch]]:
        return bucket_slices(self.emit, split, self.schema, self.wanted)


@dataclass(frozen=True)
class _InSpills:
    """The rows of a split in a scratch file; each of its buckets gets a reference to it."""

    write: WriteSpill
    keyed: ClassVar[Any] = tuple[int, Any]

    def __call__(self, number: int, split: Any) -> Iterator[tuple[int, Spill]]:
        spill = self.write(number, split)
        return ((bucket, spill) for bucket in np.unique(spill.buckets).tolist())


_Carry = _InBatches | _InSpills


class _Emit(beam.DoFn):
    """From a numbered split of the map side to (bucket, rows), wanted buckets only; an error goes to all of them."""

    def __init__(self, carry: _Carry, schema: pa.Schema, wanted: Bools) -> None:
        self.carry = carry
        self._schema = schema
        self._wanted = wanted

    def process(self, element: tuple[int, Any]) -> Iterator[tuple[int, pa.RecordBatch | Spill]]:
        try:
            yield from self.carry(*element)
        except StillhouseError as error:
            note = no_rows(self._schema.with_metadata({_ERROR: error.to_text()}))
            for bucket in np.flatnonzero(self._wanted).tolist():
                yield bucket, note


class _Reduce(beam.DoFn):
    """Does one bucket: takes all of its batches, then hands them on sorted.

    The batches come as a stream; nothing is reduced before the last one, which may be the note of an error.
    """

    def __init__(self, sorter: Callable[[], SortedRows], reduce: Reduce, worker: _Worker) -> None:
        self._sorter = sorter
        self._reduce = reduce
        self._worker = worker

    def process(self, element: tuple[int, Iterable[pa.RecordBatch | Spill]]) -> None:
        bucket, items = element

        def work() -> Counts:
            with self._sorter() as rows:
                spills = []
                for item in items:
                    if isinstance(item, Spill):
                        spills.append(item)
                    elif (told := (item.schema.metadata or {}).get(_ERROR)) is not None:
                        raise StillhouseError.from_text(told.decode())
                    else:
                        rows.add(item)
                if spills:
                    rows.add_views(batch for spill in spills for batch in spill.read(bucket))
                return self._reduce(bucket, rows.sorted())

        self._worker.run(work)


# --- the two jobs --------------------------------------------------------------------------------------------------


class _Deal(beam.PTransform[Any, Any]):
    """Some values as elements, dealt out among the workers where there are several.

    It is `beam.Create` with fewer transforms: each costs a job in process 10 ms.
    """

    def __init__(self, values: Sequence[Any], to_many: bool) -> None:
        super().__init__()
        self._values = list(values)
        self._to_many = to_many

    def expand(self, begin: Any) -> Any:
        values = self._values
        dealt = begin | beam.Impulse() | beam.FlatMap(lambda _: values).with_output_types(Any)
        return dealt | beam.Reshuffle() if self._to_many else dealt


class _MapJob(beam.PTransform[Any, Any]):
    """Every split is an element of its own."""

    def __init__(self, deal: _Deal, task: _RunTask, hints: dict[str, Any]) -> None:
        super().__init__()
        self._deal = deal
        self._task = task
        self._hints = hints

    def expand(self, begin: Any) -> Any:
        task = beam.ParDo(self._task).with_resource_hints(**self._hints)
        return begin | "splits" >> self._deal | "task" >> task


class _ShuffleJob(beam.PTransform[Any, Any]):
    """Batches of the map side grouped by bucket; every wanted bucket gets one without rows, so that it is there."""

    def __init__(
        self,
        deal: _Deal,
        schema: pa.Schema,
        buckets: Sequence[int],
        emit: _Emit,
        reduce: _Reduce,
        hints: dict[str, Any],
    ) -> None:
        super().__init__()
        self._deal = deal
        self._schema = schema
        self._buckets = list(buckets)
        self._emit = emit
        self._reduce = reduce
        self._hints = hints

    def expand(self, begin: Any) -> Any:
        keyed = self._emit.carry.keyed
        empty = no_rows(self._schema)
        buckets = self._buckets
        opened = beam.FlatMap(lambda _: ((bucket, empty) for bucket in buckets)).with_output_types(keyed)
        seeds = begin | "buckets" >> beam.Impulse() | "open" >> opened
        rows = begin | "splits" >> self._deal | "emit" >> beam.ParDo(self._emit).with_output_types(keyed)
        reduce = beam.ParDo(self._reduce).with_resource_hints(**self._hints)
        return (rows, seeds) | "rows" >> beam.Flatten() | "group" >> beam.GroupByKey() | "reduce" >> reduce
