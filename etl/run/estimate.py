"""What a recipe would cost on its whole input, predicted from a seeded sample of that input.

The recipe runs on the sample in this process, in a temporary folder, through an engine that counts CPU-seconds and the
bytes that would cross a shuffle. What it counted is then scaled up, each thing by the law that it follows, where L is
the input's bytes over the sample's:

    rows, text, tokens          L
    duplicates                  by pairs and groups of equal things: etl.run.growth
    rows that a step drops      each step by its own law: etl.run.duplicates
    rows that are live          what is left when a stage begins
    per-split tables, receipts  number of splits

Costs the sample's run (about 10 s for 16 MB without a model) and one listing of the input.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from etl.engine import nothing
from etl.engines.local import LocalEngine
from etl.run.duplicates import KEEP, NearDuplicates, SampleRun, dropped_rows
from etl.run.meter import MeteredEngine
from etl.run.recipe import Recipe
from etl.run.run import check, context_of, run_stages
from etl.run.sample import MIN_PIECE_BYTES, write_sample
from etl.stages.dedup.bands import band_bytes
from etl.stages.dedup.exact import CONTENT_BYTES
from etl.stages.layout import BYTES_PER_TOKEN
from etl.storage.remote import storage_options

SAMPLE_BYTES = 16 << 20
_FEW_PAIRS = 50
WORKER_BYTES = 900 << 20
"""Peak of a Python worker at the default split and bucket sizes, whatever the input: docs/scaling.md."""
JOIN_BYTES_PER_ROW = 40
"""Of the one task that joins the rows of all candidate pairs."""
DRIVER_BYTES_PER_TASK = 12_000
"""Of plan, receipts and manifest of one dataset on the driver."""


@dataclass(frozen=True)
class StageCost:
    """One job over the whole input."""

    stage: str
    rows: int
    """Rows of its largest dataset."""
    written_bytes: int
    """Parquet bytes of its datasets."""
    shuffle_bytes: int
    """Arrow bytes that cross the shuffle; what Spark writes of them is compressed."""
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
    notes: tuple[str, ...] = field(default=())

    def total(self, name: str) -> float:
        """Sum of a field over the stages."""
        return float(sum(getattr(cost, name) for cost in self.stages))

    def lines(self) -> Iterator[str]:
        """A table for a terminal."""
        yield f"{self.sample_bytes / 1e6:,.1f} MB sampled of {self.input_bytes / 1e6:,.1f} MB"
        names = ("rows", "written MB", "shuffled MB", "tasks", "objects", "CPU s")
        yield f"{'job':<28}" + "".join(f"{name:>14}" for name in names)
        sums = [self.total(name) for name in ("written_bytes", "shuffle_bytes", "tasks", "objects", "cpu_s")]
        total = StageCost("total", 0, int(sums[0]), int(sums[1]), int(sums[2]), int(sums[3]), sums[4])
        for cost in (*self.stages, total):
            yield (
                f"{cost.stage[:27]:<28}{cost.rows:>14,}{cost.written_bytes / 1e6:>14,.1f}"
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
    report: Callable[[str], None] = lambda line: None,
    seed: int = 0,
) -> Estimate:
    """Run a recipe on a sample of its input and predict the cost of the whole.

    Args:
        recipe: what would run; nothing is read from or written to its output.
        sample_bytes: stored bytes of input to sample. Slow steps (IFD) run on every row of it.
        report: gets one line for each dataset of the sample's run.
        seed: of the places that are sampled.

    Raises:
        StillhouseError: what a run of the recipe would raise.
    """
    with tempfile.TemporaryDirectory(prefix="stillhouse-sample-") as folder:
        with storage_options(recipe.storage):
            check(recipe)
            warm = write_sample(recipe, Path(folder) / "warm", MIN_PIECE_BYTES, seed)
            sample = write_sample(recipe, Path(folder) / "sample", sample_bytes, seed)
        # Models load and kernels compile once a worker, not once a row: they are not to be scaled up.
        run_stages(warm.recipe, context_of(warm.recipe, LocalEngine(), nothing))
        engine = MeteredEngine(KEEP)
        run_stages(sample.recipe, context_of(sample.recipe, engine, report))
        return _Prediction(SampleRun(sample, engine.jobs, engine.emitted)).estimate()


class _Scaling:
    """From the sizes that a sample's run left to those of the whole input."""

    def __init__(self, run: SampleRun) -> None:
        self._run = run
        self._scale = run.scale
        self.near = NearDuplicates.of(run, self.num_tasks("candidates"))
        self._dropped = dropped_rows(run, self.near)

    @cached_property
    def _order(self) -> tuple[str, ...]:
        return self._run.recipe.labels

    def live(self, stage: str) -> float:
        """Live rows of the whole input over those of the sample, when a stage of the recipe begins."""
        before = self._order[: self._order.index(stage)]
        gone = [step for step in self._dropped if step.stage in before]
        of_sample = self._run.rows - sum(step.of_sample for step in gone)
        of_input = self._run.rows * self._scale - sum(step.of_input for step in gone)
        # No law knows that a row can be dropped once only: at least a hundredth of the rows is taken to stay.
        return max(of_input, 0.01 * self._run.rows * self._scale) / max(1, of_sample)

    def factor(self, dataset: str) -> float:
        """How many times as many rows the dataset has, a row that an aligned table holds only a verdict for not."""
        near = self.near
        if dataset in ("candidates", "edges"):
            return self._ratio(dataset, near.stored_candidates)
        if dataset == "sets":
            return self._ratio(dataset, near.candidates.rows + near.canary_rows)
        if dataset == "pairs":
            return near.pairs.pairs / max(1, near.pairs.sample_pairs)
        if dataset in ("components", "near_hits"):
            return self._ratio(dataset, near.pairs.rows)
        if dataset in ("exact_hits", "paragraph_hits", "line_hits", "sentence_hits"):
            return self._run.groups(dataset).removed_factor
        if dataset == "split_hits":
            return self._run.groups(dataset).row_factor
        if dataset == "dropped":
            return self._ratio(dataset, sum(step.of_input for step in self._dropped))
        if dataset in ("tokenize", "score"):
            return self.live(dataset)
        if dataset in ("embeddings", "semantic_hits"):
            return self.live("semantic")
        if dataset == "corpus":
            return self.live("layout")
        if dataset == "cells" or dataset.startswith("rounds/"):
            return self._run.sample.input_splits / max(1, self._run.dataset(dataset).manifest.splits)
        return self._scale

    def row_factor(self, dataset: str) -> float:
        """As `factor`, of all rows: one that has a verdict stays in an aligned table."""
        return self._scale if dataset in ("tokenize", "score", "embeddings") else self.factor(dataset)

    def _ratio(self, dataset: str, rows: float) -> float:
        return rows / max(1, self._run.dataset(dataset).manifest.rows_out) if self._run.has(dataset) else 1.0

    def rows(self, dataset: str) -> float:
        return self._run.dataset(dataset).manifest.rows_out * self.row_factor(dataset)

    def written_bytes(self, dataset: str) -> float:
        return sum(part.bytes for part in self._run.dataset(dataset).manifest.parts) * self.factor(dataset)

    def shuffle_factor(self, job: str) -> float:
        """How many times as many bytes a job moves."""
        if job in ("exact_hits", "candidates", "paragraph_hits", "line_hits", "sentence_hits"):
            return self._scale
        if job == "split_hits":
            return self.live("split")
        if job == "pairs":
            return self.factor("sets")
        by_hits = ("exact", "near", "split", "paragraph", "line", "sentence", "semantic")
        return self.factor(f"{job}_hits" if job in by_hits else job)

    def num_tasks(self, job: str) -> int:
        if job in ("edges", "components"):
            return 1
        if job == "corpus":
            return self._num_files()
        if job in ("exact_hits", "split_hits", "candidates", "pairs", "near_hits"):
            return max(1, math.ceil(self._bucketed_bytes(job) / self._run.recipe.run.bucket_bytes))
        return self._run.sample.input_splits

    def _bucketed_bytes(self, job: str) -> float:
        """What the stage takes for the bytes of its shuffle when it chooses the number of buckets."""
        if job in ("pairs", "near_hits"):
            return 2 * self.written_bytes("sets")
        near = self._run.recipe.dedup.near
        row_bytes = {"exact_hits": CONTENT_BYTES, "candidates": band_bytes(near) if near else 0}
        return self._run.rows * self._scale * row_bytes.get(job, 56)

    def _num_files(self) -> int:
        tokens: dict[tuple[str, ...], int] = {}
        for batch in self._run.dataset("cells").read():
            for row in batch.to_pylist():
                cell = (row["split"], row["skill_bucket"], row["ctx_bucket"])
                tokens[cell] = tokens.get(cell, 0) + row["tokens"]
        target = self._run.recipe.layout.target_bytes
        bytes_per_token = self.live("layout") * BYTES_PER_TOKEN
        return sum(max(1, math.ceil(count * bytes_per_token / target)) for count in tokens.values())


class _Prediction:
    """From a sample's run to the cost of the whole."""

    def __init__(self, run: SampleRun) -> None:
        self._run = run
        self._scaling = _Scaling(run)

    def estimate(self) -> Estimate:
        costs = tuple(self._cost(job) for job in self._run.jobs)
        return Estimate(
            input_bytes=self._run.sample.input_bytes,
            sample_bytes=self._run.sample.sample_bytes,
            stages=costs,
            worker_bytes=WORKER_BYTES,
            join_bytes=round(self._scaling.near.candidates.rows * JOIN_BYTES_PER_ROW),
            driver_bytes=DRIVER_BYTES_PER_TASK * max((cost.tasks for cost in costs), default=0),
            notes=tuple(self._notes()),
        )

    def _cost(self, job: str) -> StageCost:
        scaling, datasets = self._scaling, job.split("+")
        tasks = scaling.num_tasks(job)
        return StageCost(
            stage=job,
            rows=round(max(scaling.rows(dataset) for dataset in datasets)),
            written_bytes=round(sum(scaling.written_bytes(dataset) for dataset in datasets)),
            shuffle_bytes=round(self._run.jobs[job].shuffle_bytes * scaling.shuffle_factor(job)),
            tasks=tasks,
            objects=len(datasets) * (2 * tasks + 2),
            cpu_s=self._cpu_s(job),
        )

    @cached_property
    def _task_cpu_s(self) -> float:
        """CPU-seconds of a task that has next to nothing to do."""
        return min(use.cpu_s / use.tasks for use in self._run.jobs.values())

    def _cpu_s(self, job: str) -> float:
        """Every task costs the same to begin; the rest grows with what the job works on."""
        use, scaling, scale = self._run.jobs[job], self._scaling, self._run.scale
        work = max(0.0, use.cpu_s - use.tasks * self._task_cpu_s)
        start = scaling.num_tasks(job) * self._task_cpu_s
        if job == "sets":
            # Texts are read again; then each row of a candidate pair is worth what a row of `candidates` is.
            each = self._run.jobs["candidates"].cpu_s / max(1, self._run.rows)
            more = scaling.near.candidates.rows - scale * self._run.dataset("sets").manifest.rows_out
            return start + scale * work + max(0.0, more) * each
        if job in ("edges", "pairs", "components", "near_hits", "corpus"):
            return start + work * scaling.shuffle_factor(job)
        first = job.split("+")[0]
        live = {"tokenize": "tokenize", "score": "score", "embeddings": "semantic", "semantic_hits": "semantic"}
        return start + work * (scaling.live(live[first]) if first in live else scale)

    def _notes(self) -> Iterator[str]:
        near = self._scaling.near
        if self._run.has("edges"):
            seen, few = near.candidates.sample_pairs, near.pairs.sample_pairs
            yield (
                f"near duplicates: {near.candidates.pairs:,.0f} candidate pairs from {seen:,} in the sample, "
                f"{near.pairs.removed:,.0f} rows dropped"
            )
            if self._run.scale > 1 and few < _FEW_PAIRS:
                yield (
                    f"only {few} near-duplicate pairs are in the sample: the numbers of edges, sets, pairs"
                    " and clusters may be wrong by a factor of several; take a larger sample"
                )
