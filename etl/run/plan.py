"""What a run would do, and why, before anything runs; and accepting an old result on purpose.

The stages are walked with an engine that runs nothing: a dataset that is committed is handed on, and so is an old one
that the run would replace, so that the stages after it can be looked at too. Costs the reading of manifests and, for
raw input, the listing that a run begins with.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from etl.digests import canonical_json
from etl.engine import DEFAULT, Engine, Exchange, MapFn, Reduce, ReduceFn, Resources, Table, Task, Work, nothing
from etl.errors import DataError
from etl.run.recipe import Recipe
from etl.run.run import check, context_of, run_stages
from etl.storage.build import Build, Job, SplitWriter
from etl.storage.dataset import MANIFEST, Dataset
from etl.storage.location import Location
from etl.storage.lock import RunLock
from etl.storage.manifest import Manifest, to_json
from etl.storage.remote import storage_options

_Then = Callable[[Dataset], None]


@dataclass(frozen=True)
class PlannedStage:
    """What a run would do about one dataset."""

    stage: str
    action: Literal["keep", "resume", "run", "check"]
    """keep: committed and current. resume: some splits are done. run: all of it. check: current, unless an earlier
    stage that runs again gives other rows."""
    reasons: tuple[str, ...] = ()
    """For run: each field that differs, with its old and new value."""


class _LookaheadEnd(Exception):
    """A dataset that later stages need to be looked at is not there."""


class _Lookahead(Engine):
    """Runs nothing; notes what would run."""

    def __init__(self) -> None:
        super().__init__()
        self.planned: list[PlannedStage] = []
        self.jobs: dict[str, Job] = {}
        self._replaced: set[str] = set()

    def map(
        self, job: Job, splits: Iterable[Any], fn: MapFn, resources: Resources = DEFAULT, then: _Then = nothing
    ) -> Dataset:
        dataset = self._look(job)
        then(dataset)
        return dataset

    def shuffle(self, job: Job, exchange: Exchange, fn: ReduceFn) -> Dataset:
        return self._look(job.with_buckets(exchange.num_buckets))

    def drive(self, job: Job, fn: Callable[[SplitWriter], None]) -> Dataset:
        return self._look(job)

    def land(self, table: Table, folder: Location) -> Dataset:
        """Only the catalog knows whether the table has changed."""
        stage = f"tables/{table.source}"
        try:
            dataset = Dataset.open(folder)
        except DataError:
            self.planned.append(PlannedStage(stage, "run", ("nothing is there yet",)))
            raise _LookaheadEnd from None
        self.planned.append(PlannedStage(stage, "check", (f"runs again if {table.name} has changed",)))
        return dataset

    def _look(self, job: Job) -> Dataset:
        self.jobs[job.stage] = job
        stage_plan = self._stage_plan(job)
        self.planned.append(stage_plan)
        if stage_plan.action != "keep":
            self._replaced.add(job.folder.url)
        if not Build(job).is_occupied():
            raise _LookaheadEnd
        return Dataset.open(job.folder)

    def _stage_plan(self, job: Job) -> PlannedStage:
        build = Build(job)
        if not build.is_occupied():
            return _unfinished(build)
        old = Dataset.open(job.folder).manifest
        # As JSON, which is what is stored: it knows lists alone.
        reasons = differences(old.made_from, json.loads(canonical_json(job.made_from)))
        if old.base != job.base_cut:
            reasons.append("the rows that it is aligned with are cut in another way")
        if reasons:
            return PlannedStage(job.stage, "run", tuple(reasons))
        unsure = [dataset.ref.stage for dataset in job.inputs if dataset.ref.folder.url in self._replaced]
        if unsure:
            return PlannedStage(job.stage, "check", (f"runs again if {', '.join(unsure)} gives other rows",))
        return PlannedStage(job.stage, "keep")

    def run_splits(self, work: Work, items: Sequence[tuple[int, Any]], task: Task) -> None:
        raise AssertionError(work)

    def run_buckets(self, work: Work, buckets: Sequence[int], exchange: Exchange, reduce: Reduce) -> None:
        raise AssertionError(work)

    def close(self) -> None:
        """Nothing is held."""


def _unfinished(build: Build) -> PlannedStage:
    plan = build.resumable()
    if plan is None:
        return PlannedStage(build.job.stage, "run", ("nothing is there yet",))
    done = len(plan.splits) - len(build.missing(plan))
    return PlannedStage(build.job.stage, "resume", (f"{done} of {len(plan.splits)} splits are done",))


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


def plan_recipe(recipe: Recipe) -> list[PlannedStage]:
    """What a run of the recipe would do, stage by stage, as far as it can be known before it runs.

    The last entry may be a stage without data yet; those after it are not listed.

    Raises:
        StillhouseError: what the run itself would raise before its first task.
    """
    return _walk(recipe).planned


def _walk(recipe: Recipe) -> _Lookahead:
    lookahead = _Lookahead()
    with storage_options(recipe.storage), contextlib.suppress(_LookaheadEnd):
        check(recipe)
        run_stages(recipe, context_of(recipe, lookahead, nothing))
    return lookahead


def adopt(recipe: Recipe, stage: str) -> list[str]:
    """Take what is committed for a stage as the result of this recipe, though it was made from something else.

    Returns:
        The fields that differ; the manifest keeps them under `adopted`.

    Raises:
        DataError: there is nothing to adopt, or its rows cannot stand beside those of this run.
    """
    with RunLock(recipe.place):
        lookahead = _walk(recipe)
        job = lookahead.jobs.get(stage)
        if job is None:
            known = ", ".join(one.stage for one in lookahead.planned)
            raise DataError(f"there is no stage '{stage}' to adopt; so far there are: {known}")
        (stage_plan,) = (one for one in lookahead.planned if one.stage == stage)
        _refuse_what_cannot_be_adopted(job, stage_plan, lookahead.planned)
        old = Dataset.open(job.folder).manifest
        _rewrite(job, old, stage_plan.reasons)
        return list(stage_plan.reasons)


def _refuse_what_cannot_be_adopted(job: Job, stage_plan: PlannedStage, planned: list[PlannedStage]) -> None:
    if not Build(job).is_occupied():
        raise DataError(f"{job.folder} holds no committed dataset; run the recipe")
    if stage_plan.action in ("keep", "check"):
        raise DataError(f"{job.folder} is what this recipe makes already; there is nothing to adopt")
    inputs = {dataset.ref.stage for dataset in job.inputs}
    undecided = [earlier.stage for earlier in planned if earlier.stage in inputs and earlier.action != "keep"]
    if undecided:
        raise DataError(f"{job.folder} is made from {', '.join(undecided)}, to run again; adopt or run that first")
    dataset = Dataset.open(job.folder)
    if dataset.manifest.base != job.base_cut:
        raise DataError(f"{job.folder} is aligned with rows that are cut in another way; it has to run again")
    if dataset.manifest.parts and not dataset.schema.equals(job.schema):
        raise DataError(f"{job.folder} has the columns {dataset.schema.names}, this recipe makes {job.schema.names}")


def _rewrite(job: Job, old: Manifest, differing: Iterable[str]) -> None:
    record = {"fingerprint": old.fingerprint, "differs": list(differing)}
    changes = {"fingerprint": job.fingerprint, "made_from": job.made_from, "adopted": (*old.adopted, record)}
    (job.folder / MANIFEST).replace(to_json(old.model_copy(update=changes)))


def describe(planned: Iterable[PlannedStage]) -> Iterator[str]:
    """Lines for the user: a stage and what would happen to it, then each reason."""
    for stage_plan in planned:
        yield f"{stage_plan.stage:>24}  {stage_plan.action}"
        yield from (f"{'':>24}    {reason}" for reason in stage_plan.reasons)
