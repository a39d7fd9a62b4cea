"""Candidate pairs cut into blocks of bounded bytes, so that verifying a component of any size takes bounded memory.

A component whose shingle sets fit the budget is one block. A larger one is cut: its rows are put in an order in which
pairs are near each other, the order is cut into chunks of half the budget, and a block is a pair of chunks with at
least one pair between them. A set travels to each block that has a pair of its row: mostly one or two. Two orders are
tried and the one that moves fewer bytes is taken. The order of the candidate stream keeps hot bands together, since
there a row is paired with its neighbours (`etl.dedup.candidates`); reverse Cuthill-McKee (Cuthill and McKee 1969) keeps
chains of small groups together. Costs O(pairs) memory of the giant component, about 60 bytes a pair.
"""

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

I64 = npt.NDArray[np.int64]

_CLASSES_PER_DOUBLING = 4
CLASS_BITS = 7
"""Bits that a size class takes."""


def size_class(num_shingles: I64) -> I64:
    """A 7-bit class of set sizes; `class_bytes` of it is at most 19 % (and 9 bytes) above the true size."""
    return np.ceil(_CLASSES_PER_DOUBLING * np.log2(num_shingles + 1)).astype(np.int64)


def class_bytes(classes: I64) -> I64:
    """Most bytes that a set of a class takes, 8 a shingle."""
    return np.ceil(8 * np.exp2(classes / _CLASSES_PER_DOUBLING)).astype(np.int64)


def blocks_of(left: I64, right: I64, component: I64, bytes_of: I64, order: I64, budget: int) -> I64:
    """The block of each pair: int64 [pairs], its component while that fits, else a negative number of its own.

    The sets of a block take at most `budget` bytes, and two sets more.

    Args:
        left: node numbers of the pairs' ends, int64 [pairs].
        right: as `left`.
        component: a number >= 0 that nodes of a connected component share, int64 [nodes].
        bytes_of: size of each node's set, int64 [nodes].
        order: where the candidate stream saw each node, int64 [nodes]; ties go by node number.
        budget: bytes of sets that may be in memory at once.
    """
    labels, member = np.unique(component, return_inverse=True)
    total = np.bincount(member, bytes_of, len(labels))
    blocks = component[left].copy()
    num_blocks = 0
    for giant in np.flatnonzero(total > budget):
        nodes = np.flatnonzero(member == giant)
        inside = np.flatnonzero(member[left] == giant)
        ends = np.searchsorted(nodes, np.stack([left[inside], right[inside]]))
        pairs = _chunk_pairs(ends, bytes_of[nodes], order[nodes], budget // 2)
        blocks[inside] = -1 - num_blocks - pairs
        num_blocks += int(pairs.max()) + 1
    return blocks


def _chunk_pairs(ends: I64, sizes: I64, order: I64, chunk_bytes: int) -> I64:
    """Number of the pair of chunks that each pair of nodes lies between, from 0 without gaps: int64 [pairs]."""
    found = [_cut(ends, sizes, ranked, chunk_bytes) for ranked in (np.argsort(order, kind="stable"), _narrow(ends))]
    moved = [_bytes_moved(ends, sizes, pairs) for pairs in found]
    return found[int(np.argmin(moved))]


def _narrow(ends: I64) -> I64:
    """The nodes in an order of small bandwidth."""
    size = int(ends.max()) + 1
    both = np.concatenate([ends, ends[::-1]], axis=1)
    graph = coo_array((np.ones(both.shape[1], np.int8), (both[0], both[1])), shape=(size, size)).tocsr()
    return reverse_cuthill_mckee(graph, symmetric_mode=True).astype(np.int64)


def _cut(ends: I64, sizes: I64, ranked: I64, chunk_bytes: int) -> I64:
    before = np.cumsum(sizes[ranked]) - sizes[ranked]
    chunk = np.empty(len(sizes), np.int64)
    chunk[ranked] = before // chunk_bytes
    low, high = np.sort(chunk[ends], axis=0)
    _, pairs = np.unique(low * (int(chunk.max()) + 1) + high, return_inverse=True)
    return pairs


def _bytes_moved(ends: I64, sizes: I64, pairs: I64) -> int:
    """Bytes of the sets, each as often as there are blocks with a pair of it."""
    count = int(pairs.max()) + 1
    travels = np.unique(np.concatenate([ends[0] * count + pairs, ends[1] * count + pairs]))
    return int(sizes[travels // count].sum())
