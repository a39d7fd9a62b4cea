"""Shows what a run would do and why, before anything runs; and adopts old results on request.

An engine that runs nothing walks the stages. It hands on a committed dataset, and also an old one that the run would
replace, so that later stages can be examined too; a map that has to run is handed on as a promise, as a real engine
does. The walk ends where a stage needs rows that are not there. Later folders are then known only from the stages, and
those that depend on the rows (rounds of a cut, of near duplicates) are not listed.

Costs the listing that a run begins with, a HEAD or two and a GET a folder, a LIST of the receipts of a build that did
not end, the footers of Parquet input (etl/run/inputs.py), and a look for what is stale (etl/storage/stale.py).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

from etl.columns import left, width
from etl.digests import canonical_json
from etl.engine import DEFAULT, Engine, Exchange, MapFn, Reduce, ReduceFn, Resources, Table, Task, Work, nothing
from etl.errors import DataError
from etl.run import inputs
from etl.run.inputs import InputSize, input_sizes, raw_size
from etl.run.recipe import Recipe
from etl.run.record import record_of, stage_records
from etl.run.revisions import pinned
from etl.run.run import check, context_of, run_stages
from etl.stages.assemble import EmitRaw
from etl.stages.ingest import WritePrompts
from etl.storage.build import Build, Job, SplitWriter
from etl.storage.dataset import MANIFEST, Dataset, DatasetLike, Pending
from etl.storage.location import Location
from etl.storage.lock import RunLock
from etl.storage.manifest import Manifest, to_json
from etl.storage.opened import Run
from etl.storage.remote import storage_options
from etl.storage.stale import remedy, stale_folders

_Then = Callable[[Dataset], None]
Action = Literal["keep", "resume", "run", "check", "stale"]
"""keep: committed and current. resume: some splits are done. run: all of it. check: current, unless an earlier stage
that runs again changes the rows. stale: left alone, as it is from an earlier recipe."""
_NOTHING = "not written yet"


@dataclass(frozen=True)
class PlannedStage:
    """What a run would do with one dataset."""

    label: str
    """Label of the recipe's stage that writes it."""
    stage: str
    """Its folder below the output."""
    action: Action
    reasons: tuple[str, ...] = ()
    """For run: each field that differs, with its old and new value."""


@dataclass(frozen=True)
class RunPlan:
    """What a run would read and do."""

    inputs: tuple[InputSize, ...]
    stages: tuple[PlannedStage, ...]
    """One for each dataset, in the order of the run."""
    stale: tuple[PlannedStage, ...] = ()
    """One for each stale dataset, which no stage of this recipe writes."""
    remedy: str = ""
    """The command that removes what is stale, once the recipe has run."""


class _LookaheadEnd(Exception):
    """Rows that later stages need for the walk are not there."""


def _end() -> NoReturn:
    raise _LookaheadEnd


class _Lookahead(Engine):
    """Runs nothing; records what would run."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.planned: list[PlannedStage] = []
        self.jobs: dict[str, Job] = {}
        self.inputs: tuple[InputSize, ...] = ()
        self.assembled: dict[str, InputSize] = {}
        """Sizes of the sources whose rows are assembled, as far as the walk has come."""
        self.has_ended = False
        """Whether the walk ended before the last stage."""
        self.run = run
        self._label = ""
        self._actions: dict[str, Action] = {}
        """What would happen to each dataset, by the URL of its folder."""

    def enter(self, label: str) -> None:
        """The walk enters the stage of a label."""
        self._label = label

    def map(
        self, job: Job, splits: Iterable[Any], fn: MapFn, resources: Resources = DEFAULT, then: _Then = nothing
    ) -> DatasetLike:
        if self.run.state(job.stage) != "committed":
            splits = list(splits)
        dataset = self._look(job, splits)
        if isinstance(fn, WritePrompts):
            current = dataset if self._is_kept(job) else None
            self.inputs = input_sizes(job, fn.raw, splits, current, self.assembled)
        if dataset is None:
            build = Build(job)
            return Pending(build.ref(build.resumable(splits) or build.fresh_plan(splits)), _end)
        then(dataset)
        return dataset

    def shuffle(self, job: Job, exchange: Exchange, fn: ReduceFn) -> Dataset:
        dataset = self._look(job.with_buckets(exchange.num_buckets), range(exchange.num_buckets))
        if isinstance(emit := exchange.emit, EmitRaw):
            current = dataset if self._is_kept(job) else None
            self.assembled[emit.source] = raw_size(emit, exchange.splits, current)
        return dataset or _end()

    def drive(self, job: Job, fn: Callable[[SplitWriter], None]) -> Dataset:
        return self._look(job, [0]) or _end()

    def land(self, table: Table, folder: Location) -> Dataset:
        """Only the catalog knows whether the table has changed."""
        stage = f"tables/{table.source}"
        if self.run.state(stage) != "committed":
            self._note(folder, stage, "run", _NOTHING)
            _end()
        self._note(folder, stage, "check", f"will re-run only if {table.name} has changed")
        return self.run.dataset(stage)

    def _note(self, folder: Location, stage: str, action: Action, *reasons: str) -> None:
        self._actions[folder.url] = action
        self.planned.append(PlannedStage(self._label, stage, action, reasons))

    def _is_kept(self, job: Job) -> bool:
        return self._actions[job.folder.url] == "keep"

    def _look(self, job: Job, splits: Iterable[Any]) -> Dataset | None:
        """Note what would happen to a dataset that is cut like this; returns what is committed in its folder."""
        self.jobs[job.stage] = job
        state = self.run.state(job.stage)
        if state == "absent":
            self._note(job.folder, job.stage, "run", _NOTHING)
        elif state == "started":
            self._look_at_build(job, splits)
        else:
            self._look_at_dataset(job, self.run.dataset(job.stage).manifest)
        return self.run.dataset(job.stage) if state == "committed" else None

    def _look_at_build(self, job: Job, splits: Iterable[Any]) -> None:
        anew = [name for name, action in self._needed(job).items() if action == "run"]
        unsure = [name for name, action in self._needed(job).items() if action == "check"]
        if Build(job).resumable(splits) is None:
            reason = "an earlier run started it with another recipe, input or splits"
            self._note(job.folder, job.stage, "run", reason)
        elif anew:
            self._note(job.folder, job.stage, "run", f"starts over, because {_all(anew)} will re-run")
        elif unsure:
            reason = f"{self._progress(job.stage)}; starts over if {_changes(unsure)}"
            self._note(job.folder, job.stage, "check", reason)
        else:
            self._note(job.folder, job.stage, "resume", self._progress(job.stage))

    def _look_at_dataset(self, job: Job, old: Manifest) -> None:
        # As the stored JSON, which has only lists.
        reasons = differences(old.made_from, json.loads(canonical_json(_made_from(job, old))))
        if _places_known(job) and not job.is_base_of(old):
            of = "the rows that it is aligned with are split in another way"
            reasons.append(
                of if job.places_of is None else "the files and positions that it repeats are from another ingest"
            )
        unsure = dict.fromkeys(dataset.ref.stage for dataset in job.needed if self._action(dataset) != "keep")
        if reasons:
            self._note(job.folder, job.stage, "run", *reasons)
        elif unsure:
            self._note(job.folder, job.stage, "check", f"will re-run only if {_changes(list(unsure))}")
        else:
            self._note(job.folder, job.stage, "keep")

    def _needed(self, job: Job) -> dict[str, Action]:
        """What would happen to those inputs of a job of which something old was handed on."""
        return {dataset.ref.stage: self._action(dataset) for dataset in job.needed if dataset.done()}

    def _action(self, dataset: DatasetLike) -> Action:
        """What would happen to a dataset; nothing to one that this run does not write."""
        return self._actions.get(dataset.ref.folder.url, "keep")

    def _progress(self, stage: str) -> str:
        progress = self.run.progress(stage)
        return f"{progress.done} of {progress.splits} splits are done"

    def stages(self, recipe: Recipe) -> tuple[PlannedStage, ...]:
        """The walked datasets, stage by stage; where the walk ended early, what is known of the later ones."""
        records = stage_records(recipe)
        owners = {folder: record.label for record in records for folder in record.folders}
        walked = [replace(one, label=owners.get(one.stage, one.label)) for one in self.planned]
        unreached = owners.keys() - {one.stage for one in walked} if self.has_ended else set()
        found: list[PlannedStage] = []
        for record in records:
            found += [one for one in walked if one.label == record.label]
            found += [self._unreached(record.label, folder) for folder in record.folders if folder in unreached]
        return tuple(found)

    def _unreached(self, label: str, stage: str) -> PlannedStage:
        state = self.run.state(stage)
        if state == "absent":
            return PlannedStage(label, stage, "run", (_NOTHING,))
        told = f"{self._progress(stage)}; starts over if" if state == "started" else "will re-run only if"
        return PlannedStage(label, stage, "check", (f"{told} an earlier stage changes",))

    def run_splits(self, work: Work, items: Sequence[tuple[int, Any]], task: Task) -> None:
        raise AssertionError(work)

    def run_buckets(self, work: Work, buckets: Sequence[int], exchange: Exchange, reduce: Reduce) -> None:
        raise AssertionError(work)

    def close(self) -> None:
        """Nothing is held."""


def _all(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _changes(names: Sequence[str]) -> str:
    """The condition under which one of several datasets gets other rows."""
    return f"{names[0]} changes" if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]} change"


def _places_known(job: Job) -> bool:
    """Whether the dataset that this one is aligned with, or whose places it repeats, is committed."""
    return all(dataset.done() for dataset in (job.base, job.places_of) if dataset is not None)


def _made_from(job: Job, old: Manifest) -> dict[str, Any]:
    """`job.made_from`; an input that is not there yet is assumed to be as it was."""
    before = old.inputs
    inputs = {
        dataset.ref.stage: dataset.result().manifest.content_digest
        if dataset.done()
        else before.get(dataset.ref.stage, "not there yet")
        for dataset in job.inputs
    }
    return {**job.semantic, "inputs": inputs} if inputs else job.semantic


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """One line for each field in which two trees of JSON values differ: path, old value -> new value."""
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(f"{path}.{key}".lstrip("."), old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(f"{path}[{place}]", *both) for place, both in enumerate(zip(old, new, strict=True))]
    else:
        return [f"{path}: {_shown(old)} -> {_shown(new)}"]
    return [line for name, before, after in pairs for line in differences(before, after, name)]


def _shown(value: Any) -> str:
    return "absent" if value is None else repr(value)


def plan_recipe(recipe: Recipe) -> RunPlan:
    """What a run of the recipe would read and do to each dataset, as far as this can be known before it runs.

    Raises:
        StillhouseError: what the run itself would raise before its first task.
    """
    with storage_options(recipe.storage):
        recipe = pinned(recipe)
        lookahead = _walk(recipe)
        stages = lookahead.stages(recipe)
        stale = stale_folders(recipe.place, record_of(recipe))
    return RunPlan(
        inputs=lookahead.inputs or tuple(lookahead.assembled.get(name, InputSize(name)) for name in recipe.sources),
        stages=stages,
        stale=tuple(PlannedStage("", folder, "stale") for folder in stale),
        remedy=remedy(recipe.place),
    )


def _walk(recipe: Recipe) -> _Lookahead:
    lookahead = _Lookahead(Run.open(recipe.place))
    check(recipe)
    try:
        run_stages(recipe, context_of(recipe, lookahead), lookahead.enter)
    except _LookaheadEnd:
        lookahead.has_ended = True
    return lookahead


def adopt(recipe: Recipe, stage: str) -> list[str]:
    """Accept the committed result of a stage for this recipe, although it was made from something else.

    Returns:
        The fields that differ; the manifest keeps them under `adopted`.

    Raises:
        DataError: there is nothing to adopt, or its rows cannot be aligned with those of this run.
    """
    with RunLock(recipe.place), storage_options(recipe.storage):
        recipe = pinned(recipe)
        lookahead = _walk(recipe)
        job = lookahead.jobs.get(stage)
        if job is None:
            known = ", ".join(one.stage for one in lookahead.planned)
            raise DataError(f"there is no stage '{stage}' to adopt; the stages so far: {known}")
        (stage_plan,) = (one for one in lookahead.planned if one.stage == stage)
        _refuse_what_is_not_old(job, stage_plan, lookahead)
        old = lookahead.run.dataset(stage)
        _refuse_rows_that_do_not_fit(job, old)
        _rewrite(job, old.manifest, stage_plan.reasons)
        return list(stage_plan.reasons)


def _refuse_what_is_not_old(job: Job, stage_plan: PlannedStage, lookahead: _Lookahead) -> None:
    if lookahead.run.state(job.stage) != "committed":
        raise DataError(f"{job.folder} has no committed dataset; run the recipe")
    if stage_plan.action in ("keep", "check"):
        raise DataError(f"{job.folder} is current already; there is nothing to adopt")
    needed = {dataset.ref.stage for dataset in job.needed}
    undecided = [one.stage for one in lookahead.planned if one.stage in needed and one.action != "keep"]
    if undecided:
        raise DataError(
            f"{job.folder} is made from {', '.join(undecided)}, which would run again; adopt or run that first"
        )


def _refuse_rows_that_do_not_fit(job: Job, old: Dataset) -> None:
    if not job.is_base_of(old.manifest):
        raise DataError(f"{job.folder} is aligned with rows that are split in another way; it must run again")
    if old.manifest.parts and not old.schema.equals(job.schema):
        raise DataError(f"{job.folder} has the columns {old.schema.names}, but this recipe makes {job.schema.names}")


def _rewrite(job: Job, old: Manifest, differing: Iterable[str]) -> None:
    record = {"fingerprint": old.fingerprint, "differs": list(differing)}
    changes = {"fingerprint": job.fingerprint, "made_from": job.made_from, "adopted": (*old.adopted, record)}
    (job.folder / MANIFEST).replace(to_json(old.model_copy(update=changes)))


def describe(plan: RunPlan) -> Iterator[str]:
    """Lines for the user: a table of the input, then each stage with its folders, what would happen to them and why."""
    yield from inputs.lines(plan.inputs)
    yield ""
    labels = max(width(one.label) for one in plan.stages)
    folders = max(width(one.stage) for one in (*plan.stages, *plan.stale))
    before = ""
    for one in plan.stages:
        label = "" if one.label == before else one.label
        first, *more = one.reasons or ("",)
        yield f"{left(label, labels)}  {left(one.stage, folders)}  {one.action:<6}  {first}".rstrip()
        yield from (f"{'':<{labels + folders + 12}}{reason}" for reason in more)
        before = one.label
    if plan.stale:
        yield ""
        yield f"from an earlier recipe; after the next run, {plan.remedy} removes it"
        yield from (f"{'':<{labels}}  {left(one.stage, folders)}  {one.action}" for one in plan.stale)
