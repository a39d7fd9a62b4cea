"""What a sample's run found of duplicates, and how many rows each step drops of the whole input.

    near                       pairs of near duplicates, each with the weight of its candidate pair
    exact                      groups of equal content
    paragraph, line, sentence  groups of equal units; a document that is left with next to nothing goes as its units do
    semantic                   groups of a row that stays and those that go for it
    split                      a validation row goes as the rows do that share a prompt
    any other step or cut      rows, each by itself

The laws of pairs and groups are in etl.run.growth.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from etl.arrays import I64
from etl.dedup.canaries import bases, which_canaries
from etl.run.growth import CandidateGrowth, Growth, grow, grow_groups
from etl.run.meter import JobUse
from etl.run.recipe import Recipe
from etl.run.sample import Sample
from etl.stages.keyed import distinct
from etl.storage.dataset import Dataset

_KINDS_OF_UNITS = ("paragraph", "line", "sentence")
_GROUPED_BY = {"exact_hits": "content", "split_hits": "prompt", **{f"{unit}_hits": "unit" for unit in _KINDS_OF_UNITS}}
"""Job to the column of its map side by which its reducers group."""
KEEP = {
    "candidates": ("band", "key", "row"),
    "semantic_hits": ("id", "row"),
    **{job: (key, "row") for job, key in _GROUPED_BY.items()},
}
"""Job to the columns that `SampleRun.emitted` has to hold of its map side."""


@dataclass(frozen=True)
class SampleRun:
    """A sample and what its run left behind."""

    sample: Sample
    jobs: dict[str, JobUse]
    emitted: dict[str, pa.Table]

    @property
    def recipe(self) -> Recipe:
        return self.sample.recipe

    @property
    def scale(self) -> float:
        return self.sample.scale

    def has(self, stage: str) -> bool:
        return any(stage in job.split("+") for job in self.jobs)

    def dataset(self, stage: str) -> Dataset:
        return Dataset.open(f"{self.recipe.output}/{stage}")

    @cached_property
    def rows(self) -> int:
        """Rows of the sample."""
        return self.dataset("ingest").manifest.rows_out

    def columns(self, stage: str, *names: str) -> list[I64]:
        """Integer columns of a whole dataset: int64 [rows] each."""
        batches = list(self.dataset(stage).read(list(names)))
        empty = [np.empty(0, np.int64)]
        return [np.concatenate([*empty, *(batch.column(name).to_numpy() for batch in batches)]) for name in names]

    def groups(self, job: str) -> Growth:
        """How the groups grow that the reducers of a job find."""
        return self._groups.get(job, Growth())

    @cached_property
    def _groups(self) -> dict[str, Growth]:
        return {
            job: grow_groups(_numbered(table[_GROUPED_BY[job]]), table["row"].to_numpy(), self.scale)
            for job, table in self.emitted.items()
            if job in _GROUPED_BY
        }


def _numbered(keys: pa.ChunkedArray) -> I64:
    """A number for each key, equal for equal ones: int64 [keys]."""
    coded = keys.combine_chunks().dictionary_encode()
    return coded.indices.to_numpy().astype(np.int64)


@dataclass(frozen=True)
class NearDuplicates:
    """What the stages of near dedup come to on the whole input."""

    candidates: Growth
    pairs: Growth
    stored_candidates: float
    """Rows of `candidates`."""
    canary_rows: float
    """Rows of `sets` that are there for canaries."""

    @classmethod
    def of(cls, run: SampleRun, num_buckets: int) -> "NearDuplicates":
        """From the candidates and pairs of a sample; nothing where the recipe looks for none.

        Args:
            run: of the sample.
            num_buckets: of the candidates of the whole input.
        """
        near = run.recipe.dedup.near
        if near is None or not run.has("edges"):
            return cls(Growth(), Growth(), 0.0, 0.0)
        most = run.rows * run.scale
        a, b = run.columns("candidates", "a", "b")
        real = ~which_canaries(b)
        candidates = distinct(a[real], b[real])
        met = CandidateGrowth.of(
            run.emitted["candidates"], (candidates[0], candidates[1]), near.max_partners, run.scale
        )
        one, other = run.columns("pairs", "a_row", "b_row")
        left, right = np.minimum(one, other), np.maximum(one, other)
        copied = np.setdiff1d(bases(b[~real]), np.concatenate(candidates))
        return cls(
            candidates=grow(met.left, met.right, met.weights, run.scale, most),
            pairs=grow(left, right, met.weights_of(left, right), run.scale, most),
            stored_candidates=met.stored(num_buckets) + float((~real).sum()) * run.scale,
            canary_rows=(len(np.unique(b[~real])) + len(copied)) * run.scale,
        )


@dataclass(frozen=True)
class DroppedRows:
    """Rows that one step drops."""

    stage: str
    of_sample: int
    of_input: float


def dropped_rows(run: SampleRun, near: NearDuplicates) -> tuple[DroppedRows, ...]:
    """Every step of the recipe that has dropped rows of the sample."""
    counts: Counter[tuple[str, str]] = Counter()
    for batch in run.dataset("dropped").read(["stage", "step"]):
        counts.update(zip(batch["stage"].to_pylist(), batch["step"].to_pylist(), strict=True))
    return tuple(DroppedRows(stage, count, count * _factor(run, near, step)) for (stage, step), count in counts.items())


def _factor(run: SampleRun, near: NearDuplicates, step: str) -> float:
    """Rows of the whole input that a step drops for each one that it drops of the sample."""
    if step == "exact":
        return run.groups("exact_hits").removed_factor
    if step == "near":
        return near.pairs.removed_factor
    if step in _KINDS_OF_UNITS:
        return run.groups(f"{step}_hits").removed_factor
    if step == "semantic":
        return _semantic_growth(run).removed_factor
    if step == "split":
        return run.groups("split_hits").row_factor
    return run.scale


def _semantic_growth(run: SampleRun) -> Growth:
    """Of families of rows that mean the same: a row that stays and those that went for it."""
    hits = pa.Table.from_batches(list(run.dataset("semantic_hits").read(["row", "survivor"])))
    gone = hits.filter(hits["survivor"].is_valid())
    members = run.emitted["semantic_hits"]
    stays = members.filter(pa.array(~np.isin(members["row"].to_numpy(), gone["row"].to_numpy())))
    families = pa.chunked_array([*gone["survivor"].cast(pa.binary()).chunks, *stays["id"].chunks], pa.binary())
    rows = np.concatenate([gone["row"].to_numpy(), stays["row"].to_numpy()])
    return grow_groups(_numbered(families), rows, run.scale)
