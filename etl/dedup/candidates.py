"""Candidate pairs from a stream of (band hash, row key) that is sorted by both, in chunks of any size.

Rows with equal band hashes are a group, and every row pairs with the `max_partners` rows before it in its
group. So a hot band (boilerplate, empty answers) costs time and pairs linear in its rows; rows further apart
are still joined through those between them when these are similar. The state is one group's last
`max_partners` rows; a chunk of r rows gives at most r · max_partners pairs of 16 bytes. A pair that meets in
several bands comes once for each.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from etl.jit import njit

I64 = npt.NDArray[np.int64]

MAX_PARTNERS: Final = 64


@njit
def _positions(band: I64, row: I64) -> I64:
    """How many rows of its group come before each row; -1 at a row that breaks the order."""
    out = np.zeros(len(band), np.int64)
    for i in range(1, len(band)):
        if band[i] == band[i - 1] and row[i] > row[i - 1]:
            out[i] = out[i - 1] + 1
        elif band[i] <= band[i - 1]:
            out[i] = -1
            break
    return out


@njit
def _fill_pairs(row: I64, start: int, partners: I64, left: I64, right: I64) -> None:
    pair = 0
    for i in range(start, len(row)):
        for k in range(i - partners[i], i):
            left[pair] = row[k]
            right[pair] = row[i]
            pair += 1


class CandidateStream:
    """Turns sorted chunks into candidate pairs; equal to one chunk with everything, however it is cut.

    Args:
        max_partners: earlier rows of its group that a row is paired with.

    Attributes:
        num_pairs: pairs given so far.
        num_left_out: pairs of rows that share a band and that the cap left out so far.
    """

    def __init__(self, max_partners: int = MAX_PARTNERS) -> None:
        assert max_partners >= 1, max_partners
        self.num_pairs = 0
        self.num_left_out = 0
        self._max_partners = max_partners
        self._band = np.empty(0, np.int64)  # the open group: its last rows, and how many came before these
        self._row = np.empty(0, np.int64)
        self._forgotten = 0

    def push(self, band: I64, row: I64) -> tuple[I64, I64]:
        """Take the next chunk.

        Args:
            band: band hashes, int64 [n].
            row: row keys, int64 [n]; (band, row) ascends strictly within a chunk and from chunk to chunk.

        Returns:
            Row keys of the pairs that end in this chunk, int64 [pairs] each, the smaller key first.
        """
        carried = len(self._row)
        bands = np.concatenate([self._band, band])
        rows = np.concatenate([self._row, row])
        position = _positions(bands, rows)
        assert position.min(initial=0) == 0, "rows must come sorted by (band, row), each once"
        if carried:
            end = np.searchsorted(bands, self._band[0], "right")
            position[:end] += self._forgotten
        partners = np.minimum(position, self._max_partners)
        total = int(partners[carried:].sum())
        left, right = np.empty(total, np.int64), np.empty(total, np.int64)
        _fill_pairs(rows, carried, partners, left, right)
        self.num_pairs += total
        self.num_left_out += int(position[carried:].sum()) - total
        self._carry(bands, rows, position)
        return left, right

    def _carry(self, bands: I64, rows: I64, position: I64) -> None:
        if len(rows) == 0:
            return
        keep = min(int(position[-1]) + 1, self._max_partners)
        self._band, self._row = bands[len(rows) - keep :].copy(), rows[len(rows) - keep :].copy()
        self._forgotten = int(position[-1]) + 1 - keep
