"""The output of a sample's run, and the duplicates that it found.

    groups      equal rows, or equal things in rows: what crossed a shuffle
    candidates  pairs of rows that may be near duplicates, and how each grows
    pairs       those that are near duplicates, each with the weight of its candidate pair
    families    a row that is kept and the rows dropped in its favour

Each is found in one dataset, whose `Growth` (etl.laws) declares which of them it holds. The mathematics of pairs and
groups is in etl.run.growth.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pyarrow as pa

from etl.arrays import I64
from etl.dedup.canaries import bases, which_canaries
from etl.laws import CandidatePairs, GroupCopies, GroupRows, Law, VerifiedPairs
from etl.rows import Rows
from etl.run.growth import CandidateGrowth, Duplicates, grow, grow_groups
from etl.run.meter import JobUse
from etl.run.sample import Sample
from etl.stages.assemble import STEP as ASSEMBLE_STEP
from etl.stages.intake import QUARANTINED
from etl.stages.keyed import distinct, row_keys
from etl.storage.build import Job
from etl.storage.dataset import Dataset
from etl.storage.manifest import losses
from etl.storage.opened import Run


@dataclass(frozen=True)
class SampleRun:
    """A sample and what its run left behind; datasets are identified by name."""

    sample: Sample
    rows: Rows
    """After the last stage."""
    jobs: dict[str, Job]
    """In the order in which the stages asked for them."""
    uses: dict[str, JobUse]
    emitted: dict[str, pa.Table]
    """Columns of map sides."""

    @property
    def scale(self) -> float:
        return self.sample.scale

    @property
    def num_rows(self) -> int:
        """Rows of the sample."""
        return self.rows.num_rows

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        return Run.open(self.sample.recipe.place).datasets

    def num_rows_of(self, name: str) -> int:
        return self.datasets[name].manifest.rows_out

    def is_aligned(self, name: str) -> bool:
        """Whether a dataset is aligned with the rows and holds verdicts."""
        return self.jobs[name].base is not None and "verdict" in self.jobs[name].schema.names

    def num_dropped(self, name: str) -> int:
        """Rows that got a verdict in a dataset, either an aligned one or ingest's."""
        if "verdict" not in self.jobs[name].schema.names:
            return 0
        # Rows that were never assembled have no verdict: they do not count as rows of a run.
        accounts = ({**steps, ASSEMBLE_STEP: {}} for steps in self.datasets[name].manifest.accounting.values())
        reasons = [pair for steps in accounts for pair in losses(steps).items()]
        return sum(rows for reason, rows in reasons if not reason.startswith(QUARANTINED))

    def use(self, name: str) -> JobUse:
        """CPU-seconds and shuffled bytes of the job that wrote a dataset."""
        return next(use for names, use in self.uses.items() if name in names.split("+"))

    def columns(self, name: str, *columns: str) -> list[I64]:
        """Integer columns of a whole dataset: int64 [rows] each."""
        batches = list(self.datasets[name].read(list(columns)))
        empty = [np.empty(0, np.int64)]
        return [np.concatenate([*empty, *(batch.column(name).to_numpy() for batch in batches)]) for name in columns]

    def ids(self) -> pa.Table:
        """`id`, binary, and `row`, int64, of every row."""
        ids: list[pa.Array] = []
        keys = [np.empty(0, np.int64)]
        for split in self.rows.splits:
            start = 0
            for batch in self.rows.ref.read(split, ["id"]):
                ids.append(batch.column("id").cast(pa.binary()))
                keys.append(row_keys(split, start, batch.num_rows))
                start += batch.num_rows
        return pa.table({"id": pa.chunked_array(ids, pa.binary()), "row": np.concatenate(keys)})


@dataclass(frozen=True)
class Candidates:
    """The candidate pairs of one dataset."""

    found: CandidateGrowth
    pairs: Duplicates
    canaries: int
    """Pairs with a canary in the sample."""
    canary_rows: int
    """The canaries, and rows of the sample that are only in pairs with canaries."""
    scale: float

    @property
    def row_factor(self) -> float:
        """Rows in pairs of the whole input for each one of the sample, canaries included."""
        of_sample = self.pairs.sample_rows + self.canary_rows
        return (self.pairs.rows + self.canary_rows * self.scale) / of_sample if of_sample else 1.0

    def stored(self, num_tasks: int, block_pairs: int) -> float:
        """Pairs that this many tasks write for the whole input."""
        return self.found.stored(num_tasks, block_pairs) + self.canaries * self.scale


class Found:
    """The duplicates of a sample.

    Attributes:
        groups: groups of equal values of a dataset's map side, under the law `GroupCopies` or `GroupRows`.
        candidates: of a dataset under the law `CandidatePairs`.
        pairs: of a dataset under the law `VerifiedPairs`.
        families: of a dataset that names the survivor of each dropped row (`FamilyCopies`).
    """

    def __init__(self, run: SampleRun) -> None:
        self._run = run
        # Each is counted once, at its first use.
        self.groups = cache(self._groups)
        self.candidates = cache(self._candidates)
        self.pairs = cache(self._pairs)
        self.families = cache(self._families)

    def row_factor(self, name: str) -> float:
        """Rows of the whole input in pairs of either law, for each one of the sample."""
        if isinstance(self._law(name), CandidatePairs):
            return self.candidates(name).row_factor
        return self.pairs(name).row_factor

    def _law(self, name: str) -> Law:
        return self._run.jobs[name].grows.rows

    def _groups(self, name: str) -> Duplicates:
        law, table = self._law(name), self._run.emitted.get(name)
        assert isinstance(law, GroupCopies | GroupRows), f"{name} does not say by what its reducers group"
        if table is None:
            return Duplicates()
        return grow_groups(_numbered(table[law.key]), table["row"].to_numpy(), self._run.scale)

    def _candidates(self, name: str) -> Candidates:
        law, scale = self._law(name), self._run.scale
        assert isinstance(law, CandidatePairs), f"{name} does not say how its rows were paired"
        a, b = self._run.columns(name, "a", "b")
        real = ~which_canaries(b)
        left, right = distinct(np.minimum(a, b)[real], np.maximum(a, b)[real])
        found = CandidateGrowth.of(self._run.emitted[name], (left, right), law.max_partners, scale)
        alone = np.setdiff1d(bases(b[~real]), np.concatenate([left, right]))
        return Candidates(
            found=found,
            pairs=grow(found.left, found.right, found.weights, scale, self._run.num_rows * scale),
            canaries=int((~real).sum()),
            canary_rows=len(np.unique(b[~real])) + len(alone),
            scale=scale,
        )

    def _pairs(self, name: str) -> Duplicates:
        law, scale = self._law(name), self._run.scale
        assert isinstance(law, VerifiedPairs), f"{name} does not say of which candidates its pairs are"
        one, other = self._run.columns(name, "a_row", "b_row")
        left, right = np.minimum(one, other), np.maximum(one, other)
        weights = self.candidates(law.candidates).found.weights_of(left, right)
        return grow(left, right, weights, scale, self._run.num_rows * scale)

    def _families(self, name: str) -> Duplicates:
        hits = pa.Table.from_batches(list(self._run.datasets[name].read(["row", "survivor"])))
        gone = hits.filter(hits["survivor"].is_valid())
        staying = hits.filter(hits["survivor"].is_null())["row"].to_numpy()
        members = self._run.ids()
        stays = members.filter(pa.array(np.isin(members["row"].to_numpy(), staying)))
        families = pa.chunked_array([*gone["survivor"].cast(pa.binary()).chunks, *stays["id"].chunks], pa.binary())
        rows = np.concatenate([gone["row"].to_numpy(), stays["row"].to_numpy()])
        return grow_groups(_numbered(families), rows, self._run.scale)


def _numbered(keys: pa.ChunkedArray) -> I64:
    """A number for each key; equal keys have equal numbers: int64 [keys]."""
    coded = keys.combine_chunks().dictionary_encode()
    return coded.indices.to_numpy().astype(np.int64)
