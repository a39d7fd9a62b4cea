"""Candidate pairs cut into blocks of bounded bytes, so that verifying a component of any size takes bounded memory.

A component whose shingle sets fit the budget is one block. The rows of a larger one are put in the order in which the
candidate stream saw them, that order is cut into chunks of half the budget, and a block is a pair of chunks. A hot band
pairs a row with its neighbours in that order (`etl.dedup.candidates`), and all bands have the same order, so a set
travels to one or two blocks for all its hot bands, and to one more for each partner from small ones. An order of small
bandwidth (Cuthill-McKee) would save some of the latter, but it needs all pairs in memory, and it loses the gain in hot
bands where small groups tie their ends together. Costs 12 bytes a node, one pass over the nodes and one sort of those
in components that are cut, which takes 40 bytes for each of them.
"""

from dataclasses import dataclass

import numpy as np

from etl.arrays import I32, I64
from etl.jit import njit

_CLASSES_PER_DOUBLING = 4
CLASS_BITS = 7
"""Bits of a size class: the lowest of a stream key."""
_CLASS_MASK = np.int64((1 << CLASS_BITS) - 1)


def size_class(num_shingles: I64) -> I64:
    """A 7-bit class of set sizes; `class_bytes` of it is at most 19 % (and 9 bytes) above the true size."""
    return np.ceil(_CLASSES_PER_DOUBLING * np.log2(num_shingles + 1)).astype(np.int64)


def class_bytes(classes: I64) -> I64:
    """Largest number of bytes of a set of a class, 8 a shingle."""
    return np.ceil(8 * np.exp2(classes / _CLASSES_PER_DOUBLING)).astype(np.int64)


def set_bytes(keys: I64) -> I64:
    """Largest number of bytes of the shingle sets of rows with these stream keys: int64."""
    return _BYTES[keys & _CLASS_MASK]


_BYTES = class_bytes(np.arange(1 << CLASS_BITS))


@njit
def _totals(root: I32, keys: I64, class_size: I64) -> I64:
    total = np.zeros(len(root), np.int64)
    for node in range(len(root)):
        total[root[node]] += class_size[keys[node] & _CLASS_MASK]
    return total


@njit
def _members(root: I32, place: I64) -> I32:
    """The nodes whose root is among those with a place."""
    count = 0
    for node in range(len(root)):
        count += place[root[node]] >= 0
    out = np.empty(count, np.int32)
    for node in range(len(root) - 1, -1, -1):
        if place[root[node]] >= 0:
            count -= 1
            out[count] = node
    return out


@njit
def _cut(ranked: I32, root: I32, place: I64, keys: I64, class_size: I64, half: int, chunk: I32, count: I64) -> None:
    """The chunk of each ranked node, and how many chunks each component has."""
    open_place, before = np.int64(-1), np.int64(0)
    for node in ranked:
        mine = place[root[node]]
        if mine != open_place:
            open_place, before = mine, np.int64(0)
        chunk[node] = before // half
        count[mine] = chunk[node] + 1
        before += class_size[keys[node] & _CLASS_MASK]


@njit
def _chunks(component: I64, size: I64, half: int, state: I64) -> I64:
    out = np.empty(len(component), np.int64)
    for i in range(len(component)):
        if component[i] != state[0]:
            state[0], state[1] = component[i], 0
        out[i] = state[1] // half
        state[1] += size[i]
    return out


class ChunkStream:
    """The chunk of each node of a stream that is sorted by component and stream key; holds two numbers.

    Unlike `Blocks`, it also cuts components that would fit the budget.

    Args:
        budget: the sets of two chunks take at most this many bytes, plus two sets.
    """

    def __init__(self, budget: int) -> None:
        self._half = max(1, budget // 2)
        self._state = np.array([-1, 0], np.int64)

    def push(self, component: I64, keys: I64) -> I64:
        """Take the next nodes; returns the place of each one's chunk in its component, int64.

        Args:
            component: int64 [nodes], >= 0.
            keys: their stream keys, int64 [nodes].
        """
        return _chunks(component, set_bytes(keys), self._half, self._state)


@dataclass(frozen=True)
class Blocks:
    """Finds the block of a pair.

    Attributes:
        rows: row key of each node, int64 [nodes].
        root: the node with the smallest row key of each node's component, int32 [nodes].
        chunk: place of each node's chunk in its component, int32 [nodes]; 0 if the component fits the budget.
        cut: roots of the components that do not fit the budget, ascending, int32.
        num_chunks: chunks of each of these, int64.
        first: number of the first block of each of these, int64.
    """

    rows: I64
    root: I32
    chunk: I32
    cut: I32
    num_chunks: I64
    first: I64

    @classmethod
    def of(cls, rows: I64, root: I32, keys: I64, budget: int) -> "Blocks":
        """Cut the components; the sets of a block will take at most `budget` bytes, plus two sets.

        Args:
            rows: row key of each node, int64 [nodes], all different, >= 0.
            root: the node with the smallest row key of each node's component, int32 [nodes].
            keys: stream key of each node, int64 [nodes]: its order in the candidate stream (ties go by row key), with
                its size class in the lowest bits.
            budget: bytes of sets that may be in memory at once.
        """
        total = _totals(root, keys, _BYTES)
        cut = np.flatnonzero(total > budget)
        cut = cut[np.argsort(rows[cut])]
        total[:] = -1
        total[cut] = np.arange(len(cut))
        place = total
        ranked = _members(root, place)
        ranked = ranked[np.argsort(rows[ranked])]
        ranked = ranked[np.lexsort((keys[ranked], place[root[ranked]]))]
        chunk, num_chunks = np.zeros(len(root), np.int32), np.zeros(len(cut), np.int64)
        _cut(ranked, root, place, keys, _BYTES, max(1, budget // 2), chunk, num_chunks)
        num_blocks = np.where(num_chunks > 1, num_chunks**2, 0)
        first = np.cumsum(num_blocks) - num_blocks
        by_root = np.argsort(cut)
        return cls(rows, root, chunk, cut[by_root].astype(np.int32), num_chunks[by_root], first[by_root])

    def of_pairs(self, left: I32, right: I32) -> I64:
        """The block of each pair: the smallest row key of its component if that is one chunk, else negative.

        Args:
            left: node numbers, int32 [pairs].
            right: node numbers, int32 [pairs].

        Returns:
            int64 [pairs].
        """
        root = self.root[left]
        block = self.rows[root]
        is_cut = np.isin(root, self.cut)
        place = np.searchsorted(self.cut, root[is_cut])
        one, other = self.chunk[left[is_cut]], self.chunk[right[is_cut]]
        low, high, width = np.minimum(one, other), np.maximum(one, other), self.num_chunks[place]
        block[is_cut] = np.where(width > 1, -1 - (self.first[place] + low * width + high), block[is_cut])
        return block
