"""Star contraction: connected components by rounds over sorted streams, in O(1) memory each.

Kiveris, Lattanzi, Mirrokni, Rastogi and Vassilvitskii 2014, "Connected Components in MapReduce and Beyond": large-star
ties every larger neighbour of a node to the smallest node it knows of, small-star every smaller one; alternating, they
turn each component into a star round its smallest node. Here a node's neighbours come in ascending order, so the first
of them is the smallest, a repeated edge equals the previous one, and a hub with any number of neighbours costs no
memory.

A self-loop is kept as it is, so a node without other edges keeps a label.
"""

import numpy as np

from etl.arrays import I64
from etl.jit import njit

_NODE, _SMALLEST, _LAST, _UNSETTLED = range(4)
"""Places in the state: the open node, the smallest among it and its neighbours, its last neighbour, and the count."""


@njit
def _large(node: I64, neighbour: I64, state: I64, out: I64) -> int:
    size = 0
    for i in range(len(node)):
        u, v = node[i], neighbour[i]
        is_new = u != state[_NODE]
        if not is_new and v == state[_LAST]:
            continue
        if is_new:
            state[_NODE], state[_SMALLEST] = u, min(u, v)
        elif v != u and state[_SMALLEST] < u:
            state[_UNSETTLED] += 1
        state[_LAST] = v
        if v >= u:
            out[0, size], out[1, size] = v, state[_SMALLEST]
            size += 1
    return size


@njit
def _small(node: I64, neighbour: I64, state: I64, out: I64) -> int:
    size = 0
    for i in range(len(node)):
        u, v = node[i], neighbour[i]
        is_new = u != state[_NODE]
        if not is_new and v == state[_LAST]:
            continue
        if is_new:
            # The first neighbour is the smallest; the node itself is tied to it, like every later neighbour.
            state[_NODE], state[_SMALLEST] = u, v
        state[_LAST] = v
        out[0, size], out[1, size] = u if is_new else v, state[_SMALLEST]
        size += 1
    return size


class _Star:
    """The open node of a sorted stream."""

    def __init__(self) -> None:
        self._state = np.array([-1, -1, -1, 0], np.int64)


class LargeStar(_Star):
    """Ties each larger neighbour of a node to the smallest among the node and its neighbours."""

    @property
    def num_unsettled(self) -> int:
        """Edges so far that are not in a star round its smallest node; 0 for a whole graph means that it is done."""
        return int(self._state[_UNSETTLED])

    def push(self, node: I64, neighbour: I64) -> I64:
        """Take the next edges, each of which comes once from each end.

        Args:
            node: int64 [edges], >= 0.
            neighbour: int64 [edges], >= 0; (node, neighbour) ascends, within a piece and from piece to piece.

        Returns:
            int64 [2, edges]: nodes, and smaller ones (or the same) that they are tied to.
        """
        out = np.empty((2, len(node)), np.int64)
        return out[:, : _large(node, neighbour, self._state, out)]


class SmallStar(_Star):
    """Ties each smaller neighbour of a node, and the node, to the smallest of these neighbours."""

    def push(self, node: I64, neighbour: I64) -> I64:
        """Take the next edges, each from its larger end.

        Args:
            node: int64 [edges], >= 0.
            neighbour: int64 [edges], 0 <= neighbour <= node; (node, neighbour) ascends, within a piece and from piece
                to piece.

        Returns:
            int64 [2, edges]: nodes, and smaller ones (or the same) that they are tied to.
        """
        out = np.empty((2, len(node)), np.int64)
        return out[:, : _small(node, neighbour, self._state, out)]


def max_rounds(num_edges: int) -> int:
    """A number of half-rounds that no graph of this many edges needs: O(log² n) with room to spare."""
    return 2 * (max(2, num_edges).bit_length() + 2) ** 2
