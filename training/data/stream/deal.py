"""Distributes the documents of a corpus to lanes, so that each lane is a small image of the whole corpus.

Cell by cell the row groups lie in a seeded order on a line of tokens, and the line is cut into as many equal intervals
as there are lanes; a lane gets the same interval of every cell, and a row group is cut into row ranges only where a
border falls into it. Ranks own contiguous lanes, so at most world - 1 row groups a cell are read by two ranks. Only
the manifest is used. A corpus of preference pairs is dealt pair by pair instead, by hash, wherever its rows lie: every
rank then reads the (narrow) index of all rows and the row groups of its pairs.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from etl.arrays import I64
from etl.hashing import xxh64
from etl.storage.manifest import Part
from training.data.stream.plan import DocumentIndex, Unit, cell_of, uniform


@dataclass(frozen=True)
class _Piece:
    """A row group on the line of its cell."""

    part: int
    row_group: int
    rows: int
    start: float
    """Tokens before it."""
    tokens: float
    """Estimated from the part's tokens; at least one a row, and that where the manifest has none."""

    def rows_before(self, border: float, phase: float) -> int:
        """Its rows that lie before a border of the line; `phase` in [0, 1) says how a fraction of a row is rounded."""
        place = (border - self.start) / self.tokens * self.rows
        return min(max(math.floor(place + phase), 0), self.rows)


def deal_lanes(parts: Sequence[Part], num_lanes: int, seed: int) -> tuple[tuple[Unit, ...], ...]:
    """The rows of each lane, sorted by part, row group and row; every row is in exactly one lane."""
    lanes: list[list[Unit]] = [[] for _ in range(num_lanes)]
    for cell, line in _lines(parts, seed).items():
        # Cells with few rows would all give them to the same lanes without a phase of their own.
        phase = xxh64(f"phase:{cell}".encode(), seed) / 2.0**64
        total = line[-1].start + line[-1].tokens
        borders = [total * lane / num_lanes for lane in range(num_lanes)]
        for piece in line:
            cuts = [0, *(piece.rows_before(border, phase) for border in borders[1:]), piece.rows]
            for lane in np.flatnonzero(np.diff(cuts)).tolist():
                lanes[lane].append(Unit(piece.part, piece.row_group, cuts[lane], cuts[lane + 1]))
    return tuple(tuple(sorted(lane, key=lambda unit: (unit.part, unit.row_group))) for lane in lanes)


def _lines(parts: Sequence[Part], seed: int) -> dict[str, list[_Piece]]:
    """The row groups of each cell in their seeded order."""
    groups = defaultdict(list)
    for index, part in enumerate(parts):
        # Without the digest in the file's name: the same rows laid out by another build are dealt alike.
        name = part.path.rpartition("-")[0]
        for group, rows in enumerate(part.row_groups):
            if rows:
                tokens = max((part.tokens or 0) * rows / part.rows, rows)
                groups[cell_of(part)].append((xxh64(f"{name}:{group}".encode(), seed), index, group, rows, tokens))
    lines = {}
    for cell, members in groups.items():
        line, start = [], 0.0
        for _, index, group, rows, tokens in sorted(members):
            line.append(_Piece(index, group, rows, start, tokens))
            start += tokens
        lines[cell] = line
    return lines


def whole_units(lanes: Sequence[Sequence[Unit]]) -> tuple[Unit, ...]:
    """The rows of some neighbouring lanes with the ranges of a row group joined, so that each is read once."""
    joined: dict[tuple[int, int], tuple[int, int]] = {}
    for unit in (unit for lane in lanes for unit in lane):
        start, stop = joined.get((unit.part, unit.row_group), (unit.start, unit.stop))
        joined[unit.part, unit.row_group] = (min(start, unit.start), max(stop, unit.stop))
    return tuple(Unit(part, group, start, stop) for (part, group), (start, stop) in sorted(joined.items()))


def documents_of_lanes(units: Sequence[Unit], lanes: Sequence[Sequence[Unit]]) -> list[I64]:
    """Where the documents of each lane stand in an index of `units`, which are their `whole_units`."""
    first = {}
    before = 0
    for unit in units:
        first[unit.part, unit.row_group] = before - unit.start
        before += unit.stop - unit.start
    found = []
    for lane in lanes:
        shifts = [(first[unit.part, unit.row_group], unit) for unit in lane]
        ranges = [np.arange(shift + unit.start, shift + unit.stop) for shift, unit in shifts]
        found.append(np.concatenate([np.empty(0, np.int64), *ranges]))
    return found


def lanes_of_pairs(index: DocumentIndex, num_lanes: int, seed: int) -> I64:
    """The lane of each document of a corpus of pairs, the same for both sides: int64 [documents]."""
    key = np.where(index.pair == 0, index.id_hash, index.pair.view(np.uint64))
    return (uniform(key, seed, -1, -1) * num_lanes).astype(np.int64)
