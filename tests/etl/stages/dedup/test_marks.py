"""Found rows brought back to the split that holds them: verdicts, clusters, accounts."""

import uuid
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.rows import Rows
from etl.run.run import context_of
from etl.schema import ID, PROMPT, aligned
from etl.stages.dedup.marks import (
    FINDINGS_VERSION,
    HIT,
    LOSER,
    ClusterMark,
    EmitHits,
    LoserMark,
    Mark,
    losers,
    mark_hits,
    one_a_row,
    sent,
)
from etl.stages.keyed import routed
from etl.step import append, drop
from etl.storage.location import Location
from tests.engines.inprocess import InProcessEngine
from tests.etl.rows import say
from tests.etl.stages.dedup.toys import groups_of, marked
from tests.etl.stages.toybatches import EARLIER, identity, ids, rows_of
from tests.etl.stages.toys import read, text_recipe
from tests.etl.storage.builds import commit

TOY_HIT = pa.schema([pa.field("row", pa.int64(), nullable=False), pa.field("word", pa.string(), nullable=False)])


@dataclass(frozen=True)
class ToyMark(Mark):
    """A row's words, of any number of hits; three of them are too many."""

    table: ClassVar[str] = "TOY"
    hits: ClassVar[pa.Schema] = TOY_HIT

    @property
    def columns(self):
        return pa.schema([("words", pa.string())])

    def judge(self, batch, found):
        assert found.schema == TOY_HIT
        words = [[] for _ in range(batch.num_rows)]
        for hit in found.to_pylist():
            words[hit["row"]].append(hit["word"])
        column = pa.array(["".join(sorted(mine)) for mine in words])
        done = drop(batch, self.step, pc.greater(pc.utf8_length(column), 2), "many", column)
        return append(done, self.columns, [column])


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
    chunks = marked(LoserMark("exact", "copy"), groups_of(sizes, dropped), [(row, survivor) for row in lost], cuts)
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
    hits = [(0, identity(0), 3, 0, 1.0), (2, identity(0), 3, 1, 0.9), (3, identity(0), 3, 2, 0.5)]
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
    hits = [(0, identity(0), 2, 0, 1.0), (1, identity(0), 2, 1, jaccard)]
    first, second = rows_of(marked(ClusterMark("near", "near_duplicate", 0.8), groups_of([2]), hits))
    assert first["verdict"] is None
    assert (second["verdict"] is not None) == is_dropped


@given(
    st.lists(st.integers(1, 5), max_size=4),
    st.lists(st.tuples(st.integers(0, 19), st.sampled_from("abc")), max_size=40),
    st.sets(st.integers(0, 19)),
    st.lists(st.integers(0, 40), max_size=4),
)
def test_a_mark_sees_all_hits_of_a_row_and_of_no_other(sizes, hits, dropped, cuts):
    """Also without a hit, and in a split without rows; hits of the last row of a group and of the next one's first."""
    hits = [hit for hit in hits if hit[0] < sum(sizes)]
    chunks = marked(ToyMark("toy"), groups_of(sizes, dropped), hits, cuts)
    assert [chunk.batch.num_rows for chunk in chunks] == [chunk.rows_in for chunk in chunks] == sizes
    assert all(chunk.batch.schema == aligned(ToyMark("toy").columns) for chunk in chunks)
    for number, row in enumerate(rows_of(chunks)):
        words = "".join(sorted(word for hit, word in hits if hit == number))
        many = {"step": "toy", "reason": "many", "value": words} if len(words) > 2 else None
        verdict = EARLIER if number in dropped else many
        assert row == {"id": identity(number), "words": words, "verdict": verdict}


def test_the_only_hit_of_a_row_stands_at_its_place():
    found = pa.table({"row": pa.array([1, 3], pa.int64()), "n": [10, 30], "word": ["x", None]})
    assert [column.to_pylist() for column in one_a_row(found, 5)] == [
        [None, 10, None, 30, None], [None, "x", None, None, None],
    ]  # fmt: skip
    assert [column.to_pylist() for column in one_a_row(found.slice(0, 0), 2)] == [[None, None], [None, None]]


def test_a_mark_is_fingerprinted_by_its_fields():
    assert LoserMark("exact", "copy").semantic == {"mark": {"step": "exact", "reason": "copy"}}
    near = ClusterMark("near", "near_duplicate", 0.8).semantic
    assert near == {
        "mark": {"step": "near", "reason": "near_duplicate", "drop_below": 0.8},
        "findings": FINDINGS_VERSION,
    }


def test_hits_are_marked_whatever_split_has_found_them(tmp_path):
    """Three splits of two rows, the last but one without a hit; hits of all of them in either part."""
    made = {"source_dataset": "toy", "split_key": "1", "skill_bucket": "B5", "messages": [say("text", "any")]}
    rows = [made | {"id": identity(n), "source_example_id": f"{n}"} for n in range(6)]
    splits = [[pa.RecordBatch.from_pylist(rows[at : at + 2], PROMPT)] for at in (0, 2, 4)]
    recipe = text_recipe(tmp_path / "out", {"toy": []})
    base = Rows.of(commit(recipe.place / "ingest", PROMPT, splits, "ingest"))
    keys = {n: (n // 2 << 32) + n % 2 for n in range(6)}
    parts = [[(4, "a"), (1, "b"), (4, "c")], [(0, "d"), (4, "e")]]
    batches = [[pa.RecordBatch.from_pylist([{"row": keys[n], "word": w} for n, w in part], TOY_HIT)] for part in parts]
    hits = commit(recipe.place / "toy_hits", TOY_HIT, batches, "toy_hits")
    context = context_of(recipe, InProcessEngine())
    done = mark_hits(context, base, hits, ToyMark("toy"), {"found": 5})
    assert done.schema.names == [*PROMPT.names[:-1], "words", "verdict"]
    table = done.datasets[-1].result()
    assert {row["id"]: row["words"] for row in read(table)} == {
        identity(n): word for n, word in enumerate(["d", "b", "", "", "ace", ""])
    }
    manifest = table.manifest
    assert (manifest.stage, manifest.table, manifest.findings) == ("toy", "TOY", {"found": 5})
    assert set(manifest.made_from["inputs"]) == {"ingest", "toy_hits"}
    assert manifest.accounting == {"toy": {"toy": {"in": 6, "made": 0, "kept": 5, "many": 1}}}


def test_losers_name_the_first_row_of_their_group():
    table = pa.table({"row": pa.array([10, 11, 12, 13]), "id": pa.array([identity(n) for n in range(4)], pa.binary())})
    found = losers(table, np.array([0, 0, 2, 2]), np.array([False, True, False, True]))
    assert found.schema == LOSER
    assert found.to_pylist() == [
        {"row": 11, "id": identity(1), "survivor": identity(0)},
        {"row": 13, "id": identity(3), "survivor": identity(2)},
    ]


def test_hits_go_to_the_split_that_holds_their_row(tmp_path):
    rows = [5, (1 << 32) + 1, (7 << 32) + 3]
    batch = pa.record_batch(
        [
            pa.array(rows), ids(range(5, 8)), ids(range(3)), pa.array([1] * 3, pa.int32()),
            pa.array([0] * 3, pa.int32()), pa.array([1.0] * 3),
        ],
        schema=HIT,
    )  # fmt: skip
    hits = commit(Location.of(str(tmp_path / "hits")), HIT, [[batch.slice(0, 1)], [batch.slice(1)]]).ref
    found = [list(EmitHits(hits, sent(HIT))(split)) for split in range(2)]
    assert [piece.column("bucket").to_pylist() for pieces in found for piece in pieces] == [[0], [1, 7]]
    assert all(piece.schema == routed(sent(HIT)) for pieces in found for piece in pieces)
    assert [row for pieces in found for piece in pieces for row in piece.column("row").to_pylist()] == rows
    assert found[0][0].column("cluster_id").cast(ID).to_pylist() == [identity(0)]
