"""Running a recipe: every stage in its order, each committed below the output folder, under one lock.

A stage whose dataset is there with the same fingerprint is not run again; when nothing has changed no engine starts.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from etl.engine import Engine, nothing, sole_writer
from etl.errors import ConfigError, DataError
from etl.pipeline import Pipeline
from etl.recipe import Recipe
from etl.rows import Rows, RowsRef
from etl.schema import CLUSTER_COLUMNS, DROPPED, PROMPT, aligned
from etl.stages.context import Context
from etl.stages.dedup.semantic import output_schema as semantic_schema
from etl.stages.dedup.semantic import semantic
from etl.stages.dedup.split import run_split
from etl.stages.dedup.stage import dedup
from etl.stages.ingest import ingest
from etl.stages.kenlm import train_kenlm, with_model
from etl.stages.layout import run_layout
from etl.stages.passes import run_pipeline
from etl.storage.build import Chunk, Job
from etl.storage.dataset import Dataset, DatasetLike
from etl.storage.manifest import Accounting
from etl.storage.remote import storage_options

TABLES = {"filter": "FILTER", "score": "SCORE", "tokenize": "TOKENIZED"}
"""The table that a stage of steps writes."""


@dataclass(frozen=True)
class RunResult:
    """What a run left behind."""

    rows: Rows
    dropped: Dataset
    corpus: Dataset | None
    accounting: Accounting
    """Every step of the run, from the raw rows to the corpus."""


def check(recipe: Recipe) -> None:
    """Everything that can be wrong with a recipe before a row is read.

    Raises:
        SchemaError: a step reads a column that no earlier step adds.
        ConfigError: an artefact or the description of a source is absent or wrong.
    """
    schema = aligned(pa.schema([field for field in PROMPT if field.name != "id"]))
    for stage in recipe.stages:
        pipeline = _pipeline(recipe, stage)
        if pipeline is not None:
            schema = pipeline.output_schema(schema)
            for step in pipeline.steps:
                if not getattr(step, "model", "").startswith("run:"):
                    step.artefacts()
        elif stage == "dedup":
            recipe.dedup.survivor.check(schema)
            if recipe.dedup.near is not None:
                schema = pa.schema([*schema, *CLUSTER_COLUMNS])
        elif stage == "semantic":
            schema = semantic_schema(recipe.semantic, schema)
            if recipe.semantic.embedder == "minilm":
                recipe.semantic.step().artefacts()
    for source in recipe.sources.values():
        source.shape()


def _pipeline(recipe: Recipe, stage: str) -> Pipeline | None:
    if stage == "filter":
        return recipe.filter
    if stage == "score":
        return recipe.score
    if stage == "tokenize":
        return Pipeline(steps=(recipe.harmony, recipe.ctx))
    return None


def _steps(recipe: Recipe, stage: str) -> list[str]:
    """Steps of a stage that can drop a row."""
    if stage == "dedup":
        return ["exact", *(units.unit for units in recipe.dedup.units), "near"]
    pipeline = _pipeline(recipe, stage)
    if pipeline is None:
        return [stage]
    return list(pipeline.labels)


def run_recipe(recipe: Recipe, engine: Engine, report: Callable[[str], None]) -> RunResult:
    """Run every stage of a recipe and commit what each of them makes.

    Raises:
        StillhouseError: one of its four classes, for what a user can mend.
    """
    context = Context(engine, recipe, report)
    with storage_options(recipe.storage):
        check(recipe)
        with sole_writer(engine, context.output):
            return run_stages(context)


class _Done(Exception):
    """The one stage that was to run has run."""


def run_stage(recipe: Recipe, engine: Engine, report: Callable[[str], None], stage: str) -> None:
    """Run one stage of a recipe (`layout` writes DIR/dropped too); those before it must be committed.

    Raises:
        ConfigError: the recipe does not list the stage.
        DataError: a stage before it is not committed; the message says what to run first.
    """
    order = ("ingest", *recipe.stages)
    if stage not in order:
        raise ConfigError(f"the recipe '{recipe.name}' has no stage '{stage}'; it has {', '.join(order)}")
    context = Context(engine, recipe, report)
    reached = False

    def enter(name: str) -> None:
        nonlocal reached
        if reached:
            engine.settle()
            raise _Done
        reached = name == stage
        engine.permit = nothing if reached else functools.partial(_refuse, name, stage)

    with storage_options(recipe.storage):
        check(recipe)
        with sole_writer(engine, context.output), contextlib.suppress(_Done):
            run_stages(context, enter)


def _refuse(name: str, wanted: str, job: Job) -> None:
    raise DataError(
        f"'{wanted}' needs the stage '{name}', and {job.folder} is not committed for this recipe and input; run "
        f"jobs/stage_{name}.py first"
    )


def run_stages(context: Context, enter: Callable[[str], None] = nothing) -> RunResult:
    """Every stage in its order, through the engine of the context; `enter` is called before each."""
    recipe = context.recipe
    enter("ingest")
    rows = ingest(context)
    stages = {"ingest": "ingest"}
    corpus = None
    model: Dataset | None = None
    for stage in recipe.stages:
        enter(stage)
        if stage == "dedup":
            rows = dedup(context, rows)
        elif stage == "kenlm":
            model = train_kenlm(context, rows)
        elif stage == "semantic":
            rows = semantic(context, rows)
        elif stage == "split":
            rows = run_split(context, rows)
        elif stage == "layout":
            continue
        else:
            pipeline = _pipeline(recipe, stage)
            assert pipeline is not None, stage
            if model is not None:
                pipeline = with_model(pipeline, recipe.kenlm, model)
            rows = run_pipeline(context, rows, stage, TABLES[stage], pipeline)
        stages |= dict.fromkeys(_steps(recipe, stage), stage)
    dropped = _write_dropped(context, rows, stages)
    if "layout" in recipe.stages:
        corpus = run_layout(context, rows)
    context.engine.settle()
    accounting = corpus.manifest.accounting if corpus is not None else rows.accounting
    return RunResult(rows, dropped.result(), corpus, accounting)


@dataclass(frozen=True)
class WriteDropped:
    """The rows of one split that a step dropped, with the stage that it stood in."""

    rows: RowsRef
    stages: dict[str, str]

    def __call__(self, split: int) -> Iterator[Chunk]:
        steps = pa.array(list(self.stages), pa.string())
        names = pa.array(list(self.stages.values()), pa.string())
        for batch in self.rows.read(split, ["id", "source_dataset", "verdict"]):
            lost = batch.filter(batch.column("verdict").is_valid())
            step, reason, value = (
                pc.struct_field(lost.column("verdict"), name) for name in ("step", "reason", "value")
            )
            stage = names.take(pc.index_in(step, value_set=steps))
            columns = [lost.column("id"), lost.column("source_dataset"), stage, step, reason, value]
            yield Chunk(pa.RecordBatch.from_arrays(columns, schema=DROPPED), batch.num_rows)


def _write_dropped(context: Context, rows: Rows, stages: dict[str, str]) -> DatasetLike:
    semantic = {"stages": dict(sorted(stages.items()))}
    job = context.job("dropped", "DROPPED", DROPPED, semantic, rows.tables(["source_dataset", "verdict"]))
    return context.map(job, rows.splits, WriteDropped(rows.ref, stages))
