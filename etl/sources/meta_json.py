"""meta_json: the kept columns of each row as one JSON object, the same bytes that orjson writes.

Strings are escaped by a kernel, whole numbers and booleans written by Arrow, floats by one call of orjson a column; all
is put together by a kernel, about 10 ns a value and 1 ns a byte. Only lists, maps and structs, and what a shape adds as
Python values, cost a call of orjson each (about 1 µs).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I64, U8, Bools
from etl.hashing import binary_buffers
from etl.jit import njit

_SHORT: Final = {8: b"b", 9: b"t", 10: b"n", 12: b"f", 13: b"r", 34: b'"', 92: b"\\"}
"""Bytes that JSON escapes by one letter."""
_LETTERS: Final = np.array([_SHORT.get(byte, b"\0")[0] for byte in range(256)], np.uint8)
_LENGTHS: Final = np.array(
    [2 if byte in _SHORT else 6 if byte < ord(" ") else 1 for byte in range(256)], np.int64
)  # fmt: skip
_UNICODE: Final = np.frombuffer(b"\\u00", np.uint8)
_HEX: Final = np.frombuffer(b"0123456789abcdef", np.uint8)
_BRACES: Final = 2


@dataclass(frozen=True)
class _Fragments:
    """One value a row: data[starts[i]:ends[i]] is JSON, or where `is_text` the text of a JSON string."""

    data: U8
    starts: I64
    ends: I64
    valid: Bools
    is_text: bool = False


def meta_json(columns: Mapping[str, pa.Array | Sequence[Any]], num_rows: int) -> pa.StringArray:
    """One object a row with its keys sorted, values that are null left out: string [rows].

    Args:
        columns: by key, an array (binary is JSON already), or [rows] of JSON values, of JSON as bytes, or None.
        num_rows: how many rows there are.

    Raises:
        orjson.JSONEncodeError: a list, map or struct is nested too deep.
    """
    made = [(_key(name), _fragments(columns[name])) for name in sorted(columns)]
    sizes = np.full(num_rows, _BRACES, np.int64)
    for key, values in made:
        _measure(key, values.data, values.starts, values.ends, values.valid, values.is_text, sizes)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    out = np.empty(offsets[-1], np.uint8)
    out[offsets[:-1]], out[offsets[1:] - 1] = ord("{"), ord("}")
    begins = offsets[:-1] + 1
    places = begins.copy()
    for key, values in made:
        _write(key, values.data, values.starts, values.ends, values.valid, values.is_text, out, begins, places)
    text = pa.LargeStringArray.from_buffers(num_rows, pa.py_buffer(offsets), pa.py_buffer(out))
    return text.cast(pa.string())


def _key(name: str) -> U8:
    return np.frombuffer(orjson.dumps(name) + b":", np.uint8)


def _fragments(column: pa.Array | Sequence[Any]) -> _Fragments:
    if not isinstance(column, pa.Array):
        return _of_values(column)
    kind = column.type
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_floating(kind):
        return _of_floats(column, valid)
    if pa.types.is_integer(kind):
        column = column.cast(pa.string())
    elif pa.types.is_boolean(kind):
        column = pa.array(["false", "true"]).take(column.cast(pa.int8()))
    elif not (pa.types.is_string(kind) or pa.types.is_binary(kind)):
        return _of_values(column.to_pylist())
    data, offsets = binary_buffers(column)
    return _Fragments(data, offsets[:-1], offsets[1:], valid, is_text=pa.types.is_string(kind))


def _of_floats(column: pa.Array, valid: Bools) -> _Fragments:
    """As orjson writes them, which says null for NaN and the infinities."""
    values = pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
    data = np.frombuffer(orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY), np.uint8)
    commas = np.flatnonzero(data == ord(","))
    starts, ends = np.concatenate([[0], commas]) + 1, np.concatenate([commas, [len(data) - 1]])
    return _Fragments(data, starts[: len(valid)], ends[: len(valid)], valid)


def _of_values(values: Sequence[Any]) -> _Fragments:
    written = [value if value is None or isinstance(value, bytes) else orjson.dumps(value) for value in values]
    data, offsets = binary_buffers(array := pa.array(written, pa.binary()))
    return _Fragments(data, offsets[:-1], offsets[1:], array.is_valid().to_numpy(zero_copy_only=False))


@njit
def _measure(key: U8, data: U8, starts: I64, ends: I64, valid: Bools, is_text: bool, sizes: I64) -> None:
    """Add to the size of each row's object what one member takes."""
    for i in range(len(sizes)):
        if not valid[i]:
            continue
        size = ends[i] - starts[i]
        if is_text:
            size = 2
            for k in range(starts[i], ends[i]):
                size += _LENGTHS[data[k]]
        sizes[i] += len(key) + size + (sizes[i] > _BRACES)


@njit
def _write(
    key: U8, data: U8, starts: I64, ends: I64, valid: Bools, is_text: bool, out: U8, begins: I64, places: I64
) -> None:
    """Write one member of each row's object, which begins at `begins`, at places[i]; that is moved on."""
    for i in range(len(places)):
        if not valid[i]:
            continue
        at = places[i]
        if at > begins[i]:
            out[at] = 44
            at += 1
        for k in range(len(key)):
            out[at + k] = key[k]
        at += len(key)
        if not is_text:
            for k in range(ends[i] - starts[i]):
                out[at + k] = data[starts[i] + k]
            places[i] = at + ends[i] - starts[i]
            continue
        out[at] = 34
        at += 1
        for k in range(starts[i], ends[i]):
            byte = data[k]
            size = _LENGTHS[byte]
            if size == 1:
                out[at] = byte
            elif size == 2:
                out[at], out[at + 1] = 92, _LETTERS[byte]
            else:
                for j in range(4):
                    out[at + j] = _UNICODE[j]
                out[at + 4], out[at + 5] = _HEX[byte >> 4], _HEX[byte & 15]
            at += size
        out[at] = 34
        places[i] = at + 1
