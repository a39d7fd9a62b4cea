"""Map sides and reducers that cut pairs at blocks, on toy batches; etl.stages.dedup.components runs whole graphs."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.blocks import CLASS_BITS, set_bytes, size_class
from etl.stages.dedup.bands import CANDIDATE
from etl.stages.dedup.blocks import (
    AT_END,
    AT_END_ORDER,
    CHUNK,
    END,
    KEYED,
    RANKED,
    CutComponents,
    chunk_lines,
    component_lines,
    first_end_lines,
    join_first_chunk,
    join_keys,
    join_second_chunk,
    key_lines,
    second_end_lines,
)
from etl.stages.dedup.stars import LABEL
from etl.stages.keyed import hashed_buckets
from tests.etl.stages.toybatches import cut_at, rows_in, rows_of

cuts = st.lists(st.integers(0, 60), max_size=5)


def batch_of(schema, rows):
    return pa.RecordBatch.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)


def table_of(schema, rows):
    """A bucket's rows, sorted as they are given."""
    return pa.Table.from_batches([batch_of(schema, rows)])


labelled = st.dictionaries(st.integers(0, 15), st.integers(1, 3), max_size=10)
"""Row to how many batches of pairs name its key."""


@given(labelled, cuts)
def test_each_row_gets_its_component_and_its_key_once(rows, cuts):
    lines = [
        (0, row, is_key, row * 100 if is_key else row // 4)
        for row, times in sorted(rows.items())
        for is_key in [False, *[True] * times]
    ]
    chunks = list(join_keys(0, cut_at(table_of(KEYED, lines), cuts)))
    assert rows_of(chunks) == [{"row": row, "component": row // 4, "key": row * 100} for row in sorted(rows)]
    assert rows_in(chunks) == len(lines)


def test_components_and_keys_go_to_the_bucket_of_their_row():
    (found,) = component_lines(batch_of(LABEL, [(3, 1), (4, 1)]), 4)
    assert [tuple(row.values())[1:] for row in found.to_pylist()] == [(3, False, 1), (4, False, 1)]
    (found,) = key_lines(batch_of(CANDIDATE, [(3, 4, 30, 40, 0, 1), (3, 5, 30, 50, 1, 2)]), 4)
    assert [tuple(row.values())[1:] for row in found.to_pylist()] == [(3, True, 30), (4, True, 40), (5, True, 50)]
    assert found.column("bucket").equals(hashed_buckets(np.array([3, 4, 5]), 4))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(100, 2000), cuts)
def test_a_component_is_cut_into_chunks_of_half_the_budget(sizes, budget, cuts):
    """Two components, each with these sets; a chunk may pass its half by one set."""
    keys = (np.arange(len(sizes)) << CLASS_BITS) | size_class(np.array(sizes))
    lines = [(0, component, key, row) for component in (3, 8) for row, key in enumerate(keys.tolist())]
    rows = rows_of(CutComponents(budget)(0, cut_at(table_of(RANKED, lines), cuts)))
    assert [row["component"] for row in rows] == [3] * len(sizes) + [8] * len(sizes)
    for component in (3, 8):
        chunks = [row["chunk"] for row in rows if row["component"] == component]
        before = np.concatenate([[0], np.cumsum(set_bytes(keys))[:-1]])
        assert chunks == (before // (budget // 2)).tolist()


def with_chunks(pairs):
    """Lines of pairs at one end and those of the chunks of rows 0 … 5, sorted as a reducer gets them."""
    chunks = batch_of(CHUNK, [(row, row // 3, row % 3, 10 * row) for row in range(6)])
    return pa.Table.from_batches([*chunk_lines(chunks, 1), *pairs], AT_END).sort_by(
        [(name, "ascending") for name in AT_END_ORDER]
    )


def test_pairs_meet_the_chunk_of_either_end():
    """Chunk row % 3 of component row // 3; the pair (0, 1) comes twice."""
    pairs = [(0, 1, 7, 7, 1, 1), (0, 1, 7, 7, 1, 1), (0, 2, 7, 7, 0, 1), (3, 5, 7, 7, 1, 1)]
    first = with_chunks(first_end_lines(batch_of(CANDIDATE, pairs), 1))
    for batch_rows in (1, 2, 100):
        chunks = list(join_first_chunk(0, iter(first.to_batches(max_chunksize=batch_rows))))
        ends = [tuple(row.values()) for row in rows_of(chunks)]
        assert ends == [(0, 1, 1, 0, 0, 0), (0, 2, 0, 0, 0, 0), (3, 5, 1, 1, 0, 30)]
    second = with_chunks(second_end_lines(batch_of(END, ends), 1))
    assert [row["chunk"] for row in second.to_pylist() if row["is_pair"]] == [0, 0, 0]
    found = {}
    for batch_rows in (1, 2, 100):
        rows = rows_of(join_second_chunk(0, iter(second.to_batches(max_chunksize=batch_rows))))
        found[batch_rows] = [tuple(row.values()) for row in rows]
    assert [pair for _, *pair in found[1]] == [[0, 1, 0, 10, 1], [0, 2, 0, 20, 0], [3, 5, 30, 50, 1]]
    assert len({block for block, *_ in found[1]}) == 3
    assert found[1] == found[2] == found[100]


def test_pairs_of_the_same_two_chunks_share_a_block_whichever_end_is_where():
    """Rows 1 and 2 are in chunk 0 of a component, 8 and 9 in chunk 1; (1, 9) and (8, 2) are between the same chunks."""
    lines = [
        (0, 2, False, None, None, 5, 0, 20), (0, 2, True, 8, 0, 5, 1, 80),
        (0, 9, False, None, None, 5, 1, 90), (0, 9, True, 1, 0, 5, 0, 10),
    ]  # fmt: skip
    one, other = rows_of(join_second_chunk(0, cut_at(table_of(AT_END, lines), [])))
    assert (one["a"], one["b"], other["a"], other["b"]) == (8, 2, 1, 9)
    assert (one["a_key"], one["b_key"], other["a_key"], other["b_key"]) == (80, 20, 10, 90)
    assert one["block"] == other["block"]
