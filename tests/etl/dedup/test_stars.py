"""Star contraction against scipy and a union-find, over graphs that need one round and graphs that need many."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from etl.dedup.components import Components
from etl.dedup.stars import LargeStar, SmallStar, max_rounds


def sorted_arcs(one, other):
    """(node, neighbour), ascending."""
    order = np.lexsort((other, one))
    return one[order], other[order]


def pushed(star, node, neighbour, piece=3):
    """What a star emits for a sorted stream in small pieces."""
    found = [star.push(node[at : at + piece], neighbour[at : at + piece]) for at in range(0, len(node), piece)]
    return np.concatenate([np.empty((2, 0), np.int64), *found], axis=1)


def contract(pairs, piece=3):
    """Label of each node by rounds, and the number of half-rounds."""
    one, other = np.array(pairs, np.int64).reshape(-1, 2).T
    for rounds in range(1, max_rounds(len(pairs)), 2):
        large = LargeStar()
        arcs = sorted_arcs(np.concatenate([one, other]), np.concatenate([other, one]))
        one, other = pushed(large, *arcs, piece)
        assert (other <= one).all()
        if large.num_unsettled == 0:
            leaves = dict(zip(one.tolist(), other.tolist(), strict=True))
            return leaves | {node: node for node in other.tolist()}, rounds
        one, other = pushed(SmallStar(), *sorted_arcs(one, other), piece)
        assert (other <= one).all()
    raise AssertionError("too many rounds")


def by_union_find(pairs):
    one, other = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = Components(2 * len(pairs))
    graph.join(graph.number(one), graph.number(other))
    columns = np.concatenate([np.empty((2, 0), np.int64), *(np.stack(labels) for labels in graph.labels(100))], axis=1)
    return dict(columns.T.tolist())


def by_scipy(pairs):
    nodes, numbers = np.unique(np.array(pairs, np.int64).reshape(-1), return_inverse=True)
    one, other = numbers.reshape(-1, 2).T
    matrix = coo_array((np.ones(len(one), np.int8), (one, other)), (len(nodes), len(nodes)))
    _, member = connected_components(matrix, directed=False)
    smallest = {number: nodes[member == number].min() for number in set(member.tolist())}
    return {node: smallest[number] for node, number in zip(nodes.tolist(), member.tolist(), strict=True)}


nodes = st.integers(0, 25) | st.sampled_from([2**40, 2**63 - 1])


@given(st.lists(st.tuples(nodes, nodes), max_size=40), st.integers(1, 9))
def test_stars_give_the_labels_of_union_find_and_scipy(pairs, piece):
    """Also with self-loops and repeated edges."""
    labels, _ = contract(pairs, piece)
    assert labels == by_union_find(pairs) == by_scipy(pairs)


def tree(depth, rng):
    """A binary tree whose names are unrelated to its shape."""
    names = rng.permutation(1 << depth)
    return [(names[node], names[node // 2]) for node in range(2, 1 << depth)]


rng = np.random.default_rng(0)
scattered = rng.permutation(2_000)
GRAPHS = {
    "chain": ([(n, n + 1) for n in range(2_000)], 25),
    "scattered chain": (list(itertools.pairwise(scattered)), 25),
    "star round its smallest": ([(0, n) for n in range(1, 2_000)], 1),
    "star round its largest": ([(n, 2_000) for n in range(2_000)], 5),
    "clique": ([(a, b) for a in range(60) for b in range(a)], 3),
    "two levels": ([(5_000 + n // 40, n) for n in range(2_000)] + [(9_999, 5_000 + n) for n in range(50)], 9),
    "deep tree": (tree(11, rng), 17),
    "many small": ([(3 * n, 3 * n + k) for n in range(500) for k in (1, 2)], 1),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_of_every_shape_take_few_rounds(name):
    pairs, most = GRAPHS[name]
    labels, rounds = contract(pairs, 100)
    assert labels == by_union_find(pairs)
    assert rounds <= most


def test_a_hub_is_carried_from_piece_to_piece():
    star = LargeStar()
    first = star.push(np.array([5, 5, 5]), np.array([2, 2, 7]))
    assert first.tolist() == [[7], [2]]
    assert star.num_unsettled == 1
    assert star.push(np.array([5, 5, 6]), np.array([7, 8, 9])).tolist() == [[8, 9], [2, 6]]
    assert star.num_unsettled == 2
    assert SmallStar().push(np.array([5, 5, 5]), np.array([1, 3, 3])).tolist() == [[5, 3], [1, 1]]


def test_no_edges_are_settled():
    star = LargeStar()
    assert star.push(np.empty(0, np.int64), np.empty(0, np.int64)).shape == (2, 0)
    assert star.num_unsettled == 0
    assert max_rounds(0) > 1
