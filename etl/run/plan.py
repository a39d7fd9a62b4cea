"""What a run would do, and why, before anything runs; and accepting an old result on purpose.

The stages are walked with an engine that runs nothing: a dataset that is committed is handed on, and so is an old one
that the run would replace, so that the stages after it can be looked at too. Costs the reading of manifests and, for
raw input, the listing that a run begins with.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from etl.engine import DEFAULT, Engine, Exchange, MapFn, Reduce, ReduceFn, Resources, Table, Task, Work, nothing
from etl.errors import DataError
from etl.recipe import Recipe
from etl.run.run import check, run_stages
from etl.stages.context import Context
from etl.storage.dataset import MANIFEST, Build, Dataset, Job, SplitWriter
from etl.storage.location import Location
from etl.storage.lock import RunLock
from etl.storage.manifest import Manifest, to_json
from etl.storage.remote import storage_options

_Then = Callable[[Dataset], None]


@dataclass(frozen=True)
class Outlook:
    """What a run would do about one dataset."""

    stage: str
    action: Literal["keep", "resume", "run", "check"]
    """keep: committed and current. resume: some splits are done. run: all of it. check: current, unless an earlier
    stage that runs again gives other rows."""
    reasons: tuple[str, ...] = ()
    """For run: each field that differs, with its old and new value."""


class _OutOfSight(Exception):
    """A dataset that later stages need to be looked at is not there."""


class _Lookout(Engine):
    """Runs nothing; notes what would run."""

    def __init__(self) -> None:
        super().__init__()
        self.outlooks: list[Outlook] = []
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
            self.outlooks.append(Outlook(stage, "run", ("nothing is there yet",)))
            raise _OutOfSight from None
        self.outlooks.append(Outlook(stage, "check", (f"runs again if {table.name} has changed",)))
        return dataset

    def _look(self, job: Job) -> Dataset:
        self.jobs[job.stage] = job
        outlook = self._outlook(job)
        self.outlooks.append(outlook)
        if outlook.action != "keep":
            self._replaced.add(job.folder.url)
        if not Build(job).is_occupied():
            raise _OutOfSight
        return Dataset.open(job.folder)

    def _outlook(self, job: Job) -> Outlook:
        build = Build(job)
        if not build.is_occupied():
            return _unfinished(build)
        old = Dataset.open(job.folder).manifest
        reasons = differences(old.made_from, job.made_from)
        if old.base != job.base_cut:
            reasons.append("the rows that it is aligned with are cut in another way")
        if reasons:
            return Outlook(job.stage, "run", tuple(reasons))
        unsure = [dataset.ref.stage for dataset in job.inputs if dataset.ref.folder.url in self._replaced]
        if unsure:
            return Outlook(job.stage, "check", (f"runs again if {', '.join(unsure)} gives other rows",))
        return Outlook(job.stage, "keep")

    def run_splits(self, work: Work, items: Sequence[tuple[int, Any]], task: Task) -> None:
        raise AssertionError(work)

    def run_buckets(self, work: Work, buckets: Sequence[int], exchange: Exchange, reduce: Reduce) -> None:
        raise AssertionError(work)

    def close(self) -> None:
        """Nothing is held."""


def _unfinished(build: Build) -> Outlook:
    plan = build.resumable()
    if plan is None:
        return Outlook(build.job.stage, "run", ("nothing is there yet",))
    done = len(plan.splits) - len(build.missing(plan))
    return Outlook(build.job.stage, "resume", (f"{done} of {len(plan.splits)} splits are done",))


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


def plan_recipe(recipe: Recipe) -> list[Outlook]:
    """What a run of the recipe would do, stage by stage, as far as it can be known before it runs.

    The last entry may be a stage without data yet; those after it are not listed.

    Raises:
        StillhouseError: what the run itself would raise before its first task.
    """
    return _walk(recipe).outlooks


def _walk(recipe: Recipe) -> _Lookout:
    lookout = _Lookout()
    with storage_options(recipe.storage), contextlib.suppress(_OutOfSight):
        check(recipe)
        run_stages(Context(lookout, recipe, nothing))
    return lookout


def adopt(recipe: Recipe, stage: str) -> list[str]:
    """Take what is committed for a stage as the result of this recipe, though it was made from something else.

    Returns:
        The fields that differ; the manifest keeps them under `adopted`.

    Raises:
        DataError: there is nothing to adopt, or its rows cannot stand beside those of this run.
    """
    with RunLock(recipe.place):
        lookout = _walk(recipe)
        job = lookout.jobs.get(stage)
        if job is None:
            known = ", ".join(outlook.stage for outlook in lookout.outlooks)
            raise DataError(f"there is no stage '{stage}' to adopt; so far there are: {known}")
        (outlook,) = (outlook for outlook in lookout.outlooks if outlook.stage == stage)
        _refuse_what_cannot_be_adopted(job, outlook, lookout.outlooks)
        old = Dataset.open(job.folder).manifest
        _rewrite(job, old, outlook.reasons)
        return list(outlook.reasons)


def _refuse_what_cannot_be_adopted(job: Job, outlook: Outlook, outlooks: list[Outlook]) -> None:
    if not Build(job).is_occupied():
        raise DataError(f"{job.folder} holds no committed dataset; run the recipe")
    if outlook.action in ("keep", "check"):
        raise DataError(f"{job.folder} is what this recipe makes already; there is nothing to adopt")
    inputs = {dataset.ref.stage for dataset in job.inputs}
    undecided = [earlier.stage for earlier in outlooks if earlier.stage in inputs and earlier.action != "keep"]
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


def describe(outlooks: Iterable[Outlook]) -> Iterator[str]:
    """Lines for the user: a stage and what would happen to it, then each reason."""
    for outlook in outlooks:
        yield f"{outlook.stage:>24}  {outlook.action}"
        yield from (f"{'':>24}    {reason}" for reason in outlook.reasons)
