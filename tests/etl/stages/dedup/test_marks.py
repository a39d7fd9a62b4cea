"""Found rows brought back to the split that holds them: verdicts, clusters, accounts."""

import uuid

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.schema import ID
from etl.stages.dedup.marks import HIT, LOSER, ClusterMark, EmitHits, LoserMark, MarkSplit, losers
from etl.stages.keyed import routed
from etl.storage.location import Location
from tests.etl.stages.toybatches import EARLIER, ToyRows, cut_at, identity, ids, rows_of, verdict_column
from tests.etl.storage.builds import commit

SPLIT = 2
KEY = SPLIT << 32


def groups_of(sizes, dropped=()):
    """Row groups of so many rows, numbered through; the rows in `dropped` have a verdict."""
    groups, start = [], 0
    for size in sizes:
        numbers = range(start, start + size)
        columns = [ids(numbers), pa.array(["toy"] * size), verdict_column(size, {n - start for n in dropped})]
        groups.append(pa.record_batch(columns, ["id", "source_dataset", "verdict"]))
        start += size
    return groups


def marked(mark, groups, hits, cuts=()):
    """What `MarkSplit` writes for hits by row number: the values of the columns behind `row`."""
    schema = routed(mark.hits)
    columns = [[SPLIT] * len(hits), [KEY + row for row in sorted(hits)]]
    columns += [[hits[row][place] for row in sorted(hits)] for place in range(len(mark.hits) - 1)]
    table = pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema)
    return list(MarkSplit(ToyRows([], [], groups), mark)(SPLIT, cut_at(table, cuts)))


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.sets(st.integers(0, 19)),
    st.sets(st.integers(0, 19)),
    st.lists(st.integers(0, 20), max_size=4),
)
def test_losers_get_a_verdict_unless_they_have_one(sizes, lost, dropped, cuts):
    num_rows = sum(sizes)
    lost = {row for row in lost if row < num_rows}
    survivor = identity(99)
    chunks = marked(LoserMark("exact", "copy"), groups_of(sizes, dropped), {row: [survivor] for row in lost}, cuts)
    assert [chunk.batch.num_rows for chunk in chunks] == sizes
    fresh = {"step": "exact", "reason": "copy", "value": str(uuid.UUID(bytes=survivor))}
    for number, row in enumerate(rows_of(chunks)):
        expected = EARLIER if number in dropped else fresh if number in lost else None
        assert row == {"id": identity(number), "verdict": expected}
    entered = num_rows - len({row for row in dropped if row < num_rows})
    gone = len(lost - dropped)
    totals = [chunk.accounting.get("toy", {}).get("exact", {}) for chunk in chunks]
    assert sum(total.get("in", 0) for total in totals) == entered
    assert sum(total.get("kept", 0) for total in totals) == entered - gone
    assert sum(total.get("copy", 0) for total in totals) == gone


def test_a_row_that_was_not_found_is_a_cluster_of_its_own_and_a_dropped_one_has_none():
    hits = {0: [identity(0), 3, 0, 1.0], 2: [identity(0), 3, 1, 0.9], 3: [identity(0), 3, 2, 0.5]}
    chunks = marked(ClusterMark("near", "near_duplicate", 0.8), groups_of([2, 3], dropped=[4]), hits)
    rows = rows_of(chunks)
    clusters = [(row["cluster_id"], row["cluster_size"], row["cluster_rank"], row["cluster_jaccard"]) for row in rows]
    assert clusters == [
        (identity(0), 3, 0, 1.0), (identity(1), 1, 0, 1.0), (identity(0), 3, 1, 0.9), (identity(0), 3, 2, 0.5),
        (None, None, None, None),
    ]  # fmt: skip
    reasons = [row["verdict"] and row["verdict"]["reason"] for row in rows]
    assert reasons == [None, None, "near_duplicate", None, "x"]


@pytest.mark.parametrize(("jaccard", "is_dropped"), [(0.8, True), (0.8 - 1e-13, True), (0.79, False)])
def test_a_row_as_similar_as_the_threshold_is_dropped(jaccard, is_dropped):
    hits = {0: [identity(0), 2, 0, 1.0], 1: [identity(0), 2, 1, jaccard]}
    first, second = rows_of(marked(ClusterMark("near", "near_duplicate", 0.8), groups_of([2]), hits))
    assert first["verdict"] is None
    assert (second["verdict"] is not None) == is_dropped


def test_losers_name_the_first_row_of_their_group():
    table = pa.table({"row": pa.array([10, 11, 12, 13]), "id": pa.array([identity(n) for n in range(4)], pa.binary())})
    found = losers(table, np.array([0, 0, 2, 2]), np.array([False, True, False, True]))
    assert found.schema == LOSER
    assert found.to_pylist() == [{"row": 11, "survivor": identity(0)}, {"row": 13, "survivor": identity(2)}]


def test_hits_go_to_the_split_that_holds_their_row(tmp_path):
    rows = [5, (1 << 32) + 1, (7 << 32) + 3]
    batch = pa.record_batch(
        [
            pa.array(rows), ids(range(3)), pa.array([1] * 3, pa.int32()), pa.array([0] * 3, pa.int32()),
            pa.array([1.0] * 3),
        ],
        schema=HIT,
    )  # fmt: skip
    hits = commit(Location.of(str(tmp_path / "hits")), HIT, [[batch.slice(0, 1)], [batch.slice(1)]]).ref
    found = [list(EmitHits(hits, HIT)(split)) for split in range(2)]
    assert [piece.column("bucket").to_pylist() for pieces in found for piece in pieces] == [[0], [1, 7]]
    assert all(piece.schema == routed(HIT) for pieces in found for piece in pieces)
    assert [row for pieces in found for piece in pieces for row in piece.column("row").to_pylist()] == rows
    assert found[0][0].column("cluster_id").cast(ID).to_pylist() == [identity(0)]
