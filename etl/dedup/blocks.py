"""Candidate pairs cut into blocks of bounded bytes, so that verifying a component of any size takes bounded memory.

A component whose shingle sets fit the budget is one block. The rows of a larger one are put in the order in which the
candidate stream saw them, that order is cut into chunks of half the budget, and a block is a pair of chunks. A hot band
pairs a row with its neighbours in that order (`etl.dedup.candidates`), and all bands have the same order, so a set
travels to one or two blocks for all its hot bands, and to one more for each partner from small ones. An order of small
bandwidth (Cuthill-McKee) would save some of the latter, but needs all pairs in memory, and loses the hot bands where
small groups tie their ends together. Costs one sort of the nodes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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


@dataclass(frozen=True)
class Blocks:
    """To which block a pair belongs.

    Attributes:
        component: a number >= 0 that the nodes of a component share, int64 [nodes].
        chunk: place of each node's chunk in its component, int64 [nodes].
        num_chunks: chunks of each node's component, int64 [nodes]; 1 where it fits the budget.
        first: number of the first block of each node's component, int64 [nodes].
    """

    component: I64
    chunk: I64
    num_chunks: I64
    first: I64

    @classmethod
    def of(cls, component: I64, bytes_of: I64, order: I64, budget: int) -> "Blocks":
        """Cut the components; the sets of a block will take at most `budget` bytes, and two sets more.

        Args:
            component: int64 [nodes], >= 0.
            bytes_of: size of each node's set, int64 [nodes].
            order: where the candidate stream saw each node, int64 [nodes]; ties go by node number.
            budget: bytes of sets that may be in memory at once.
        """
        ranked = np.lexsort((order, component))
        labels, starts, member = np.unique(component[ranked], return_index=True, return_inverse=True)
        ends = np.cumsum(bytes_of[ranked])
        base = (ends - bytes_of[ranked])[starts]
        total = np.diff(np.append(base, ends[-1:])) if len(labels) else base
        within = (ends - bytes_of[ranked] - base[member]) // max(1, budget // 2)
        within[total[member] <= budget] = 0
        count = np.zeros(len(labels), np.int64)
        np.maximum.at(count, member, within + 1)
        blocks = np.where(count > 1, count**2, 0)
        first = np.cumsum(blocks) - blocks
        chunk, num_chunks, numbers = (np.empty(len(component), np.int64) for _ in range(3))
        chunk[ranked], num_chunks[ranked], numbers[ranked] = within, count[member], first[member]
        return cls(component, chunk, num_chunks, numbers)

    def of_pairs(self, left: I64, right: I64) -> I64:
        """The block of each pair, int64 [pairs]: its component while that is one chunk, else a negative number.

        Args:
            left: node numbers, int64 [pairs].
            right: node numbers, int64 [pairs].
        """
        low, high = np.sort(np.stack([self.chunk[left], self.chunk[right]]), axis=0)
        cut = -1 - (self.first[left] + low * self.num_chunks[left] + high)
        return np.where(self.num_chunks[left] > 1, cut, self.component[left])
