"""Blocks against what they promise: every pair in one, bounded bytes in each, few travels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.blocks import CLASS_BITS, Blocks, ChunkStream, class_bytes, set_bytes, size_class
from etl.dedup.components import Components


def stream_keys(order, num_shingles):
    return (np.asarray(order, np.int64) << CLASS_BITS) | size_class(np.asarray(num_shingles))


def cut(pairs, keys, budget):
    """Block of each pair, and the label of each node; nodes are 0 … n - 1."""
    left, right = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = Components(2 * len(pairs))
    left, right = graph.number(left), graph.number(right)
    graph.join(left, right)
    roots = graph.roots()
    blocks = Blocks.of(graph.nodes, roots, keys[graph.nodes], budget)
    return blocks.of_pairs(left, right), dict(zip(graph.nodes.tolist(), graph.nodes[roots].tolist(), strict=True))


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
    assert np.array_equal(set_bytes(stream_keys(-5 * counts, counts)), class_bytes(classes))


graphs = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 40)).filter(lambda pair: pair[0] != pair[1]),
    min_size=1, max_size=120, unique_by=lambda pair: frozenset(pair),
)  # fmt: skip
sizes = st.lists(st.integers(1, 30), min_size=41, max_size=41)


@given(graphs, st.integers(2, 4000), sizes)
def test_blocks_stay_within_the_budget_and_small_components_are_whole(pairs, budget, num_shingles):
    keys = stream_keys(np.arange(41) * 17 % 41, num_shingles)
    size = set_bytes(keys)
    blocks, component = cut(pairs, keys, budget)
    total = {label: sum(size[node] for node in component if component[node] == label) for label in component.values()}
    for block, inside in members(pairs, blocks).items():
        (label,) = {component[node] for node in inside}
        if total[label] <= budget:
            assert block == label
            assert {node for node in component if component[node] == label} == inside
        else:
            assert sum(size[node] for node in inside) <= budget + 2 * max(size)


@given(graphs, st.integers(2, 4000), sizes, st.randoms(use_true_random=False))
def test_blocks_do_not_depend_on_the_order_of_pairs(pairs, budget, num_shingles, random):
    keys = stream_keys(np.arange(41) * 17 % 4, np.array(num_shingles) % 2 + 1)
    blocks, _ = cut(pairs, keys, budget // 10 + 2)
    shuffled = random.sample(range(len(pairs)), len(pairs))
    again, _ = cut([pairs[place][::-1] for place in shuffled], keys, budget // 10 + 2)
    assert again.tolist() == blocks[shuffled].tolist()


@pytest.mark.parametrize("shortcuts", [0, 500])
def test_a_hot_band_moves_a_set_once_or_twice(shortcuts):
    """10,000 rows, each paired with the 20 before it in an order unrelated to their names."""
    rng = np.random.default_rng(0)
    order = rng.permutation(10_000)
    place = np.argsort(order)
    pairs = [(place[i], place[i - k]) for i in range(10_000) for k in range(1, 21) if i >= k]
    pairs += [tuple(pair) for pair in rng.integers(0, 10_000, (shortcuts, 2)) if pair[0] != pair[1]]
    keys = stream_keys(order, np.ones(10_000, np.int64))
    blocks, _ = cut(pairs, keys, 2_000 * set_bytes(keys)[0])
    found = members(pairs, blocks)
    assert max(len(inside) for inside in found.values()) <= 2_002
    assert sum(len(inside) for inside in found.values()) <= 10_000 * 1.1 + 2 * shortcuts


def test_a_block_belongs_to_one_component():
    """Two giants and a small one between them, all of equal orders."""
    chains = [[(n, n + 1) for n in range(start, start + 50)] for start in (0, 100, 300)]
    pairs = [pair for chain in chains for pair in chain] + [(200, 201)]
    blocks, _ = cut(pairs, stream_keys(np.zeros(400), np.ones(400, np.int64)), 160)
    found = [set(blocks[at : at + 50].tolist()) for at in (0, 50, 100)]
    assert all(len(mine) > 5 and max(mine) < 0 for mine in found)
    assert len(set.union(*found)) == sum(len(mine) for mine in found)
    assert blocks[-1] == 200


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30)), max_size=60), st.integers(2, 2000), st.integers(1, 9))
def test_a_stream_of_nodes_is_cut_by_the_running_sum_of_its_component(nodes, budget, piece):
    component = np.sort(np.array([label for label, _ in nodes], np.int64))
    keys = stream_keys(np.arange(len(nodes)), np.array([size for _, size in nodes], np.int64))
    stream = ChunkStream(budget)
    pieces = [slice(at, at + piece) for at in range(0, len(nodes), piece)]
    found = [number for part in pieces for number in stream.push(component[part], keys[part]).tolist()]
    size = set_bytes(keys)
    before = [size[:at][component[:at] == component[at]].sum() for at in range(len(nodes))]
    assert found == [int(bytes_before) // (budget // 2) for bytes_before in before]
