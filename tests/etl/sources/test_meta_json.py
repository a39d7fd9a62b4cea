"""meta_json by kernels: the bytes that orjson writes of each row's object."""

import math

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.sources.meta_json import meta_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('\0\x01\b\t\n\f\r\x1f\x7f"\\/\u2028é🙂'))
COLUMNS = {
    "text": (TEXT, pa.string()),
    'a "key"\n': (st.integers(-(2**63), 2**63 - 1), pa.int64()),
    "unsigned": (st.integers(0, 2**64 - 1), pa.uint64()),
    "float": (st.floats() | st.sampled_from([1e16, 1e-5, -0.0, 5e-324, 1.0]), pa.float64()),
    "half": (st.floats(width=16), pa.float16()),
    "single": (st.floats(width=32), pa.float32()),
    "flag": (st.booleans(), pa.bool_()),
    "nothing": (st.none(), pa.null()),
    "list": (st.lists(TEXT, max_size=2), pa.list_(pa.string())),
    "struct": (st.fixed_dictionaries({"b": TEXT, "a": TEXT}), pa.struct({"b": pa.string(), "a": pa.string()})),
}  # fmt: skip
ROWS = st.lists(st.fixed_dictionaries({name: st.none() | values for name, (values, _) in COLUMNS.items()}), max_size=5)


def written(row):
    """The object of a row as orjson writes it."""
    return orjson.dumps({name: row[name] for name in sorted(row) if row[name] is not None}).decode()


@given(rows=ROWS, names=st.sets(st.sampled_from(sorted(COLUMNS))), offset=st.integers(0, 2))
def test_every_type_is_written_as_orjson_writes_it(rows, names, offset):
    columns = {name: pa.array([row[name] for row in rows], COLUMNS[name][1])[offset:] for name in names}
    # A float of fewer bits is written as the float64 of its value, which is what Arrow reads it as.
    kept = [{name: columns[name][place].as_py() for name in names} for place in range(len(rows[offset:]))]
    kept = [{name: _plain(value) for name, value in row.items()} for row in kept]
    assert meta_json(columns, len(kept)).to_pylist() == [written(row) for row in kept]


def _plain(value):
    return float(value) if isinstance(value, np.floating) else value


@given(values=st.lists(st.none() | TEXT | st.lists(st.integers(0, 9), max_size=2), max_size=4))
def test_values_of_shapes_and_json_as_bytes_are_the_same(values):
    as_json = [None if value is None else orjson.dumps(value) for value in values]
    expected = ["{}" if text is None else '{"a":' + text.decode() + "}" for text in as_json]
    for column in (values, as_json, pa.array(as_json, pa.binary())):
        assert meta_json({"a": column}, len(values)).to_pylist() == expected


def test_a_float_that_is_no_number_is_null_and_stays():
    assert meta_json({"a": pa.array([math.nan, math.inf, None])}, 3).to_pylist() == ['{"a":null}', '{"a":null}', "{}"]


def test_values_that_are_nested_too_deep_are_told():
    deep = []
    for _ in range(300):
        deep = [deep]
    with pytest.raises(orjson.JSONEncodeError):
        meta_json({"a": [deep]}, 1)
