"""What is compared of candidates, and exact similarity inside blocks, against Python sets."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.canaries import canary_rows
from etl.dedup.near import NearDedup
from etl.dedup.survivor import Survivor
from etl.schema import ID
from etl.stages.dedup.bands import MakeCanaries
from etl.stages.dedup.blocks import EDGE
from etl.stages.dedup.verify import (
    BLOCK_MEMBER,
    SET,
    WANTED_SET,
    EmitWantedSets,
    Verify,
    WriteSets,
    edge_lines,
    packed,
    set_lines,
    unpacked,
)
from etl.storage.location import Location
from etl.text import shingles
from tests.etl.rows import asked, conversations
from tests.etl.stages.toybatches import ToyRows, cut_at, distributions_of, identity, rows_in, rows_of, with_rest_of_id
from tests.etl.storage.builds import commit

NEAR = NearDedup(unit="word", threshold=0.5)
LONG = " ".join(f"w{number}" for number in range(40))
CANARY = int(canary_rows(np.array([(2 << 32) + 1]), np.array([4]))[0])
"""A copy of row 1 of split 2."""


def sets_of(members):
    """Python sets as the pair (offsets, hashes)."""
    offsets = np.cumsum([0, *map(len, members)]).astype(np.int64)
    return offsets, np.array([value for one in members for value in sorted(one)], np.uint64)


@given(st.lists(st.sets(st.integers(0, 2**64 - 1), max_size=5), max_size=5), st.integers(0, 5))
def test_packed_sets_are_unpacked_wherever_a_slice_begins(members, start):
    offsets, hashes = unpacked(packed(sets_of(members)).slice(start))
    expected = sets_of(members[start:])
    assert (offsets.tolist(), hashes.tolist()) == (expected[0].tolist(), expected[1].tolist())


def test_both_ends_of_a_pair_are_wanted_with_its_block(tmp_path):
    """A canary's set is made where the row that it copies is."""
    rows = [(7, 5, 9, 50, 90, 1), (7, 5, CANARY, 50, 91, 0), (8, 5, 9, 50, 90, 0)]
    batch = pa.RecordBatch.from_pylist([dict(zip(EDGE.names, row, strict=True)) for row in rows], EDGE)
    (found,) = EmitWantedSets(commit(Location.of(str(tmp_path / "edges")), EDGE, [[batch]]).ref)(0)
    assert found.schema == WANTED_SET
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        (0, 5, 5, 7, 0), (0, 5, 5, 7, 1), (0, 5, 5, 8, 0), (0, 9, 9, 7, 1), (0, 9, 9, 8, 0),
        (2, (2 << 32) + 1, CANARY, 7, 0),
    ]  # fmt: skip


@given(st.lists(st.integers(0, 8), max_size=4))
def test_sets_are_written_of_the_rows_that_are_wanted(cuts):
    """Rows 0 and 3 and a canary of row 1; row 3 in two blocks, one of them named twice, and with an alike partner."""
    texts = ["the first text of this batch", LONG, "a text that nobody wants", "the last text of them all"]
    messages = [conversations([asked(text, "yes") for text in texts[at : at + 2]]) for at in (0, 2)]
    groups = [
        with_rest_of_id(batch)
        .append_column("source_example_id", pa.array([f"e{at}", f"e{at + 1}"]))
        .append_column("source_dataset", pa.array(["b", "a"]))
        .append_column("skill_bucket", pa.array(["B1", "B3"]))
        .set_column(0, "id", pa.array([identity(at), identity(at + 1)], ID))
        for at, batch in zip((0, 2), messages, strict=True)
    ]
    first = 2 << 32
    wanted = [(first, first, 7, 0), (first + 1, CANARY, 7, 0), (first + 3, first + 3, 7, 0),
              (first + 3, first + 3, 7, 1), (first + 3, first + 3, 9, 0)]  # fmt: skip
    table = pa.Table.from_pylist([dict(zip(WANTED_SET.names, (2, *row), strict=True)) for row in wanted], WANTED_SET)
    making = MakeCanaries(NEAR, 1.0)
    write = WriteSets(ToyRows([], [], groups), NEAR, making, Survivor(sources=("a", "b")), ("a", "b"))
    chunks = list(write(2, cut_at(table, cuts)))
    found = rows_of(chunks)
    assert [chunk.batch.num_rows for chunk in chunks] == [2, 1]
    assert rows_in(chunks) == 4
    assert [(row["row"], row["source"], row["example"], row["blocks"]) for row in found] == [
        (first, 1, "e0", [7]), (CANARY, 0, "e1", [7]), (first + 3, 0, "e3", [7, 9]),
    ]  # fmt: skip
    assert found[0]["preference"] > found[2]["preference"]
    copy = making.edited(pa.array([identity(1)], ID), pa.array([f"{LONG}\nyes"]), np.array([True]))
    for row, text in ((0, f"{texts[0]}\nyes"), (1, copy[0].as_py()), (2, f"{texts[3]}\nyes")):
        expected = shingles(pa.array([text]), NEAR.ngram)[1]
        assert np.frombuffer(found[row]["shingles"], np.uint64).tolist() == expected.tolist()
    digests = NEAR.sign_digests(pa.array([f"{texts[3]}\nyes"]))
    assert [(row["tokens"], row["signs"]) for row in found] == [(None, None)] * 2 + [tuple(d[0] for d in digests)]


def test_a_set_goes_to_each_of_its_blocks_and_a_pair_to_its_own():
    row = {"row": 5, "id": identity(5), "source": 1, "example": "e", "preference": 3, "digest": 2}
    row |= {"tokens": None, "signs": None}
    sets = pa.RecordBatch.from_pylist([row | {"blocks": [7, 8], "shingles": b"12345678"}], SET)
    edges = pa.RecordBatch.from_pylist([{"block": 8, "a": 5, "b": 9, "a_key": 50, "b_key": 90, "alike": 0}], EDGE)
    (members,) = set_lines(sets, 3)
    assert [(row["block"], row["is_edge"], row["a"], row["shingles"]) for row in members.to_pylist()] == [
        (7, False, 5, b"12345678"), (8, False, 5, b"12345678"),
    ]  # fmt: skip
    (pairs,) = edge_lines(edges, 3)
    assert [(row["block"], row["is_edge"], row["a"], row["b"], row["id"]) for row in pairs.to_pylist()] == [
        (8, True, 5, 9, None),
    ]  # fmt: skip
    assert pairs.column("bucket")[0] == members.column("bucket")[1]


blocks = st.lists(
    st.tuples(
        st.lists(st.frozensets(st.integers(0, 9), min_size=1), min_size=2, max_size=5),
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=6),
    ),
    max_size=3,
)
"""For each block the sets of its rows, and pairs of them (by place, modulo their number)."""


def members_of(drawn, canary=frozenset()):
    """BLOCK_MEMBER rows of some blocks, sorted, and the distinct pairs with their sets."""
    lines, pairs = [], {}
    for block, (members, drawn_pairs) in enumerate(drawn):
        keys = [10 * block + place for place in range(len(members))]
        details = zip(keys, members, strict=True)
        lines += [
            (0, block, False, key, None, identity(key), key % 2, example_of(key), 0, 0, sets_of([one])[1].tobytes())
            for key, one in details
        ]
        found = [tuple(sorted((a % len(keys), b % len(keys)))) for a, b in drawn_pairs]
        found = sorted((keys[a], keys[b]) for a, b in found if a != b)
        lines += [(0, block, True, a, b, *[None] * 6) for a, b in found]
        by_key = dict(zip(keys, members, strict=True))
        pairs |= {(a, b): (by_key[a], by_key[b]) for a, b in found}
    return lines, pairs


def example_of(key):
    """12, 11, 10, 9, 8 in each block: the shorter come first, in another order than the rows and than the texts."""
    return str(12 - key % 10)


@given(blocks, st.lists(st.integers(0, 40), max_size=6))
def test_pairs_at_or_above_the_threshold_are_written_however_the_stream_is_cut(drawn, cuts):
    """A pair may come several times in a row."""
    lines, pairs = members_of(drawn)
    table = pa.Table.from_pylist([dict(zip(BLOCK_MEMBER.names, line, strict=True)) for line in lines], BLOCK_MEMBER)
    chunks = list(Verify(NEAR, ("one", "two"))(0, cut_at(table, cuts)))
    expected = {}
    for (a, b), (one, other) in pairs.items():
        jaccard = len(one & other) / len(one | other)
        if jaccard >= 0.5:
            first, second = sorted((a, b), key=lambda key: (len(example_of(key)), example_of(key)))
            expected[first, second] = jaccard
    found = rows_of(chunks)
    assert {(row["a_row"], row["b_row"]): row["jaccard"] for row in found} == expected
    assert len(found) == len(expected)
    for row in found:
        assert (row["a"], row["b"]) == (example_of(row["a_row"]), example_of(row["b_row"]))
        assert row["a_source"] == ("one", "two")[row["a_row"] % 2]
        assert row["b_id"] == identity(row["b_row"])
    assert rows_in(chunks) == len(pairs)


def test_canaries_that_are_similar_are_counted_by_level_and_left_out():
    """Row 1 with two canaries: one that shares its whole set, and one that shares nothing."""
    copies = canary_rows(np.array([1, 1]), np.array([2, 3])).tolist()
    sets = {1: {1, 2}, copies[0]: {1, 2}, copies[1]: {8, 9}}
    lines = [
        (0, 4, False, key, None, identity(1), 0, "e", 1, key, sets_of([sets[key]])[1].tobytes()) for key in sorted(sets)
    ]
    lines += [(0, 4, True, 1, copy, *[None] * 6) for copy in copies]
    table = pa.Table.from_pylist([dict(zip(BLOCK_MEMBER.names, line, strict=True)) for line in lines], BLOCK_MEMBER)
    chunks = list(Verify(NEAR, ("one",))(0, cut_at(table, [2, 4])))
    assert rows_of(chunks) == []
    assert rows_in(chunks) == 0
    assert distributions_of(chunks) == {"canaries": {"2": {"other": 1}}}


def test_pairs_with_the_same_tokens_and_other_signs_are_counted_once_where_they_are_reported():
    """Of the rows (tokens, signs) 0 and 1 differ only in signs, 0 and 2 in words, 3 and 0 are not similar.

    Row 4 has no digests.
    """
    rows = [(1, 10, {1, 2}), (1, 11, {1, 2}), (2, 12, {1, 2}), (1, 13, {8, 9}), (None, None, {1, 2, 3})]
    lines = [
        (0, 4, False, key, None, identity(key), 0, "e", tokens, signs, sets_of([one])[1].tobytes())
        for key, (tokens, signs, one) in enumerate(rows)
    ]
    lines += [(0, 4, True, a, b, *[None] * 6) for a, b in ((0, 1), (0, 1), (0, 2), (0, 3), (0, 4))]
    table = pa.Table.from_pylist([dict(zip(BLOCK_MEMBER.names, line, strict=True)) for line in lines], BLOCK_MEMBER)
    chunks = list(Verify(NEAR, ("one",))(0, cut_at(table, [3, 5])))
    assert len(rows_of(chunks)) == 3
    assert distributions_of(chunks) == {"in_signs": 1}
