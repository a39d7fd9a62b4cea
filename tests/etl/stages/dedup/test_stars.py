"""Reducers and map sides of star contraction on toy edges; etl.stages.dedup.components runs whole graphs."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.canaries import canary_rows
from etl.stages.dedup.stars import (
    ARC,
    TIE,
    EmitBothWays,
    EmitLabels,
    EmitTies,
    first_labels,
    large_stars,
    small_stars,
)
from etl.stages.keyed import hashed_buckets
from etl.storage.location import Location
from tests.etl.stages.toybatches import cut_at, distributions_of, rows_in, rows_of
from tests.etl.storage.builds import commit


def arcs(pairs):
    """A bucket's arcs, sorted."""
    node, neighbour = np.array(sorted(pairs), np.int64).reshape(-1, 2).T
    columns = [np.zeros(len(node), np.int32), node, neighbour]
    return pa.table([pa.array(column) for column in columns], schema=ARC)


def ties_of(chunks):
    return sorted((row["node"], row["smaller"]) for row in rows_of(chunks))


def stored(folder, pairs):
    node, smaller = np.array(pairs, np.int64).reshape(-1, 2).T
    batch = pa.record_batch([pa.array(node), pa.array(smaller)], schema=TIE)
    return commit(Location.of(str(folder)), TIE, [[batch]]).ref


edges = st.sets(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=25)
cuts = st.lists(st.integers(0, 60), max_size=5)


@given(edges, cuts)
def test_large_star_ties_larger_neighbours_to_the_smallest_that_a_node_knows(edges, cuts):
    both = {*edges, *((b, a) for a, b in edges)}
    chunks = list(large_stars(0, cut_at(arcs(both), cuts)))
    known = {node: min(node, *(b for a, b in both if a == node)) for node in {a for a, _ in both}}
    assert ties_of(chunks) == sorted((b, known[a]) for a, b in both if b >= a)
    assert rows_in(chunks) == len(both)
    settled = all(a == known[a] or (b == known[a] and a > b) for a, b in both if a != b)
    assert (distributions_of(chunks)["unsettled"] == 0) == settled


@given(edges, cuts)
def test_small_star_ties_smaller_neighbours_and_the_node_to_the_smallest(edges, cuts):
    down = {(max(edge), min(edge)) for edge in edges}
    chunks = list(small_stars(0, cut_at(arcs(down), cuts)))
    smallest = {node: min(b for a, b in down if a == node) for node in {a for a, _ in down}}
    expected = [(b, smallest[a]) for a, b in down if b != smallest[a]] + list(smallest.items())
    assert ties_of(chunks) == sorted(expected)
    assert (rows_in(chunks), distributions_of(chunks)) == (len(down), {})


def test_an_edge_goes_to_both_of_its_ends_or_to_the_larger_one(tmp_path):
    ties = stored(tmp_path / "ties", [(5, 2), (9, 2), (7, 7)])
    (both,) = EmitBothWays(ties, ("node", "smaller"), 3)(0)
    assert list(zip(both["node"].to_pylist(), both["neighbour"].to_pylist(), strict=True)) == [
        (5, 2), (9, 2), (7, 7), (2, 5), (2, 9), (7, 7),
    ]  # fmt: skip
    assert both["bucket"].equals(hashed_buckets(both["node"].to_numpy(), 3))
    (down,) = EmitTies(ties, 3)(0)
    assert (down["node"].to_pylist(), down["neighbour"].to_pylist()) == ([5, 9, 7], [2, 2, 7])


def test_labels_go_to_the_split_of_their_row_and_a_centre_names_itself(tmp_path):
    far = (1 << 32) + 4
    (found,) = EmitLabels(stored(tmp_path / "ties", [(5, 2), (far, 2), (7, 7)]), 2)(0)
    assert sorted(zip(*(found[name].to_pylist() for name in ARC.names), strict=True)) == [
        (0, 2, 2), (0, 5, 2), (0, 7, 7), (0, 7, 7), (1, far, 2),
    ]  # fmt: skip


def test_the_label_of_a_canary_goes_to_one_of_the_splits(tmp_path):
    canaries = canary_rows(np.array([5, 6, (1 << 32) + 4]), np.array([1, 2, 9])).tolist()
    (found,) = EmitLabels(stored(tmp_path / "ties", [(canary, 2) for canary in canaries]), 3)(0)
    assert set(found.column("bucket").to_pylist()) <= {0, 1, 2}
    assert sorted(found.column("node").to_pylist()) == [2, *sorted(canaries)]


def test_a_centre_that_every_leaf_names_has_one_label():
    arcs = pa.table({"node": pa.array([2, 2, 2, 5, 5, 7], pa.int64()), "neighbour": [2, 2, 2, 2, 2, 7]})
    for batch_rows in (1, 2, 6):
        chunks = list(first_labels(0, iter(arcs.to_batches(max_chunksize=batch_rows))))
        assert chunks[0].batch.to_pydict() == {"row": [2, 5, 7], "component": [2, 2, 7]}
        assert chunks[-1].rows_in == 6
    with pytest.raises(AssertionError, match="two labels"):
        list(first_labels(0, iter(pa.table({"node": [5, 5], "neighbour": [1, 2]}).to_batches(max_chunksize=1))))
