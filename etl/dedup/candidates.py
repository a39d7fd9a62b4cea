"""Candidate pairs from a stream of rows that is sorted by (band hash, key, row key), in chunks of any size.

Rows with equal band hashes are a group, and every row pairs with the `max_partners` rows before it in its group, as
long as their sketches agree (`etl.dedup.minhash.most_disagreement`). So a hot band (boilerplate, empty answers) costs
time and pairs linear in its rows; rows further apart are still joined through similar ones between them. The pairs that
this may miss are estimated: the key is a hash, so the first rows of a group are a random sample of it, and the share of
the sample that agrees with a row is taken for all the partners with which the row was not compared. A row without
others in its group gives no pair, so it may be left out.

Canaries (`etl.dedup.canaries`) pair only with their own row and take no other row's place. The state is one group's
last `max_partners` rows; a chunk of r rows gives at most r · max_partners pairs. A pair that shares several bands is
given once for each.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from etl.arrays import I64, U64
from etl.dedup.canaries import base_row, by_kind, is_canary, kind_of
from etl.dedup.minhash import disagreement
from etl.jit import njit

MAX_PARTNERS: Final = 64
MEMBERSHIP_KEY: Final = np.int64(-(1 << 63))
"""The key of a membership record: it counts a canary of the run, and pairs with no row. A second record, of the row
that it copies, keeps it from being the only one of its group."""
SAMPLE: Final = 8
"""Rows of a group that represent those with which a row was not compared."""


@njit
def _pair_up(
    band: I64,
    key: I64,
    row: I64,
    sketch: U64,
    start: int,
    limits: I64,
    group: I64,
    sample: U64,
    made: I64,
    hot: I64,
    tally: I64,
    pairs: I64,
) -> int:
    """Pairs of rows from `start` on with those before them; returns their number, or -1 if a row is out of order.

    `limits` holds max_partners, the most disagreement of a candidate and of a pair that counts as similar; `group` the
    rows of the open group so far; `tally` the pairs compared, left out, and left out but similar (in parts of SAMPLE),
    and the rows of groups of two and more.
    """
    max_partners, most, similar = limits
    count = 0
    for i in range(start, len(band)):
        if i > 0 and band[i] == band[i - 1]:
            if key[i] < key[i - 1] or (key[i] == key[i - 1] and row[i] <= row[i - 1]):
                return -1
        else:
            if i > 0 and band[i] < band[i - 1]:
                return -1
            _close(group, max_partners, hot)
        if key[i] == -(1 << 63):
            if is_canary(row[i]):
                made[kind_of(row[i])] += 1
            continue
        mine = is_canary(row[i])
        seen = 0
        j = i - 1
        while j >= 0 and band[j] == band[i] and seen < max_partners:
            other = is_canary(row[j])
            if not other:
                seen += 1
                tally[0] += not mine
            stranger = (mine or other) and (mine == other or base_row(row[i]) != base_row(row[j]))
            apart = disagreement(sketch[i], sketch[j], 1)
            if not stranger and apart <= most:
                # The row that came first has the smaller key; a canary is second.
                a, b = (i, j) if other else (j, i)
                pairs[count, 0], pairs[count, 1] = row[a], row[b]
                pairs[count, 2], pairs[count, 3] = key[a], key[b]
                pairs[count, 4] = apart == 0 and not (mine or other)
                count += 1
            j -= 1
        if mine:
            continue
        tally[3] += 2 if group[0] == 1 else group[0] > 1
        if group[0] > max_partners:
            left_out = group[0] - max_partners
            tally[1] += left_out
            for k in range(SAMPLE):
                if disagreement(sketch[i], sample[k], 1) <= similar:
                    tally[2] += left_out
        if group[0] < SAMPLE:
            sample[group[0]] = sketch[i]
        group[0] += 1
    return count


@njit
def _close(group: I64, max_partners: int, hot: I64) -> None:
    """Count the group that has ended, if it was too large for all of its pairs, by the power of two below its rows."""
    if group[0] > max_partners + 1:
        size = 0
        while (1 << (size + 1)) <= group[0]:
            size += 1
        hot[size] += 1
    group[0] = 0


@dataclass
class Rows:
    """Rows of a stream, in sequence.

    Attributes:
        band: band hashes, int64 [rows].
        key: by which rows of a band are sorted, int64 [rows].
        row: row keys, int64 [rows].
        sketch: one bit a permutation, uint64 [rows, words].
    """

    band: I64
    key: I64
    row: I64
    sketch: U64

    def __len__(self) -> int:
        return len(self.band)

    def after(self, other: "Rows") -> "Rows":
        """The rows of `other`, then these."""
        return Rows(
            np.concatenate([other.band, self.band]), np.concatenate([other.key, self.key]),
            np.concatenate([other.row, self.row]), np.concatenate([other.sketch, self.sketch]),
        )  # fmt: skip

    def tail(self, start: int) -> "Rows":
        """A copy of the rows from `start` on."""
        return Rows(
            self.band[start:].copy(), self.key[start:].copy(), self.row[start:].copy(), self.sketch[start:].copy()
        )


@dataclass
class CandidateCounts:
    """The counts of a stream; they are complete after `CandidateStream.finish`."""

    num_rows: int = 0
    """Rows that share a band with others, once for each band."""
    num_compared: int = 0
    """Pairs of rows whose sketches were compared, once for each band in which they meet."""
    num_left_out: int = 0
    """Pairs of rows that share a band and were not compared in it."""
    num_similar_left_out: int = 0
    """An estimate of how many of those reach the threshold."""
    hot_bands: dict[str, int] = field(default_factory=dict)
    """Groups in which pairs were left out, by the power of two below their rows."""
    canaries: dict[str, dict[str, int]] = field(default_factory=dict)
    """Canaries made, by level and script."""


class CandidateStream:
    """Turns sorted chunks into candidate pairs; the result does not depend on how the stream is cut into chunks.

    Args:
        max_partners: earlier rows of its group that a row is compared with.
        most: entries in which the sketches of a candidate pair may differ.
        similar: entries in which the sketches of a pair at the threshold differ on average.
        num_words: words of a sketch.
    """

    def __init__(self, max_partners: int, most: int, similar: int, num_words: int) -> None:
        assert max_partners >= 1, max_partners
        self._limits = np.array([max_partners, most, similar], np.int64)
        none = np.empty(0, np.int64)
        self._open = Rows(none, none, none, np.empty((0, num_words), np.uint64))
        self._group = np.zeros(1, np.int64)
        self._sample = np.zeros((SAMPLE, num_words), np.uint64)
        self._made, self._hot, self._tally = np.zeros(1024, np.int64), np.zeros(64, np.int64), np.zeros(4, np.int64)

    def push(self, rows: Rows) -> I64:
        """Take the next chunk.

        Args:
            rows: ascending strictly by (band, key, row) within a chunk and from chunk to chunk.

        Returns:
            int64 [pairs, 5] of the pairs that end in this chunk: both row keys, the row of the smaller key first and a
            canary second, their keys, and 1 for two rows whose sketches are equal, as those of equal sets are.
        """
        carried = len(self._open)
        rows = rows.after(self._open)
        # Each row has one canary at most, so it pairs once more than with its partners.
        pairs = np.empty(((len(rows) - carried) * (int(self._limits[0]) + 1), 5), np.int64)
        count = _pair_up(
            rows.band, rows.key, rows.row, rows.sketch, carried, self._limits, self._group, self._sample, self._made,
            self._hot, self._tally, pairs,
        )  # fmt: skip
        assert count >= 0, "rows must come sorted by (band, key, row), each once"
        if len(rows):
            self._open = rows.tail(self._first_open(rows))
        return pairs[:count].copy()

    def _first_open(self, rows: Rows) -> int:
        """The first of the rows that a later row may still meet."""
        last = int(np.searchsorted(rows.band, rows.band[-1]))
        real = np.flatnonzero(rows.row[last:] >> np.int64(62) == 0)
        partners = int(self._limits[0])
        return last + (int(real[-partners]) if len(real) >= partners else 0)

    def finish(self) -> CandidateCounts:
        """The counts of the whole stream."""
        _close(self._group, int(self._limits[0]), self._hot)
        compared, left_out, similar, num_rows = self._tally.tolist()
        return CandidateCounts(
            num_rows,
            compared,
            left_out,
            similar // SAMPLE,
            _counts(self._hot, lambda n: str(1 << n)),
            by_kind(self._made),
        )


def _counts(counts: I64, name: Any = int) -> dict[Any, int]:
    return {name(number): int(count) for number, count in enumerate(counts) if count}
