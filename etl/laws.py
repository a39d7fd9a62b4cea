"""How the cost of a job grows with its input. Stages declare it per dataset, so that a sample can predict the whole.

A stage gives a `Growth` where it makes a job (`Context.job(..., grows=...)`); it is not part of a fingerprint. A job
without one grows like its live rows, with as many tasks as the input has splits. `stillhouse plan --sample` asks
(etl.run.scaling), and knows no dataset, stage or step by its name. A law names another dataset of the run by its
folder, `DatasetRef.stage`.

    Growth()                                                   a side table of what steps measured
    Growth(GroupCopies("content"), tasks=context.buckets(n))   a search for rows of equal content
    Growth.of_marks(hits.ref.stage, SameAs(hits.ref.stage))    the verdicts that result from it
"""

from dataclasses import dataclass
from enum import Enum, auto


class With(Enum):
    """Laws without a parameter: a quantity grows like these."""

    INPUT = auto()
    """Rows of the input."""
    LIVE = auto()
    """Rows that no step has dropped before the job."""
    DROPPED = auto()
    """Rows that steps have dropped before the job."""
    SPLITS = auto()
    """Splits of the input."""
    NOTHING = auto()
    """The number is constant."""


@dataclass(frozen=True)
class AtMost:
    """Like the live rows, up to this many rows."""

    rows: int


@dataclass(frozen=True)
class SameAs:
    """Like the rows of another dataset."""

    dataset: str


@dataclass(frozen=True)
class GroupCopies:
    """All rows but one of each group of equal values that the reducers of this job see.

    Its map side sends live rows, or parts of them, with an int64 column `row`, their row key (etl.stages.keyed).
    """

    key: str
    """Column of the map side whose equal values form a group."""


@dataclass(frozen=True)
class GroupRows:
    """Like `GroupCopies`, but every row of a group of at least two."""

    key: str


@dataclass(frozen=True)
class CandidatePairs:
    """Pairs of rows that share a band: int64 `a` and `b`, their row keys.

    The map side sends int64 `band`, `key` and `row` of each live row; a band's rows are paired in the order of `key`,
    then `row`. Those that are canaries (etl.dedup.canaries) grow with the input.
    """

    max_partners: int
    """Number of earlier rows of a band that a row is paired with."""
    block_pairs: int
    """Pairs among which one task stores each once."""


@dataclass(frozen=True)
class VerifiedPairs:
    """Those of the candidate pairs that are duplicates: int64 `a_row` and `b_row`, each pair once."""

    candidates: str
    """A dataset of the law `CandidatePairs`."""


@dataclass(frozen=True)
class PairRows:
    """Rows that are in a pair of another dataset."""

    pairs: str
    """A dataset of the law `CandidatePairs` or `VerifiedPairs`."""


@dataclass(frozen=True)
class PairCopies:
    """Rows that are dropped if one row of each group of duplicates is kept."""

    pairs: str
    """A dataset of the law `VerifiedPairs`."""


@dataclass(frozen=True)
class FamilyCopies:
    """Rows that are dropped for a similar row."""

    hits: str
    """A dataset of every live row: int64 `row`, and `survivor`, the id of the row kept in its place; null for a kept
    row."""


Law = (
    With | AtMost | SameAs | GroupCopies | GroupRows | CandidatePairs | VerifiedPairs | PairRows | PairCopies
    | FamilyCopies
)  # fmt: skip


@dataclass(frozen=True)
class MoreRows:
    """CPU time of a pass over all rows in which each row of the dataset takes extra time.

    Each row that the dataset has beyond its share of the live rows takes as long as a live row takes in another job.
    """

    like: str


@dataclass(frozen=True)
class Pieces:
    """Number of tasks by bytes: each heap has one per `each` bytes, and at least one."""

    heaps: tuple[float, ...]
    each: int
    grow: Law = With.INPUT
    """How the bytes grow."""

    def count(self, factor: float = 1) -> int:
        """The number of tasks if every heap has `factor` times its bytes."""
        return sum(max(1, int(-(-heap * factor // self.each))) for heap in self.heaps)


@dataclass(frozen=True)
class Growth:
    """How the output and the cost of a job grow with its input."""

    rows: Law = With.LIVE
    """Its rows. For a table aligned with the input, which always has all rows, its bytes."""
    crosses: Law = With.LIVE
    """The bytes that cross its shuffle."""
    work: Law | MoreRows = With.LIVE
    """Its CPU time, without the start-up of its tasks."""
    drops: Law = With.LIVE
    """The rows that its steps drop."""
    tasks: With | Pieces = With.SPLITS

    @classmethod
    def all_by(cls, law: Law, tasks: With | Pieces = With.SPLITS) -> "Growth":
        """Rows, bytes that cross the shuffle and CPU time by one law."""
        return cls(rows=law, crosses=law, work=law, tasks=tasks)

    @classmethod
    def of_marks(cls, hits: str, drops: Law) -> "Growth":
        """For verdicts made from the rows of a dataset of hits."""
        return cls(rows=With.INPUT, crosses=SameAs(hits), work=With.INPUT, drops=drops)

    @property
    def looks_at(self) -> tuple[str, ...]:
        """Columns of the map side of a sample that show how the rows grow."""
        match self.rows:
            case GroupCopies(key) | GroupRows(key):
                return key, "row"
            case CandidatePairs():
                return "band", "key", "row"
            case _:
                return ()


LIVE_ROWS = Growth()
"""The law of a job that declares none."""
