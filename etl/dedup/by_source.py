"""Duplicates by source: how much of each source is removed, and how much of it is contained in another.

Pure functions over counts, for the `findings` of a manifest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

SUBSET_SHARE: Final = 0.95
"""A source of which at least this share is in another one is called a subset of that."""


@dataclass(frozen=True)
class DuplicateCounts:
    """The counts of one kind of duplicates (exact, near), by source."""

    kind: str
    rows: dict[str, int]
    """Rows that entered."""
    removed: dict[str, int]
    overlap: dict[str, dict[str, int]]
    """By A and B, rows of A that have a duplicate in B (`etl.dedup.overlap`)."""


def by_source(kinds: Sequence[DuplicateCounts]) -> dict[str, Any]:
    """For each source: rows, removed rows, their share, the factor by which a mixture must over-select, overlaps.

    `over_select` rows have to be taken for each row that should remain: 1 / (1 - removed share); null if none remains.
    The share of A in B counts A's rows that have an exact duplicate in B, and those of the remaining rows that have a
    near one. A row with both counts twice, so the share is an upper bound, at most 1.

    Args:
        kinds: in the order in which they ran; the rows of a kind are those that the previous one left.
    """
    report = {}
    for source, rows in kinds[0].rows.items():
        removed = {counts.kind: counts.removed.get(source, 0) for counts in kinds}
        left = rows - sum(removed.values())
        report[source] = {
            "rows": rows,
            "removed": removed,
            "removed_share": _share(rows - left, rows),
            "over_select": round(rows / left, 6) if left else None,
            "in_others": _in_others(kinds, source, rows),
        }
    return report


def _in_others(kinds: Sequence[DuplicateCounts], source: str, rows: int) -> dict[str, Any]:
    others = sorted({other for counts in kinds for other in counts.overlap.get(source, {}) if other != source})
    table = {}
    for other in others:
        found = {counts.kind: counts.overlap.get(source, {}).get(other, 0) for counts in kinds}
        table[other] = {**found, "share": _share(min(rows, sum(found.values())), rows)}
    return table


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def subsets(report: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(A, B, share) where nearly all of A is in B."""
    for source, line in report.items():
        for other, found in line["in_others"].items():
            if found["share"] >= SUBSET_SHARE:
                yield source, other, found["share"]


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The report for a terminal."""
    for source, line in report.items():
        if line["over_select"] is None:
            yield f"{source}: all {line['rows']:,} rows are duplicates of others"
        elif line["removed_share"]:
            found = f"{sum(line['removed'].values()):,} of {line['rows']:,} rows are duplicates"
            yield f"{source}: {found} ({line['removed_share']:.1%}); over-select by {line['over_select']:.3f}"
    for source, other, contained in subsets(report):
        yield f"warning: {contained:.1%} of {source} is in {other}, too: a subset of it"
