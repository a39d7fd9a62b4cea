"""Predicts the cost of a recipe on its whole input from a seeded sample.

The recipe runs on the sample in this process, in a temporary folder, with an engine that counts CPU-seconds and
shuffled bytes. The counts of each job are then scaled up by the laws that its stage declares (etl.laws,
etl.run.scaling); a job without a law grows like its live rows.

Costs the sample's run (about 10 s for 16 MB without a model) and one listing of the input.
"""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from etl.columns import left, width
from etl.engines.local import LocalEngine
from etl.laws import CandidatePairs, VerifiedPairs
from etl.run.duplicates import SampleRun
from etl.run.meter import MeteredEngine
from etl.run.recipe import Recipe
from etl.run.revisions import pinned
from etl.run.run import check, context_of, run_stages
from etl.run.sample import MIN_PIECE_BYTES, write_sample
from etl.run.scaling import Scaling
from etl.storage.costs import CostSum, read_dataset_costs
from etl.storage.remote import storage_options

SAMPLE_BYTES = 16 << 20
_FEW_PAIRS = 50
WORKER_BYTES = 900 << 20
"""Peak memory of a Python worker at the default split and bucket sizes, for any input: docs/concepts/scaling.md."""
JOIN_BYTES_PER_ROW = 40
"""For the one task that joins the rows of all candidate pairs."""
DRIVER_BYTES_PER_TASK = 12_000
"""For plan, receipts and manifest of one dataset on the driver."""


@dataclass(frozen=True)
class StageCost:
    """One job over the whole input."""

    stage: str
    rows: int
    """Rows of its largest dataset."""
    written_bytes: int
    """Parquet bytes of its datasets."""
    shuffle_bytes: int
    """Arrow bytes that cross the shuffle; Spark compresses them when it writes them."""
    tasks: int
    objects: int
    cpu_s: float


@dataclass(frozen=True)
class Estimate:
    """What a recipe would cost on its whole input."""

    input_bytes: int
    sample_bytes: int
    stages: tuple[StageCost, ...]
    worker_bytes: int
    """Memory of a worker, at the default split and bucket sizes."""
    join_bytes: int
    """Memory of the one task that joins the candidate pairs."""
    driver_bytes: int
    folder_cpu_s: dict[str, float]
    """For each dataset, its share of its job."""
    notes: tuple[str, ...] = field(default=())

    def total(self, name: str) -> float:
        """Sum of a field over the stages."""
        return float(sum(getattr(cost, name) for cost in self.stages))

    def lines(self) -> Iterator[str]:
        """A table for a terminal."""
        yield f"{self.sample_bytes / 1e6:,.1f} MB sampled of {self.input_bytes / 1e6:,.1f} MB"
        names = ("rows", "written MB", "shuffled MB", "tasks", "objects", "CPU s")
        widest = max(width(name) for name in ("total", *(cost.stage for cost in self.stages)))
        yield f"{'job':<{widest}}" + "".join(f"{name:>14}" for name in names)
        sums = [self.total(name) for name in ("written_bytes", "shuffle_bytes", "tasks", "objects", "cpu_s")]
        total = StageCost("total", 0, int(sums[0]), int(sums[1]), int(sums[2]), int(sums[3]), sums[4])
        for cost in (*self.stages, total):
            yield (
                f"{left(cost.stage, widest)}{cost.rows:>14,}{cost.written_bytes / 1e6:>14,.1f}"
                f"{cost.shuffle_bytes / 1e6:>14,.1f}{cost.tasks:>14,}{cost.objects:>14,}{cost.cpu_s:>14,.1f}"
            )
        yield (
            f"memory: {self.worker_bytes / 1e9:.2f} GB a worker, {self.join_bytes / 1e9:.2f} GB for the task that joins"
            f" candidate pairs, {self.driver_bytes / 1e9:.2f} GB on the driver"
        )
        yield from self.notes


def estimate(
    recipe: Recipe,
    sample_bytes: int = SAMPLE_BYTES,
    seed: int = 0,
) -> Estimate:
    """Run a recipe on a sample of its input and predict the cost of the whole.

    Args:
        recipe: what would run; nothing is read from or written to its output.
        sample_bytes: stored bytes of input to sample. Slow steps (IFD) run on every row of it.
        seed: chooses the places to sample.

    Raises:
        StillhouseError: what a run of the recipe would raise.
    """
    with tempfile.TemporaryDirectory(prefix="stillhouse-sample-") as folder:
        with storage_options(recipe.storage):
            recipe = pinned(recipe)
            check(recipe)
            warm = write_sample(recipe, Path(folder) / "warm", MIN_PIECE_BYTES, seed)
            sample = write_sample(recipe, Path(folder) / "sample", sample_bytes, seed)
        # Models load and kernels compile once a worker, not once a row, so their cost must not be scaled up.
        run_stages(warm.recipe, context_of(warm.recipe, LocalEngine()))
        engine = MeteredEngine()
        done = run_stages(sample.recipe, context_of(sample.recipe, engine))
        return _Prediction(SampleRun(sample, done.rows, engine.jobs, engine.uses, engine.emitted)).estimate()


class _Prediction:
    """Predicts the cost of the whole input from a sample's run."""

    def __init__(self, run: SampleRun) -> None:
        self._run = run
        self._scaling = Scaling(run)

    def estimate(self) -> Estimate:
        costs = tuple(self._cost(job) for job in self._run.uses)
        return Estimate(
            input_bytes=self._run.sample.input_bytes,
            sample_bytes=self._run.sample.sample_bytes,
            stages=costs,
            worker_bytes=WORKER_BYTES,
            join_bytes=round(max(self._joined_rows(), default=0.0) * JOIN_BYTES_PER_ROW),
            driver_bytes=DRIVER_BYTES_PER_TASK * max((cost.tasks for cost in costs), default=0),
            folder_cpu_s=dict(self._shares(costs)),
            notes=tuple(self._notes()),
        )

    def _cost(self, job: str) -> StageCost:
        scaling, names = self._scaling, job.split("+")
        tasks = max(scaling.num_tasks(name) for name in names)
        return StageCost(
            stage=job,
            rows=round(max(scaling.rows(name) for name in names)),
            written_bytes=round(sum(scaling.written_bytes(name) for name in names)),
            shuffle_bytes=round(scaling.shuffle_bytes(names[0])),
            tasks=tasks,
            objects=len(names) * (2 * tasks + 2),
            cpu_s=self._cpu_s(job, tasks),
        )

    def _shares(self, costs: Iterable[StageCost]) -> Iterator[tuple[str, float]]:
        """(dataset, CPU-seconds): maps that run as one job divide its CPU-seconds as they did in the sample."""
        for cost in costs:
            names = cost.stage.split("+")
            took = [self._dataset_cpu_s(name) for name in names]
            for name, seconds in zip(names, took, strict=True):
                yield name, cost.cpu_s * (seconds / sum(took) if sum(took) else 1 / len(names))

    def _dataset_cpu_s(self, name: str) -> float:
        costs = read_dataset_costs(self._run.sample.recipe.place / name)
        return 0.0 if costs is None else CostSum.of(costs).cpu_s

    @cached_property
    def _task_cpu_s(self) -> float:
        """CPU-seconds of a task that has almost nothing to do."""
        return min(use.cpu_s / use.tasks for use in self._run.uses.values())

    def _cpu_s(self, job: str, tasks: int) -> float:
        """Every task costs the same to start; the rest grows with the job's work, for several maps by the largest."""
        use = self._run.uses[job]
        work = max(0.0, use.cpu_s - use.tasks * self._task_cpu_s)
        return tasks * self._task_cpu_s + max(self._scaling.work_s(name, work) for name in job.split("+"))

    def _of_law(self, kind: type[CandidatePairs] | type[VerifiedPairs]) -> Iterator[str]:
        """Datasets whose rows grow by a law."""
        return (name for name, job in self._run.jobs.items() if isinstance(job.grows.rows, kind))

    def _joined_rows(self) -> Iterator[float]:
        """Rows in candidate pairs, for each search for such pairs."""
        return (self._scaling.found.candidates(name).pairs.rows for name in self._of_law(CandidatePairs))

    def _notes(self) -> Iterator[str]:
        found = self._scaling.found
        for name in self._of_law(VerifiedPairs):
            law, pairs = self._run.jobs[name].grows.rows, found.pairs(name)
            assert isinstance(law, VerifiedPairs)
            candidates = found.candidates(law.candidates).pairs
            yield (
                f"{name}: {candidates.pairs:,.0f} candidate pairs from {candidates.sample_pairs:,} in the sample, "
                f"{pairs.removed:,.0f} rows dropped"
            )
            if self._run.scale > 1 and pairs.sample_pairs < _FEW_PAIRS:
                number = f"only {pairs.sample_pairs}" if pairs.sample_pairs else "no"
                yield (
                    f"{name}: the sample holds {number} near duplicates, so the numbers of pairs, of the rows in them "
                    "and of clusters may be wrong by a factor of several; take a larger sample"
                )
