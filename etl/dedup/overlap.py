"""How much of one source is in another: counts from groups of equal or similar rows.

The rows of a group come in sequence, and a group may be cut anywhere: the state is one row of counts. For sources A
and B the count is the number of A's rows whose group has a row of B as well; the diagonal counts A's rows whose group
has another row of A. Costs one pass over (group, source) and a product of two matrices of groups × sources.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from etl.arrays import I64


class Overlap:
    """Adds up groups of rows that come in pieces.

    Args:
        sources: names of the sources; a row's source is its place among them.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self._sources = list(sources)
        self._shared = np.zeros((len(sources), len(sources)), np.int64)
        self._open = np.zeros(len(sources), np.int64)

    def push(self, starts: npt.NDArray[np.bool_], source: I64) -> None:
        """Take the next rows.

        Args:
            starts: whether each row is the first of its group, bool [rows].
            source: places of their sources, int [rows].
        """
        group = np.cumsum(starts)
        counts = np.zeros((int(group[-1]) + 1 if len(group) else 1, len(self._sources)), np.int64)
        np.add.at(counts, (group, source), 1)
        counts[0] += self._open
        self._add(counts[:-1])
        self._open = counts[-1]

    def finish(self) -> dict[str, dict[str, int]]:
        """The counts that are not zero, by A and B; closes the last group."""
        self._add(self._open[None, :])
        self._open = np.zeros(len(self._sources), np.int64)
        return {
            one: {other: int(count) for other, count in zip(self._sources, row, strict=True) if count}
            for one, row in zip(self._sources, self._shared, strict=True)
            if row.any()
        }

    def _add(self, counts: I64) -> None:
        counts = counts[counts.sum(axis=1) > 1]
        self._shared += counts.T @ (counts > 0)
        # A row does not count as another row of its own source.
        self._shared[np.diag_indices(len(self._sources))] -= (counts == 1).sum(axis=0)
