"""Connected components in one process, from pairs of row keys that come in pieces.

A hash table numbers the keys in the order in which they come, and a union-find runs over the numbers (Tarjan 1975, with
path halving; the smaller key becomes the root). It looks at each pair once, and sorts only the labels. Memory does not
depend on the number of pairs: 8 bytes a node for its key, 4 for its parent, 5 to 11 for the table, and 8 for the order
of the labels once the table is freed; arrays are reserved for `max_nodes` but take only what is used. Labels depend
neither on the order of the pairs nor on how they are cut.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from etl.arrays import I32, I64
from etl.jit import njit

MAX_NODES: Final = (1 << 31) - 1
"""Node numbers are int32."""
_MIN_BITS = 10
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


@njit
def _slot(key: np.int64, shift: np.uint64) -> np.int64:
    h = np.uint64(key)
    h = (h ^ (h >> _HALF)) * _MULTIPLIER
    return np.int64(((h ^ (h >> _HALF)) * _MULTIPLIER) >> shift)


@njit
def _insert_all(nodes: I64, table: I32, shift: np.uint64) -> None:
    mask = len(table) - 1
    for number in range(len(nodes)):
        slot = _slot(nodes[number], shift)
        while table[slot] >= 0:
            slot = (slot + 1) & mask
        table[slot] = number


@njit
def _number(keys: I64, nodes: I64, num_nodes: int, table: I32, shift: np.uint64, out: I32) -> tuple[int, int]:
    """Number keys until the table is three quarters full; returns how many keys have a number, and how many nodes."""
    mask = len(table) - 1
    room = min(len(nodes), len(table) // 4 * 3)
    for i in range(len(keys)):
        key = keys[i]
        slot = _slot(key, shift)
        while table[slot] >= 0 and nodes[table[slot]] != key:
            slot = (slot + 1) & mask
        if table[slot] < 0:
            if num_nodes == room:
                return i, num_nodes
            table[slot] = num_nodes
            nodes[num_nodes] = key
            num_nodes += 1
        out[i] = table[slot]
    return len(keys), num_nodes


@njit
def _root(parent: I32, node: np.int32) -> np.int32:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit
def _join(parent: I32, nodes: I64, left: I32, right: I32) -> None:
    for pair in range(len(left)):
        a, b = _root(parent, left[pair]), _root(parent, right[pair])
        if a != b:
            if nodes[a] < nodes[b]:
                parent[b] = a
            else:
                parent[a] = b


@njit
def _flatten(parent: I32) -> None:
    for node in range(len(parent)):
        parent[node] = _root(parent, np.int32(node))


class Components:
    """The connected components of a graph whose pairs come in pieces.

    Args:
        max_nodes: largest number of nodes that may come; 12 bytes of address space are reserved for each.
    """

    def __init__(self, max_nodes: int) -> None:
        assert 0 <= max_nodes <= MAX_NODES, max_nodes
        self._nodes = np.empty(max_nodes, np.int64)
        self._parent = np.empty(max_nodes, np.int32)
        self._num_nodes = 0
        self._open_table(max(_MIN_BITS, (max_nodes // 4).bit_length()))

    @property
    def nodes(self) -> I64:
        """The key of each node, int64 [nodes]."""
        return self._nodes[: self._num_nodes]

    def number(self, keys: I64) -> I32:
        """The number of each key's node, int32 [keys]; a key that has not come before gets the next one."""
        out = np.empty(len(keys), np.int32)
        known = self._num_nodes
        done = 0
        while True:
            more, self._num_nodes = _number(
                keys[done:], self._nodes, self._num_nodes, self._table, self._shift, out[done:]
            )
            done += more
            if done == len(keys):
                break
            assert self._num_nodes < len(self._nodes), f"more than max_nodes={len(self._nodes)} nodes came"
            bits = len(self._table).bit_length()
            del self._table
            self._open_table(bits)
        self._parent[known : self._num_nodes] = np.arange(known, self._num_nodes, dtype=np.int32)
        return out

    def join(self, left: I32, right: I32) -> None:
        """Take pairs of node numbers, int32 [pairs] each."""
        _join(self._parent, self._nodes, left, right)

    def roots(self) -> I32:
        """The number of the node with the smallest key of each node's component, int32 [nodes]."""
        parent = self._parent[: self._num_nodes]
        _flatten(parent)
        return parent

    def labels(self, batch_rows: int) -> Iterator[tuple[I64, I64]]:
        """Keys in ascending order and the smallest key of each one's component, `batch_rows` at a time.

        Frees the table: no key can be numbered after it.
        """
        del self._table
        nodes, roots = self.nodes, self.roots()
        order = np.argsort(nodes)
        for start in range(0, len(order), batch_rows):
            taken = order[start : start + batch_rows]
            yield nodes[taken], nodes[roots[taken]]

    def _open_table(self, bits: int) -> None:
        self._shift = np.uint64(64 - bits)
        self._table = np.full(1 << bits, -1, np.int32)
        _insert_all(self.nodes, self._table, self._shift)
