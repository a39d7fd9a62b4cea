"""Blocks against what they promise: every pair in one, bounded bytes in each, few travels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.blocks import Blocks, class_bytes, size_class
from etl.dedup.clusters import Components


def components(left, right):
    nodes = np.unique(np.concatenate([left, right]))
    graph = Components(nodes)
    graph.join(graph.find(left), graph.find(right))
    return nodes, nodes[graph.labels()]


def cut(pairs, sizes, budget, order=None):
    """Block of each pair; nodes are 0 … n - 1."""
    left, right = np.array(pairs, np.int64).reshape(-1, 2).T
    nodes, labels = components(left, right)
    order = nodes if order is None else np.asarray(order)[nodes]
    blocks = Blocks.of(labels, np.asarray(sizes, np.int64)[nodes], order, budget)
    return blocks.of_pairs(np.searchsorted(nodes, left), np.searchsorted(nodes, right))


def members(pairs, blocks):
    """Nodes of each block."""
    found = {}
    for (a, b), block in zip(pairs, blocks.tolist(), strict=True):
        found.setdefault(block, set()).update((a, b))
    return found


def test_size_classes_bound_the_bytes_from_above():
    counts = np.arange(200_000)
    classes = size_class(counts)
    assert classes.max() < 128
    assert size_class(np.array([1 << 31])) < 128
    assert (class_bytes(classes) >= 8 * counts).all()
    assert (class_bytes(classes) <= 1.2 * 8 * counts + 10).all()


graphs = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 40)).filter(lambda pair: pair[0] != pair[1]),
    min_size=1, max_size=120, unique_by=lambda pair: frozenset(pair),
)  # fmt: skip


@given(graphs, st.integers(2, 400), st.lists(st.integers(1, 30), min_size=41, max_size=41))
def test_blocks_stay_within_the_budget_and_small_components_are_whole(pairs, budget, sizes):
    blocks = cut(pairs, sizes, budget)
    left, right = np.array(pairs).T
    nodes, labels = components(left, right)
    component = dict(zip(nodes.tolist(), labels.tolist(), strict=True))
    total = {label: sum(sizes[node] for node in component if component[node] == label) for label in labels.tolist()}
    for block, inside in members(pairs, blocks).items():
        (label,) = {component[node] for node in inside}
        if total[label] <= budget:
            assert block == label
            assert {node for node in component if component[node] == label} == inside
        else:
            assert sum(sizes[node] for node in inside) <= budget + 2 * max(sizes)


@pytest.mark.parametrize("shortcuts", [0, 500])
def test_a_hot_band_moves_a_set_once_or_twice(shortcuts):
    """10,000 rows, each paired with the 20 before it in an order that says nothing of their names."""
    rng = np.random.default_rng(0)
    order = rng.permutation(10_000)
    place = np.argsort(order)
    pairs = [(place[i], place[i - k]) for i in range(10_000) for k in range(1, 21) if i >= k]
    pairs += [tuple(pair) for pair in rng.integers(0, 10_000, (shortcuts, 2)) if pair[0] != pair[1]]
    blocks = cut(pairs, np.full(10_000, 10), 20_000, order)
    found = members(pairs, blocks)
    assert max(len(inside) for inside in found.values()) <= 2_002
    assert sum(len(inside) for inside in found.values()) <= 10_000 * 1.1 + 2 * shortcuts


def test_a_block_belongs_to_one_component():
    """Two giants and a small one between them, all of equal orders."""
    chains = [[(n, n + 1) for n in range(start, start + 50)] for start in (0, 100, 300)]
    pairs = [pair for chain in chains for pair in chain] + [(200, 201)]
    blocks = cut(pairs, np.full(400, 10), 100, np.zeros(400))
    found = [set(blocks[at : at + 50].tolist()) for at in (0, 50, 100)]
    assert all(len(mine) > 5 and max(mine) < 0 for mine in found)
    assert len(set.union(*found)) == sum(len(mine) for mine in found)
    assert blocks[-1] == 200
