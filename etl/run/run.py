"""Running a recipe: every stage in its order, each committed below the output folder, under one lock.

A stage whose dataset is there with the same fingerprint is not run again; when nothing has changed no engine starts.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from etl.engine import Engine, Onlooker, nothing, reader, sole_writer
from etl.errors import ConfigError, DataError, StillhouseError
from etl.laws import Growth, With
from etl.library_log import log_bytes, log_path
from etl.rows import Rows, RowsRef
from etl.run.costs import cost_lines, keep_costs, run_costs
from etl.run.fields import fields_of
from etl.run.funnel import last_lines
from etl.run.places import check_places
from etl.run.recipe import DROPPED_FOLDER, Recipe
from etl.run.record import record_of
from etl.run.revisions import pinned
from etl.run.told import Lines, StageLines, StageOutcome
from etl.schema import DROPPED, PROMPT
from etl.stages import ingest
from etl.stages.context import Context
from etl.stages.keyed import uuid_texts
from etl.storage.build import Chunk, Job
from etl.storage.costs import RunCosts
from etl.storage.dataset import Dataset, DatasetLike
from etl.storage.manifest import Accounting
from etl.storage.opened import Run
from etl.storage.record import LOG, write_record
from etl.storage.remote import is_refused, storage_options
from etl.storage.stale import stale_folders, stale_lines
from etl.voice import Voice


@dataclass(frozen=True)
class RunResult:
    """What a run left behind."""

    rows: Rows
    dropped: Dataset
    corpus: Dataset | None
    accounting: Accounting
    """Every step of the run, from reading raw rows to the corpus."""
    stages: tuple[StageOutcome, ...] = ()
    """What each stage did to the rows, in the order of the run."""
    had_nothing_to_do: bool = False
    costs: RunCosts | None = None
    """The cost of everything that is there; None if none of it was stored."""


def check(recipe: Recipe) -> None:
    """Everything that can be wrong with a recipe before a row is read.

    Raises:
        SchemaError: a step reads a column that no earlier step adds.
        ConfigError: an artefact or the description of a source is absent or wrong, or output and input lie in one
            another.
        SourceError: the input cannot be listed.
    """
    schema = pa.schema([*PROMPT, *fields_of(recipe)])
    for stage in recipe.stages:
        schema = stage.output_schema(schema)
        stage.check_artefacts()
    check_places(recipe)


def context_of(recipe: Recipe, engine: Engine) -> Context:
    """The context that the stages of a recipe get when it runs on an engine."""
    sources = tuple(sorted(recipe.sources))
    return Context(engine, recipe.place, sources, recipe.run, recipe.storage, label=ingest.STEP)


def run_recipe(
    recipe: Recipe, engine: Engine, report: Callable[[str], None], watch: Callable[[Dataset], None] = nothing
) -> RunResult:
    """Run every stage of a recipe and commit its datasets.

    Args:
        recipe: the recipe to run.
        engine: the engine that runs it.
        report: gets each line for the user; a `Voice` also gets internals and the progress of the run.
        watch: gets every dataset once it is committed or found committed, even if the run fails later.

    Raises:
        StillhouseError: one of its four classes, for an error that the user can fix.
    """
    lines = Lines(_voice(report))
    with _logged(recipe, lines):
        with storage_options(recipe.storage):
            recipe = pinned(recipe)
            check(recipe)
            with _told(recipe, engine, lines) as (context, stages), _held(recipe, context, lines, "this recipe"):
                result = run_stages(recipe, replace(context, watch=watch))
                stages.close()
                costs, why = _kept_costs(recipe, engine)
            tell_stale(recipe, lines.voice)
        known = [why] if costs is None else cost_lines(costs, recipe.run.price_per_core_hour)
        steps, columns = record_of(recipe).steps, lines.voice.columns
        ends = last_lines(result.accounting, steps, result.corpus, context.output, columns)
        for line in itertools.chain(["", *filter(None, known)], ends):
            lines.voice(line)
    return replace(result, stages=tuple(stages.outcomes), had_nothing_to_do=lines.are_held, costs=costs)


def _voice(report: Callable[[str], None]) -> Voice:
    return report if isinstance(report, Voice) else Voice(report)


@contextlib.contextmanager
def _told(recipe: Recipe, engine: Engine, lines: Lines) -> Iterator[tuple[Context, StageLines]]:
    """The context of a run that reports one line a stage, and the object that reports them, all of them by its end."""
    stages = StageLines(recipe.labels, lines)
    engine.onlooker = stages
    try:
        yield replace(context_of(recipe, engine), telling=stages), stages
    finally:
        engine.onlooker = Onlooker()
        stages.say_rest()


def _kept_costs(recipe: Recipe, engine: Engine) -> tuple[RunCosts | None, str]:
    """The run's costs, also left in the output if it is writable; or a line with the reason why they are not known."""
    try:
        costs = run_costs(recipe)
        if costs is not None and engine.may_write:
            keep_costs(recipe.place, costs)
    except StillhouseError as error:
        # Everything is committed, and nothing depends on the costs.
        return None, f"costs: not known: {error}"
    return costs, ""


def tell_stale(recipe: Recipe, report: Callable[[str], None]) -> None:
    """List what an earlier recipe left in the output, and the command that removes it; silent if there is nothing."""
    try:
        lines = list(stale_lines(recipe.place, stale_folders(recipe.place, record_of(recipe))))
    except StillhouseError as error:
        # Everything is committed: a store that lists nothing, or another recipe's damaged dataset, does not undo that.
        lines = [("stale", f"not looked for: {error}")]
    for what, line in lines:
        report(f"{what}: {line}")


@contextlib.contextmanager
def _held(recipe: Recipe, context: Context, lines: Lines, maker: str) -> Iterator[None]:
    """Hold the output and leave the run's record. A read-only output is accepted if the run is done.

    Args:
        recipe: the run's recipe.
        context: the run's context.
        lines: the run's lines; if they are still held at the end, the user learns that there was nothing to do.
        maker: what makes everything that is there, for that line.

    Raises:
        DataError: another run holds it, or there is something to do and it is read-only.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(sole_writer(context.engine, context.output))
        except DataError as error:
            if not is_refused(error) or Run.open(context.output).state(ingest.STEP) != "committed":
                raise
            refusal = error
        else:
            held.enter_context(_recorded(recipe, context.engine, lines))
            yield
            lines.tell_nothing(f"{context.output} holds all that {maker} makes")
            return
    with reader(context.engine, refusal):
        yield
    lines.tell_nothing(f"{context.output}, which may not be written, holds all that {maker} makes")


@contextlib.contextmanager
def _recorded(recipe: Recipe, engine: Engine, lines: Lines) -> Iterator[None]:
    """Leave the run's record and release its lines before its first dataset is begun; an error also releases the lines.

    Not at once: a run that fails before it has written anything, for example because input is missing, leaves the
    output as it was. A run that has nothing to do leaves its record at the end.
    """
    guard, record = engine.guard, record_of(recipe)

    def guard_and_record() -> None:
        guard()
        write_record(recipe.place, record)
        engine.guard = guard

    def begin() -> None:
        guard_and_record()
        lines.begin()

    engine.guard = begin
    try:
        yield
    except StillhouseError:
        lines.release()
        raise
    if engine.guard is begin:
        guard_and_record()


@contextlib.contextmanager
def _logged(recipe: Recipe, lines: Lines) -> Iterator[None]:
    """Leave in the output what a run that did something reported, and what libraries logged meanwhile."""
    try:
        yield
    finally:
        if lines.has_begun and (said := log_bytes()) is not None:
            _keep_log(recipe, lines, said)


def _keep_log(recipe: Recipe, lines: Lines, said: bytes) -> None:
    try:
        (recipe.place / LOG).replace(said)
    except StillhouseError as error:
        # The file on this machine is kept, and nothing else depends on the copy.
        lines.voice(f"the log {log_path()} could not be copied into the output: {error}")


class _Done(Exception):
    """The one stage to run has run."""


def run_stage(recipe: Recipe, engine: Engine, report: Callable[[str], None], label: str) -> None:
    """Run one stage of a recipe (`layout` writes DIR/dropped too); those before it must be committed.

    Raises:
        ConfigError: the recipe has no stage of this label.
        DataError: a stage before it is not committed; the message says what to run first.
    """
    if label not in recipe.labels:
        raise ConfigError(f"the recipe '{recipe.name}' has no stage '{label}'; it has {', '.join(recipe.labels)}")
    lines = Lines(_voice(report))
    reached = False

    def enter(name: str) -> None:
        nonlocal reached
        if reached:
            engine.settle()
            raise _Done
        reached = name == label
        engine.permit = nothing if reached else functools.partial(_refuse, recipe, name, label)

    with _logged(recipe, lines), storage_options(recipe.storage):
        recipe = pinned(recipe)
        check(recipe)
        with _told(recipe, engine, lines) as (context, stages), _held(recipe, context, lines, f"the stage '{label}'"):
            with contextlib.suppress(_Done):
                run_stages(recipe, context, enter)
            stages.close()
            _kept_costs(recipe, engine)


def label_of(recipe: Recipe, kind: str, name: str | None) -> str:
    """The label of the stage of a kind, with this name or without a name.

    Raises:
        ConfigError: the recipe has none; the message names those that it has.
    """
    labels: dict[tuple[str, str | None], str] = {(ingest.STEP, None): ingest.STEP}
    labels |= {(stage.kind, stage.name): stage.label for stage in recipe.stages}
    if (kind, name) in labels:
        return labels[kind, name]
    names = [one for of_kind, one in labels if of_kind == kind]
    wanted = f"--stage {name}" if name else "no --stage"
    if not names:
        raise ConfigError(
            f"the recipe '{recipe.name}' has no stage of the kind '{kind}'; it has {', '.join(recipe.labels)}"
        )
    known = ", ".join(f"--stage {one}" if one else "no --stage" for one in names)
    raise ConfigError(f"{wanted}: the recipe '{recipe.name}' has no such stage of the kind '{kind}'; give {known}")


def _refuse(recipe: Recipe, label: str, wanted: str, job: Job) -> None:
    raise DataError(
        f"'{wanted}' needs the stage '{label}', and {job.folder} is not committed for this recipe and input; run "
        f"{_job_of(recipe, label)} first"
    )


def _job_of(recipe: Recipe, label: str) -> str:
    """The job that runs only the stage of this label."""
    for stage in recipe.stages:
        if stage.label == label:
            if ":" in stage.kind:
                return f"jobs/run_recipe.py --stage {label}"
            return f"jobs/stage_{stage.kind}.py" + (f" --stage {stage.name}" if stage.name else "")
    return f"jobs/stage_{label}.py"


def run_stages(recipe: Recipe, context: Context, enter: Callable[[str], None] = nothing) -> RunResult:
    """Every stage in its order, through the engine of the context; `enter` is called with each label beforehand."""

    def begin(label: str) -> None:
        enter(label)
        context.telling.enter(label)

    begin(ingest.STEP)
    rows = ingest.ingest(context, recipe.sources, recipe.max_bad_fraction, recipe.max_row_bytes)
    of_dropped = replace(context, label=DROPPED_FOLDER)
    dropped: DatasetLike | None = None
    for stage in recipe.stages:
        begin(stage.label)
        if stage.is_output and dropped is None:
            dropped = _write_dropped(recipe, of_dropped, rows)
        rows = stage.run(context.of_stage(stage.label, stage.name, stage.foreign_identity()), rows)
    if dropped is None:
        dropped = _write_dropped(recipe, of_dropped, rows)
    context.engine.settle()
    corpus = next(iter(context.outputs.values()), None)
    accounting = corpus.manifest.accounting if corpus is not None else rows.accounting
    return RunResult(rows, dropped.result(), corpus, accounting)


_DROPPED_COLUMNS = ("id", "source_dataset", "source_example_id", "file", "position")
"""The columns of a row that DIR/dropped repeats."""
_DROPPED_VERSION = 2
"""1 had ids of 16 bytes, and neither the example's id nor its file and position."""


@dataclass(frozen=True)
class WriteDropped:
    """The rows of one split that a step dropped, with the step's stage."""

    rows: RowsRef
    stages: dict[str, str]

    def __call__(self, split: int) -> Iterator[Chunk]:
        steps = pa.array(list(self.stages), pa.string())
        names = pa.array(list(self.stages.values()), pa.string())
        for batch in self.rows.read(split, [*_DROPPED_COLUMNS, "verdict"]):
            lost = batch.filter(batch.column("verdict").is_valid())
            step, reason, value = (
                pc.struct_field(lost.column("verdict"), name) for name in ("step", "reason", "value")
            )
            stage = names.take(pc.index_in(step, value_set=steps))
            ids, dataset, example, file, position = (lost.column(name) for name in _DROPPED_COLUMNS)
            columns = [uuid_texts(ids), dataset, example, stage, step, reason, value, file, position]
            yield Chunk(pa.RecordBatch.from_arrays(columns, schema=DROPPED), batch.num_rows)


def _write_dropped(recipe: Recipe, context: Context, rows: Rows) -> DatasetLike:
    stages = {ingest.STEP: ingest.STEP}
    for stage in recipe.stages:
        if not stage.is_output:
            stages |= dict.fromkeys(stage.step_labels(), stage.label)
    semantic = {"stages": dict(sorted(stages.items()))}
    inputs, grows = rows.tables(["source_dataset", "verdict"]), Growth(With.DROPPED, work=With.INPUT)
    job = context.job(DROPPED_FOLDER, "DROPPED", DROPPED, semantic, inputs, version=_DROPPED_VERSION, grows=grows)
    return context.map(job.with_places_of(rows.base), rows.splits, WriteDropped(rows.ref, stages))
