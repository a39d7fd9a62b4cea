"""Narrow passes over rows: the steps of a pipeline, then its cuts, each written as an aligned side table.

A pass reads only the columns that its steps need. A slow step (a model) writes checkpoints of at most 1,000 rows or 60
s below its dataset's folder, so a kill loses at most that much.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from etl.accounting import judged
from etl.digests import digest_of
from etl.engine import Resources
from etl.laws import Growth, With
from etl.mixture.cuts import HISTOGRAM, Cut, RankedCut, Search, Threshold, add_histograms, histogram
from etl.pipeline import Pipeline, open_steps
from etl.rows import Rows, RowsRef
from etl.schema import aligned
from etl.stages.context import Context
from etl.step import Selected
from etl.storage.batches import LIMITS, Limits, checkpointed
from etl.storage.build import Chunk
from etl.storage.dataset import CHECKPOINTS
from etl.storage.location import Location
from etl.storage.remote import Storage, storage_options

_SLICE_ROWS = 20
"""Number of rows that a slow step gets at once; a checkpoint is written between two slices."""
_KEYS = ("id", "source_dataset", "verdict")


@dataclass(frozen=True)
class RunSteps:
    """One split through the steps of a pipeline."""

    rows: RowsRef
    pipeline: Pipeline
    checkpoints: Location
    storage: Storage = field(default_factory=dict)
    """Options for the models that steps load."""
    limits: Limits = LIMITS

    def __call__(self, split: int) -> Iterator[Chunk]:
        columns = list(dict.fromkeys([*_KEYS, *self.pipeline.reads()]))
        schema = aligned(self.pipeline.added)
        with storage_options(self.storage):
            run = open_steps(self.pipeline.steps)

        def narrow(batch: pa.RecordBatch) -> pa.RecordBatch:
            return run(batch).select(schema.names).cast(schema)

        start = 0
        for batch in self.rows.read(split, columns):
            if self.pipeline.slow:
                slices = [batch.slice(row, _SLICE_ROWS) for row in range(0, batch.num_rows, _SLICE_ROWS)]
                folder = self.checkpoints / f"{split:05d}"
                pieces = list(checkpointed(folder, slices, narrow, self.limits, start))
                done = pa.Table.from_batches(pieces, schema=schema).combine_chunks().to_batches()[0]
            else:
                done = narrow(batch)
            yield _judged(self.pipeline.steps, batch, done, schema)
            start += batch.num_rows


def _judged(owners: Sequence[Selected], before: pa.RecordBatch, after: pa.RecordBatch, schema: pa.Schema) -> Chunk:
    """A row group of an aligned table, with the accounts of steps or cuts."""
    limits = {owner.label: owner.sources for owner in owners if owner.sources is not None}
    return judged([owner.label for owner in owners], before, after, schema, limits)


def run_pipeline(context: Context, rows: Rows, folder: str, table: str, pipeline: Pipeline) -> Rows:
    """Write DIR/<folder>, a dataset of <table>, with what the steps measured, then DIR/<cut name> for each cut.

    Raises:
        SchemaError: a step reads a missing column.
        ConfigError: an artefact of a step is missing or wrong.
    """
    pipeline.output_schema(rows.schema)
    if pipeline.steps:
        rows = _run_steps(context, rows, folder, table, pipeline)
    for cut in pipeline.cuts:
        rows = run_cut(context, rows, cut)
    return rows


def _run_steps(context: Context, rows: Rows, folder: str, table: str, pipeline: Pipeline) -> Rows:
    columns = list(dict.fromkeys([*_KEYS, *pipeline.reads()]))
    schema = aligned(pipeline.added)
    semantic = {"steps": pipeline.identity()}
    job = context.job(folder, table, schema, semantic, rows.tables(columns), rows).with_findings(pipeline.findings())
    work = RunSteps(rows.ref, pipeline, job.folder / CHECKPOINTS / job.plan_fingerprint, context.storage)
    resources = Resources(pipeline.task_cpus, pipeline.task_gpus, pipeline.task_memory_bytes)
    return rows.with_side(context.map(job, rows.splits, work, resources), schema)


def run_cut(context: Context, rows: Rows, cut: Cut) -> Rows:
    """Write DIR/<cut name> with the verdicts, after the rounds of a cut by rank."""
    # A cut's folder is its own name, whatever the stage is called.
    context = context.unnamed()
    semantic: dict[str, Any] = {"cut": cut.identity()}
    inputs = rows.tables(["verdict", *cut.needed])
    schema = aligned(pa.schema([]))
    grows = Growth(With.INPUT)
    if not isinstance(cut, RankedCut):
        job = context.job(cut.name, "VERDICT", schema, semantic, inputs, rows, grows=grows)
        return rows.with_side(context.map(job, rows.splits, ApplyCut(rows.ref, cut)), schema)
    thresholds = _search(context, rows, cut)
    stored = {group: threshold.model_dump(mode="json") for group, threshold in thresholds.items()}
    semantic = {**semantic, "thresholds": digest_of(stored)}
    job = context.job(cut.name, "VERDICT", schema, semantic, inputs, rows, grows=grows)
    job = job.with_thresholds({cut.name: stored})
    return rows.with_side(context.map(job, rows.splits, ApplyCut(rows.ref, cut, thresholds)), schema)


def _search(context: Context, rows: Rows, cut: RankedCut) -> dict[str, Threshold]:
    """The threshold of every group, sorted by group, found in rounds that are committed one by one."""
    search = Search(cut)
    inputs = rows.tables(["verdict", *cut.needed])
    while not search.done:
        prefixes = search.prefixes
        this_round = {"cut": cut.identity(), "digit": search.digit, "prefixes": prefixes}
        stage, grows = f"rounds/{cut.name}-{search.digit}", Growth(With.SPLITS)
        job = context.job(stage, "HISTOGRAM", HISTOGRAM, this_round, inputs, rows, grows=grows)
        counts = context.engine.map(job, rows.splits, CountDigits(rows.ref, cut, search.digit, prefixes))
        search.feed(add_histograms(counts.result().read()))
    return {group: search.thresholds[group] for group in sorted(search.thresholds)}


@dataclass(frozen=True)
class CountDigits:
    """One split's part of a round of the threshold search."""

    rows: RowsRef
    cut: RankedCut
    digit: int
    prefixes: dict[str, tuple[int, ...]] | None

    def __call__(self, split: int) -> Iterator[Chunk]:
        columns = list(dict.fromkeys(["id", "verdict", *self.cut.needed]))
        counts = histogram(self.cut, self.rows.read(split, columns), self.digit, self.prefixes)
        yield Chunk(counts, counts.num_rows)


@dataclass(frozen=True)
class ApplyCut:
    """One split against the thresholds."""

    rows: RowsRef
    cut: Cut
    thresholds: dict[str, Threshold] = field(default_factory=dict)

    def __call__(self, split: int) -> Iterator[Chunk]:
        columns = list(dict.fromkeys([*_KEYS, *self.cut.needed]))
        schema = aligned(pa.schema([]))
        for batch in self.rows.read(split, columns):
            yield _judged([self.cut], batch, self.cut.judge(batch, self.thresholds), schema)
