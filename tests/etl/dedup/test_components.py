"""Components against a union of sets in plain Python, whatever the order and the cut of the pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.components import Components

keys = st.integers(-5, 12) | st.sampled_from([2**40, 2**63 - 1, -(2**63)])
edges = st.lists(st.tuples(keys, keys), max_size=15)


def components(pairs, pieces=3, batch_rows=4):
    """Nodes and the label of each, the pairs given in some pieces and the labels taken in some."""
    left, right = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = Components(2 * len(pairs))
    for piece in np.array_split(np.arange(len(left)), pieces):
        graph.join(graph.number(left[piece]), graph.number(right[piece]))
    found = list(graph.labels(batch_rows))
    assert all(len(rows) == batch_rows for rows, _ in found[:-1])
    return [np.concatenate([np.empty(0, np.int64), *columns]) for columns in zip(*found, strict=True)] or [left, right]


def expected_labels(pairs):
    groups = []
    for pair in pairs:
        touched = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if not group & set(pair)] + [set(pair).union(*touched)]
    return {node: min(group) for group in groups for node in group}


@given(edges, st.randoms(use_true_random=False))
def test_labels_are_the_smallest_key_of_each_component(pairs, random):
    nodes, labels = components(pairs)
    assert dict(zip(nodes.tolist(), labels.tolist(), strict=True)) == expected_labels(pairs)
    assert np.all(np.diff(nodes.astype(object)) > 0)
    assert nodes.dtype == labels.dtype == np.int64
    shuffled = [pair[::-1] for pair in random.sample(pairs, len(pairs))]
    for again, first in zip(components(shuffled, 1, 100), (nodes, labels), strict=True):
        assert np.array_equal(again, first)


def test_the_table_grows_many_times():
    """60,000 keys that differ only in their highest bits, in two long chains."""
    chain = np.random.default_rng(0).permutation(60_000).astype(np.int64) << 45
    pairs = np.concatenate([np.stack([half[:-1], half[1:]], axis=1) for half in (chain[:30_000], chain[30_000:])])
    nodes, labels = components(pairs, 5, 1 << 20)
    assert np.array_equal(nodes, np.sort(chain))
    expected = np.where(np.isin(nodes, chain[:30_000]), chain[:30_000].min(), chain[30_000:].min())
    assert np.array_equal(labels, expected)


def test_numbers_go_by_arrival_and_stay():
    graph = Components(3)
    assert graph.number(np.array([7, -1, 7])).tolist() == [0, 1, 0]
    assert graph.number(np.array([5, -1])).tolist() == [2, 1]
    assert graph.nodes.tolist() == [7, -1, 5]
    graph.join(*(np.array([number], np.int32) for number in (0, 2)))
    assert graph.roots().tolist() == [2, 1, 2]
    with pytest.raises(AssertionError, match="more than max_nodes=3"):
        graph.number(np.array([8]))
