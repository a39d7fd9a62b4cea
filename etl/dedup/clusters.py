"""Who survives in each cluster: one sort of the rows, free of their order as long as ids differ."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl.hashing import fixed_binary

I64 = npt.NDArray[np.int64]


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
