"""How a job grows when its input does: what a stage says of each dataset, so that a sample can stand for the whole.

A stage gives a `Growth` where it makes a job (`Context.job(..., grows=...)`); it is no part of a fingerprint. A job
that says nothing grows as its live rows do, in as many tasks as the input has splits. `stillhouse plan --sample` asks
(etl.run.scaling), and knows no dataset, stage or step by its name. A law names another dataset of the run by its
folder, `DatasetRef.stage`.

    Growth()                                                   a side table of what steps measured
    Growth(GroupCopies("content"), tasks=context.buckets(n))   a search for rows of equal content
    Growth.of_marks(hits.ref.stage, SameAs(hits.ref.stage))    the verdicts that it comes to
"""

from dataclasses import dataclass
from enum import Enum, auto


class With(Enum):
    """Laws without a parameter: a thing grows as these do."""

    INPUT = auto()
    """Rows of the input."""
    LIVE = auto()
    """Rows that no step has dropped before the job."""
    DROPPED = auto()
    """Rows that steps have dropped before the job."""
    SPLITS = auto()
    """Splits of the input."""
    NOTHING = auto()
    """The number stays what it is."""


@dataclass(frozen=True)
class AtMost:
    """As the live rows, up to so many rows."""

    rows: int


@dataclass(frozen=True)
class SameAs:
    """As the rows of another dataset."""

    dataset: str


@dataclass(frozen=True)
class GroupCopies:
    """All rows but one of each group of equal values that the reducers of this job see.

    Its map side sends live rows, or things in them, with an int64 column `row`, their row key (etl.stages.keyed).
    """

    key: str
    """Column of the map side that is equal within a group."""


@dataclass(frozen=True)
class GroupRows:
    """As `GroupCopies`, every row of a group of at least two."""

    key: str


@dataclass(frozen=True)
class CandidatePairs:
    """Pairs of rows that share a band: int64 `a` and `b`, their row keys.

    The map side sends int64 `band`, `key` and `row` of each live row; a band's rows are paired in the order of `key`,
    then `row`. Those that are canaries (etl.dedup.canaries) grow with the input.
    """

    max_partners: int
    """Rows before it that a row of a band is paired with."""
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
    """Rows that go when one row of each family of duplicates stays."""

    pairs: str
    """A dataset of the law `VerifiedPairs`."""


@dataclass(frozen=True)
class FamilyCopies:
    """Rows that go for another one that means the same."""

    hits: str
    """A dataset of every live row, int64 `row`, and `survivor`, the id of the row that stays for it; null for one that
    stays."""


Law = (
    With | AtMost | SameAs | GroupCopies | GroupRows | CandidatePairs | VerifiedPairs | PairRows | PairCopies
    | FamilyCopies
)  # fmt: skip


@dataclass(frozen=True)
class MoreRows:
    """CPU time of a pass over all rows in which each row of the dataset takes time of its own.

    What the dataset has beyond its share of the live rows takes, a row, what a live row takes in another job.
    """

    like: str


@dataclass(frozen=True)
class Pieces:
    """Tasks that follow from bytes: of each heap one for every `each` bytes, and at least one."""

    heaps: tuple[float, ...]
    each: int
    grow: Law = With.INPUT
    """How the bytes grow."""

    def count(self, factor: float = 1) -> int:
        """Tasks when every heap has `factor` times its bytes."""
        return sum(max(1, int(-(-heap * factor // self.each))) for heap in self.heaps)


@dataclass(frozen=True)
class Growth:
    """How what a job makes and takes grows with the input."""

    rows: Law = With.LIVE
    """Its rows; of a table that is aligned with the input, which always has all rows, its bytes."""
    crosses: Law = With.LIVE
    """The bytes that cross its shuffle."""
    work: Law | MoreRows = With.LIVE
    """Its CPU time, beside what every task takes to begin."""
    drops: Law = With.LIVE
    """The rows that its steps drop."""
    tasks: With | Pieces = With.SPLITS

    @classmethod
    def all_by(cls, law: Law, tasks: With | Pieces = With.SPLITS) -> "Growth":
        """Rows, what crosses the shuffle and CPU time by one law."""
        return cls(rows=law, crosses=law, work=law, tasks=tasks)

    @classmethod
    def of_marks(cls, hits: str, drops: Law) -> "Growth":
        """Of verdicts that are made of the rows of a dataset of hits."""
        return cls(rows=With.INPUT, crosses=SameAs(hits), work=With.INPUT, drops=drops)

    @property
    def looks_at(self) -> tuple[str, ...]:
        """Columns of the map side of a sample that tell how the rows grow."""
        match self.rows:
            case GroupCopies(key) | GroupRows(key):
                return key, "row"
            case CandidatePairs():
                return "band", "key", "row"
            case _:
                return ()


LIVE_ROWS = Growth()
"""What holds of a job that says nothing."""
