"""Components against a union of sets in plain Python; ranks against sorting bytes."""

from random import Random

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.clusters import Components, rank_clusters

keys = st.integers(-5, 12) | st.sampled_from([2**40, 2**63 - 1, -(2**63)])
edges = st.lists(st.tuples(keys, keys), max_size=15)


def components(left: np.ndarray, right: np.ndarray, pieces: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and the label of each, the pairs given in some pieces."""
    nodes = np.unique(np.concatenate([left, right]))
    graph = Components(nodes)
    for piece in np.array_split(np.arange(len(left)), pieces):
        graph.join(graph.find(left[piece]), graph.find(right[piece]))
    return nodes, nodes[graph.labels()]


def expected_labels(pairs: list[tuple[int, int]]) -> dict[int, int]:
    groups: list[set[int]] = []
    for pair in pairs:
        touched = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if not group & set(pair)] + [set(pair).union(*touched)]
    return {node: min(group) for group in groups for node in group}


@given(edges, st.randoms(use_true_random=False))
def test_labels_are_the_smallest_key_of_each_component(pairs: list[tuple[int, int]], random: Random) -> None:
    left, right = np.array(pairs, np.int64).reshape(-1, 2).T
    nodes, labels = components(left, right)
    assert dict(zip(nodes.tolist(), labels.tolist(), strict=True)) == expected_labels(pairs)
    assert np.all(np.diff(nodes.astype(object)) > 0)
    assert nodes.dtype == labels.dtype == np.int64
    random.shuffle(pairs)
    right, left = np.array(pairs, np.int64).reshape(-1, 2).T
    again = components(left, right)
    assert np.array_equal(again[0], nodes)
    assert np.array_equal(again[1], labels)


@given(
    st.lists(
        st.tuples(st.integers(-2, 2), st.binary(min_size=16, max_size=16)),
        max_size=12,
        unique_by=lambda r: r[1],
    )
)
def test_the_smallest_id_of_a_cluster_survives(rows: list[tuple[int, bytes]]) -> None:
    ids = pa.array([b"\xff" * 16] + [i for _, i in rows], pa.binary(16)).slice(1)
    cluster_id, size, rank = rank_clusters(np.array([label for label, _ in rows], np.int64), ids)
    for k, (label, own) in enumerate(rows):
        members = sorted(i for other, i in rows if other == label)
        assert cluster_id[k].as_py() == members[0]
        assert size[k].as_py() == len(members)
        assert rank[k].as_py() == members.index(own)
    assert (cluster_id.type, size.type, rank.type) == (pa.binary(16), pa.int32(), pa.int32())


def test_an_edge_given_many_times_is_one_edge() -> None:
    nodes, labels = components(np.repeat(np.int64(4), 512), np.repeat(np.int64(9), 512))
    assert nodes.tolist() == [4, 9]
    assert labels.tolist() == [4, 4]


def test_rows_with_equal_ids_rank_in_row_order() -> None:
    ids = pa.array([b"b" * 16, b"a" * 16, b"a" * 16], pa.binary(16))
    _, _, rank = rank_clusters(np.zeros(3, np.int64), ids)
    assert rank.to_pylist() == [2, 0, 1]
