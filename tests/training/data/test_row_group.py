import numpy as np
import pyarrow as pa
import pytest

from etl.errors import DataError
from etl.schema import SPAN, SPAN_KINDS
from training.data.row_group import Teachers, contradiction, copy_rows, decode, only_chunk

NO_TEACHERS = Teachers(None, None)


def span(kind, start, end):
    return {"kind": kind, "turn": 0, "start": start, "content_start": start, "end": end}


def table(ids, spans, **labels):
    columns = {"input_ids": pa.array(ids, pa.list_(pa.int32())), "spans": pa.array(spans, pa.list_(SPAN))}
    return pa.table({**columns, **labels})


def test_lists_become_offsets_and_values():
    spans = [[span("analysis", 0, 1), span("final", 1, 3)], [], [span("final", 0, 1)]]
    found = decode(table([[7, 8, 9], [], [4]], spans), NO_TEACHERS, "part", 9)
    arrays = {name: array.tolist() for name, array in found.arrays.items()}
    analysis, final = SPAN_KINDS.index("analysis"), SPAN_KINDS.index("final")
    assert arrays == {
        "offsets": [0, 3, 3, 4],
        "input_ids": [7, 8, 9, 4],
        "span_offsets": [0, 2, 2, 3],
        "span_kind": [analysis, final, final],
        "span_start": [0, 1, 0],
        "span_end": [1, 3, 1],
        "origin": [0, 0, 0],
    }
    assert found.origins == ((None, None),)
    assert not any(array.flags.writeable for array in found.arrays.values())


def test_a_slice_of_a_table_is_decoded_from_its_own_rows():
    whole = table([[1, 2], [3], [4, 5, 6]], [[], [span("final", 0, 1)], [span("final", 1, 3)]])
    arrays = decode(whole.slice(1).combine_chunks(), NO_TEACHERS, "part", 9).arrays
    assert (arrays["offsets"].tolist(), arrays["input_ids"].tolist()) == ([0, 1, 4], [3, 4, 5, 6])
    assert (arrays["span_offsets"].tolist(), arrays["span_end"].tolist()) == ([0, 1, 2], [1, 3])


def test_a_row_group_without_rows_is_decoded():
    found = decode(table([], []), NO_TEACHERS, "part", 9)
    assert (found.arrays["offsets"].tolist(), len(found.arrays["input_ids"]), found.origins) == ([0], 0, ())


def test_origins_are_the_combinations_that_occur():
    labels = {"source_dataset": ["a", "b", "a", None], "license": ["mit", None, "mit", "mit"]}
    found = decode(table([[1]] * 4, [[]] * 4, **labels), NO_TEACHERS, "part", 9)
    assert [found.origins[number] for number in found.arrays["origin"]] == [
        ("a", "mit"), ("b", None), ("a", "mit"), (None, "mit"),
    ]  # fmt: skip
    assert len(found.origins) == 3


@pytest.mark.parametrize("bad", [span("final", -1, 1), span("final", 2, 1), span("final", 0, 3), span("other", 0, 1)])
def test_a_span_outside_of_its_row_names_the_row(bad):
    with pytest.raises(DataError, match=r"part, row 1: n_tokens or spans contradict input_ids"):
        decode(table([[1, 2, 3], [4, 5]], [[span("final", 0, 3)], [bad]]), NO_TEACHERS, "part", 9)


@pytest.mark.parametrize("token", [-1, 10])
def test_a_token_id_that_was_never_written_is_damage(token):
    with pytest.raises(DataError, match=rf"the token ids {min(token, 3)} to {max(token, 3)}, but .* 0 to 9"):
        decode(table([[3, token]], [[]]), NO_TEACHERS, "part", 9)


def test_a_contradiction_says_where_and_what_to_do():
    assert str(contradiction("part-0.parquet", 7)).startswith("part-0.parquet, row 7: ")


def test_a_column_without_a_chunk_is_an_empty_array():
    found = only_chunk(pa.table({"a": pa.chunked_array([], pa.int64())}), "a")
    assert (len(found), found.type) == (0, pa.int64())


def test_rows_are_copied_to_their_places():
    values, offsets = np.arange(6, dtype=np.int32), np.array([0, 2, 2, 6])
    out = np.full(8, -1, np.int32)
    copy_rows(values, offsets, np.array([2, 1, 0]), out, np.array([3, 0, 0]))
    assert out.tolist() == [0, 1, -1, 2, 3, 4, 5, -1]


def test_no_side_table_is_false_and_names_none():
    assert not NO_TEACHERS
    assert NO_TEACHERS.tables == ()
