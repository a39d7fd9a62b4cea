"""Cuts: keep part of the rows by a threshold on (score, hash of id), found exactly without a global sort.

The base class of all cuts is here, too; the cut by given bounds is in `etl.mixture.threshold`.

A row's key has six digits of 16 bits: the score as an order-preserving uint32 (two digits), then a 64-bit hash of its
id (four). One narrow pass counts rows by the next digit among the rows that share the digits found so far; the driver
adds the counts of all parts and picks the digit in which the quota falls. So a threshold costs at most six passes over
the score column, and two if all scores differ. Ties are cut by the hash, never by arrival, and the number of kept rows
is exact.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from etl.config import Config, nearest
from etl.errors import SchemaError
from etl.foreign import Kinded
from etl.hashing import hash_array, ordered_bits
from etl.step import OF_THE_INPUT, Selected, drop, live, on_selected

DIGITS = 6
RADIX = 1 << 16
_SCORE_DIGITS = 2
_HASH_SEED = 0x637574
"""Fixed, so that the same row is on the same side of a cut whatever else is in the recipe."""

Digits = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Counts:
    """The rows of one group by digit; digits without rows are left out."""

    digits: npt.NDArray[np.int32]
    """Ascending, [digits]."""
    rows: npt.NDArray[np.int64]
    """Rows with each digit, [digits]."""


HISTOGRAM = pa.schema(
    [
        pa.field("group", pa.string(), nullable=False),
        pa.field("digit", pa.int32(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
    ]
)


class Threshold(Config):
    """Where a group is cut: rows with a key up to and including `key` are kept; an empty key keeps none."""

    keep: int
    total: int
    key: tuple[int, ...] = ()
    """DIGITS digits, most significant first, or none for a quota of zero."""

    @model_validator(mode="after")
    def _whole(self) -> "Threshold":
        assert len(self.key) in (0, DIGITS)
        return self


Thresholds = Mapping[str, Threshold]
"""By group."""


class Cut(Selected, Kinded):
    """Base of the cuts: configurations that give verdicts by columns which steps have measured.

    A cut is a `RankedCut`, which keeps a number of rows of a group, or a `RowCut`, which looks at each row by itself.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Name of the step in verdicts, and of the folder of the cut's dataset."""
    version: ClassVar[int] = 1
    """Increased when the same configuration and rows would give another result, or a default changes."""

    @property
    def label(self) -> str:
        return self.name

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns that must exist: those that it looks at and those by which its rows are chosen."""
        return tuple(dict.fromkeys([*self.reads(), *self.selects_by]))

    def identity(self) -> dict[str, Any]:
        """Everything that decides where the cut falls, besides the rows; includes the version from 2 on."""
        version = {"version": self.version} if self.version > 1 else {}
        return {**version, **self.fingerprinted(), **self.code()}

    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """Columns that the cut looks at."""

    def check(self, schema: pa.Schema) -> None:
        """Find a wrong column before a row is read.

        Raises:
            SchemaError: a column is absent, or of another type than the cut needs.
        """
        missing = [name for name in self.needed if name not in schema.names]
        if missing:
            raise SchemaError(
                f"cut '{self.name}' reads {missing}; the columns at that point are {schema.names}; "
                f"{nearest(missing[0], schema.names)}{OF_THE_INPUT}"
            )

    @abstractmethod
    def judge(self, batch: pa.RecordBatch, thresholds: Thresholds) -> pa.RecordBatch:
        """The batch with verdicts for the dropped rows.

        Args:
            batch: of `id`, `verdict` and `needed`.
            thresholds: those that the rounds have found for each group; empty for a cut without rounds.
        """


class RowCut(Cut):
    """Base of the cuts that look at each row by itself: one pass, no rounds."""

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, **super().identity()}

    @abstractmethod
    def mark(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with verdicts (`etl.step.drop` by `label`) for the dropped rows, in the same length and order."""

    def judge(self, batch: pa.RecordBatch, thresholds: Thresholds) -> pa.RecordBatch:
        return on_selected(self, self.mark, batch, batch)


class RankedCut(Cut):
    """Base of the cuts by rank. A subclass says which group a row is in, its score, and how many of a group to keep.

    Within a group the rows with the smallest keys are kept. Rows that no group claims are not touched.
    """

    first_digit: ClassVar[int] = 0
    """The digits before this one are equal for all rows (a cut without a score starts at the hash)."""

    @property
    @abstractmethod
    def reason(self) -> str:
        """The reason in the verdict of a dropped row."""

    @abstractmethod
    def numeric(self) -> tuple[str, ...]:
        """The columns that must be numbers; the others must be text."""

    def check(self, schema: pa.Schema) -> None:
        super().check(schema)
        for name in self.reads():
            kind = schema.field(name).type
            number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
            if name in self.numeric() and not number:
                raise SchemaError(f"cut '{self.name}' needs numbers, but column '{name}' is {kind}")
            if name not in self.numeric() and not pa.types.is_string(kind):
                raise SchemaError(f"cut '{self.name}' needs text, but column '{name}' is {kind}")

    @abstractmethod
    def group(self, batch: pa.RecordBatch) -> pa.Array:
        """The group of each row, string; null for a row that the cut does not touch."""

    @abstractmethod
    def score(self, batch: pa.RecordBatch) -> pa.Array:
        """The score by which rows are ordered, float; smallest first."""

    @abstractmethod
    def quotas(self, totals: dict[str, int]) -> dict[str, int]:
        """How many rows of each group to keep, given how many are live."""

    def judge(self, batch: pa.RecordBatch, thresholds: Thresholds) -> pa.RecordBatch:
        """The verdict's value is the row's value in the first column that the cut reads."""
        value = batch.column(self.reads()[0]).cast(pa.string())
        return drop(batch, self.label, beyond(self, batch, thresholds), self.reason, value)


class ShareCut(RankedCut):
    """Keep rows so that those whose `column` is one of `values` make up `share` of the rows.

    The side in excess is thinned by the hash of the id; if only one side is present, the share cannot be reached and
    all rows are kept.
    """

    kind: Literal["share"] = "share"
    purpose: ClassVar[str] = "Keep rows so that those with some values of a column make up a given share."
    example: ClassVar[str] = "{kind: share, name: half_english, column: detected_language, values: [en], share: 0.5}"
    reason: ClassVar[str] = "over_share"
    first_digit: ClassVar[int] = _SCORE_DIGITS
    column: str
    """Column to compare."""
    values: tuple[str, ...]
    """Values that count towards the share."""
    share: float = Field(gt=0, lt=1)
    """Share of all kept rows that have one of these values."""

    def reads(self) -> tuple[str, ...]:
        return (self.column,)

    def numeric(self) -> tuple[str, ...]:
        return ()

    def group(self, batch: pa.RecordBatch) -> pa.Array:
        inside = pc.is_in(batch.column(self.column), value_set=pa.array(self.values, pa.string()))
        return pc.if_else(inside, "inside", "outside")

    def score(self, batch: pa.RecordBatch) -> pa.Array:
        return pa.repeat(pa.scalar(0.0), batch.num_rows)

    def quotas(self, totals: dict[str, int]) -> dict[str, int]:
        inside, outside = totals.get("inside", 0), totals.get("outside", 0)
        if not inside or not outside:
            return {"inside": inside, "outside": outside}
        if inside < self.share * (inside + outside):
            return {"inside": inside, "outside": round(inside * (1 - self.share) / self.share)}
        return {"inside": round(outside * self.share / (1 - self.share)), "outside": outside}


class PercentileCut(RankedCut):
    """Keep the rows up to a percentile of a score, separately for each combination of the `within` columns.

    Rows without a score are kept. `keep: 0.8` keeps ceil(0.8 · n) of the n rows of a group.
    """

    kind: Literal["percentile"] = "percentile"
    purpose: ClassVar[str] = "Keep rows up to a percentile of a score, within groups."
    example: ClassVar[str] = "{kind: percentile, name: fluent, column: perplexity, within: [language], keep: 0.9}"
    reason: ClassVar[str] = "beyond_percentile"
    column: str
    """Column of the score."""
    within: tuple[str, ...] = ()
    """Columns; each combination of their values is cut separately."""
    keep: float = Field(gt=0, le=1)
    """Share of the scored rows to keep."""
    order: Literal["lowest", "highest"] = "lowest"
    """Which end of the score to keep."""

    def reads(self) -> tuple[str, ...]:
        return (self.column, *self.within)

    def numeric(self) -> tuple[str, ...]:
        return (self.column,)

    def group(self, batch: pa.RecordBatch) -> pa.Array:
        # Escaped, so that no two combinations share a label.
        parts = [pc.replace_substring(pc.fill_null(batch.column(name), ""), "/", "%2F") for name in self.within]
        label = pc.binary_join_element_wise(*parts, "/") if parts else pa.repeat("all", batch.num_rows)
        return pc.if_else(batch.column(self.column).is_valid(), label, pa.scalar(None, pa.string()))

    def score(self, batch: pa.RecordBatch) -> pa.Array:
        values = batch.column(self.column)
        return values if self.order == "lowest" else pc.negate(values)

    def quotas(self, totals: dict[str, int]) -> dict[str, int]:
        return {group: int(np.ceil(self.keep * rows - 1e-9)) for group, rows in totals.items()}


def keys(cut: RankedCut, batch: pa.RecordBatch) -> Digits:
    """The key of each row: int32 [rows, DIGITS], each digit in [0, RADIX)."""
    scores = pc.fill_null(cut.score(batch).cast(pa.float32(), safe=False), 0.0).to_numpy(zero_copy_only=False)
    ordered = ordered_bits(scores)
    hashes = hash_array(batch.column("id"), _HASH_SEED)
    digits = np.empty((len(scores), DIGITS), np.int32)
    for place in range(_SCORE_DIGITS):
        digits[:, place] = (ordered >> np.uint32(16 * (1 - place))) & 0xFFFF
    for place in range(DIGITS - _SCORE_DIGITS):
        digits[:, _SCORE_DIGITS + place] = (hashes >> np.uint64(48 - 16 * place)) & np.uint64(0xFFFF)
    return digits


class Search:
    """The driver's side: digit by digit, from counts to the threshold of every group."""

    def __init__(self, cut: RankedCut) -> None:
        self.cut = cut
        self.digit = cut.first_digit
        self._prefixes: dict[str, tuple[int, ...]] | None = None
        self._left: dict[str, int] = {}
        self._totals: dict[str, int] = {}
        self.thresholds: dict[str, Threshold] = {}

    @property
    def done(self) -> bool:
        return self._prefixes is not None and not self._prefixes

    @property
    def prefixes(self) -> dict[str, tuple[int, ...]] | None:
        """For each group still searched, the digits found so far; None before the first pass (every group)."""
        return self._prefixes

    def feed(self, counts: dict[str, Counts]) -> None:
        """Take the counts by digit of every group that is still searched (at first: of every group that has rows)."""
        if self._prefixes is None:
            self._totals = {group: int(count.rows.sum()) for group, count in counts.items()}
            self._left = self.cut.quotas(self._totals)
            self._prefixes = dict.fromkeys(counts, (0,) * self.digit)
            self._settle_trivial()
        for group, prefix in list(self._prefixes.items()):
            self._advance(group, prefix, counts[group])
        self.digit += 1

    def _settle_trivial(self) -> None:
        """Groups that lose nothing or everything need no search."""
        assert self._prefixes is not None
        for group, total in self._totals.items():
            keep = self._left[group]
            if keep >= total:
                self._settle(group, (RADIX - 1,) * DIGITS)
            elif keep == 0:
                self._settle(group, ())

    def _advance(self, group: str, prefix: tuple[int, ...], count: Counts) -> None:
        below = np.cumsum(count.rows)
        place = int(np.searchsorted(below, self._left[group]))
        prefix = (*prefix, int(count.digits[place]))
        if below[place] == self._left[group] or len(prefix) == DIGITS:
            self._settle(group, prefix + (RADIX - 1,) * (DIGITS - len(prefix)))
            return
        self._left[group] -= int(below[place] - count.rows[place])
        assert self._prefixes is not None
        self._prefixes[group] = prefix

    def _settle(self, group: str, key: tuple[int, ...]) -> None:
        assert self._prefixes is not None
        del self._prefixes[group]
        keep = self.cut.quotas(self._totals)[group]
        self.thresholds[group] = Threshold(keep=min(keep, self._totals[group]), total=self._totals[group], key=key)


def histogram(
    cut: RankedCut, batches: Iterator[pa.RecordBatch], digit: int, prefixes: dict[str, tuple[int, ...]] | None
) -> pa.RecordBatch:
    """Rows by (group, digit) among the live and selected rows whose key begins with their group's prefix: HISTOGRAM."""
    counts = [_count(cut, batch, digit, prefixes) for batch in batches]
    return _sum(pa.Table.from_batches(counts, HISTOGRAM))


def _count(
    cut: RankedCut, batch: pa.RecordBatch, digit: int, prefixes: dict[str, tuple[int, ...]] | None
) -> pa.RecordBatch:
    selected = cut.selected(batch)
    batch = batch.filter(live(batch) if selected is None else pc.and_(live(batch), selected))
    groups = cut.group(batch).dictionary_encode()
    codes = pc.fill_null(groups.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    digits = keys(cut, batch)
    wanted = codes >= 0
    if prefixes is not None:
        labels = groups.dictionary.to_pylist()
        searched = np.array([label in prefixes for label in labels], bool)
        found = np.array([prefixes.get(label, (-1,) * digit) for label in labels], np.int32).reshape(len(labels), digit)
        wanted[wanted] = searched[codes[wanted]]
        wanted[wanted] = (digits[wanted, cut.first_digit : digit] == found[codes[wanted], cut.first_digit :]).all(
            axis=1
        )
    cells, rows = np.unique(codes[wanted] * RADIX + digits[wanted, digit], return_counts=True)
    names = groups.dictionary.cast(pa.string()).take(pa.array(cells // RADIX))
    columns = [names, pa.array((cells % RADIX).astype(np.int32)), pa.array(rows.astype(np.int64))]
    return pa.RecordBatch.from_arrays(columns, schema=HISTOGRAM)


def _sum(table: pa.Table) -> pa.RecordBatch:
    """A table of one row for each (group, digit), sorted."""
    total = table.group_by(["group", "digit"]).aggregate([("rows", "sum")]).rename_columns(HISTOGRAM.names)
    ordered = total.sort_by([("group", "ascending"), ("digit", "ascending")]).cast(HISTOGRAM)
    return pa.RecordBatch.from_arrays([column.combine_chunks() for column in ordered.columns], schema=HISTOGRAM)


def add_histograms(batches: Iterator[pa.RecordBatch]) -> dict[str, Counts]:
    """The sum over the parts, group by group."""
    total = _sum(pa.Table.from_batches(batches, HISTOGRAM))
    groups = total.column("group").dictionary_encode()
    starts = np.searchsorted(groups.indices.to_numpy(), np.arange(len(groups.dictionary) + 1))
    digits, rows = total.column("digit").to_numpy(), total.column("rows").to_numpy()
    return {
        label: Counts(digits[start:end], rows[start:end])
        for label, start, end in zip(groups.dictionary.to_pylist(), starts[:-1], starts[1:], strict=True)
    }


def beyond(cut: RankedCut, batch: pa.RecordBatch, thresholds: Thresholds) -> pa.BooleanArray:
    """True for the rows that the cut drops; the verdict of a row is not looked at."""
    groups = cut.group(batch).dictionary_encode()
    codes = pc.fill_null(groups.indices, -1).to_numpy(zero_copy_only=False)
    digits = keys(cut, batch)
    out = np.zeros(batch.num_rows, bool)
    for code, label in enumerate(groups.dictionary.to_pylist()):
        mine = codes == code
        if label in thresholds:
            out[mine] = _greater(digits[mine], thresholds[label].key, cut.first_digit)
    selected = cut.selected(batch)
    return pa.array(out) if selected is None else pc.and_(pa.array(out), selected)


def _greater(digits: Digits, key: tuple[int, ...], first: int) -> npt.NDArray[np.bool_]:
    """Whether digits > key, lexicographically from digit `first` on; everything is greater than an empty key."""
    if not key:
        return np.ones(len(digits), bool)
    out = np.zeros(len(digits), bool)
    equal = np.ones(len(digits), bool)
    for place in range(first, DIGITS):
        out |= equal & (digits[:, place] > key[place])
        equal &= digits[:, place] == key[place]
    return out
