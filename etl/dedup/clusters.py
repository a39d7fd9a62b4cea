"""Clusters from verified pairs: connected components in memory, and who survives in each.

Components use scipy's sparse graph: about 100 bytes of memory a pair. Ranks are one sort of the rows. Neither
result depends on the order of pairs or rows (as long as ids differ).
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from etl.hashing import fixed_binary

I64 = npt.NDArray[np.int64]


def components(left: I64, right: I64) -> tuple[I64, I64]:
    """The connected components of the graph whose edges are (left[i], right[i]).

    Args:
        left: row keys, int64 [pairs], of any size and sign.
        right: row keys, int64 [pairs].

    Returns:
        nodes int64 [nodes], every key that has an edge, ascending; labels int64 [nodes], the smallest key of
        the node's component.
    """
    nodes, index = np.unique(np.concatenate([left, right]), return_inverse=True)
    ends = index.reshape(2, len(left))
    return nodes, nodes[component_starts(ends[0], ends[1], len(nodes))]


def component_starts(left: I64, right: I64, num_nodes: int) -> I64:
    """The smallest node of each node's connected component: int64 [num_nodes].

    Args:
        left: node numbers, int64 [pairs].
        right: node numbers, int64 [pairs].
        num_nodes: nodes are numbered from 0.
    """
    graph = coo_array((np.ones(len(left), np.bool_), (left, right)), shape=(num_nodes, num_nodes))
    _, component = connected_components(graph.tocsr(), directed=False)
    # Nodes ascend, so the first of a component is its smallest.
    _, first = np.unique(component, return_index=True)
    return first[component]


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
