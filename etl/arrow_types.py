"""What each Arrow type is converted to for each use: one table, and the conversions.

A use is a column of the table: prose (what is said), a name (ids, subsets, split keys), a kept column in meta_json, the
hash of a row (ids, content digests), a column of a Spark DataFrame, and a column of a catalog's table. A type may have
no form for a use. Then `refused` returns that type, and the caller raises an error that names the column. Nothing is
rounded, and no value raises: even a date beyond year 9999 has a text form.

Encodings have no row of their own, since their values are of another type: a dictionary, a run-end encoding, a view
and an extension type are read as their values (`plain`). `arrow.uuid` and `arrow.bool8` mean more than their storage.

Everything except intervals and durations is done by Arrow kernels and NumPy on whole columns, at 0.05 to 1 µs a value.
Types that JSON and hashes support directly are not copied.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Use = Literal["prose", "name", "kept", "hashed", "spark", "sql"]
Convert = Callable[[pa.Array], pa.Array]

_UNCHECKED: Final = pc.CastOptions(target_type=pa.string(), allow_invalid_utf8=True)
_MAX_SQL_DIGITS: Final = 38
_NS: Final = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_HEX: Final = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), "<u2")


@dataclass(frozen=True)
class Form:
    """The form of a type for each use; None: it has no form."""

    prose: Convert | None = None
    """To string [rows]; does not check that bytes are UTF-8."""
    name: Convert | None = None
    """To string [rows], likewise."""
    kept: Convert | None = None
    """To a type whose Python values orjson writes: null, bool, integer, float, string, list, map or struct."""
    hashed: Convert | None = None
    """To a type that etl.hashing has kernels for."""
    spark: str | None = None
    """Type of a DataFrame's column, as Spark's from_arrow_type makes it."""
    sql: str | None = None
    """Type of a column in SQL over the Parquet files that Arrow writes."""


# --- encodings --------------------------------------------------------------------------------------------------------


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without its encoding; types inside a list or struct are unchanged."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return kind if kind.extension_name in ("arrow.uuid", "arrow.bool8") else plain_type(kind.storage_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if kind.id in (pa.lib.Type_LIST_VIEW, pa.lib.Type_LARGE_LIST_VIEW):
        return pa.large_list(kind.value_field)
    return kind


def plain(array: pa.Array) -> pa.Array:
    """The same values without an encoding at the top: `plain_type` [rows]."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return plain(plain(array.dictionary).take(array.indices))
    if pa.types.is_run_end_encoded(kind):
        rows = np.arange(array.offset, array.offset + len(array))
        return plain(array.values).take(pa.array(np.searchsorted(array.run_ends.to_numpy(), rows, side="right")))
    wanted = plain_type(kind)
    if wanted == kind:
        return array
    if kind.id in (pa.lib.Type_LIST_VIEW, pa.lib.Type_LARGE_LIST_VIEW):
        # pyarrow 25's own cast of a view gives lists of other lengths, even negative ones.
        return pa.LargeListArray.from_arrays(
            _offsets(pc.list_value_length(array)), array.flatten(), type=wanted, mask=array.is_null()
        )
    return plain(array.storage) if isinstance(kind, pa.BaseExtensionType) else array.cast(wanted)


def _storage(array: pa.Array) -> pa.Array:
    return array.storage


# --- text -------------------------------------------------------------------------------------------------------------


def _same(array: pa.Array) -> pa.Array:
    return array


def _text(array: pa.Array) -> pa.Array:
    """Strings as they are and bytes as UTF-8, unchecked; null, decimal, integer and date in Arrow's own form.

    Arrow writes a date outside of the years -32767 to 32767 as `<value out of range: DAYS>`.
    """
    if pa.types.is_large_binary(array.type):
        array = array.cast(pa.binary())
    return pc.cast(array, options=_UNCHECKED)


def _short_fraction(text: pa.Array, unit: str) -> pa.Array:
    """Times with no fraction if it is zero, else with 6 digits of it, or 9 if there are nanoseconds."""
    if unit == "ms":
        text = pc.replace_substring_regex(text, r"(\.\d{3})", r"\1000")
    if unit == "ns":
        text = pc.replace_substring_regex(text, r"(\.\d{6})000", r"\1")
    return text if unit == "s" else pc.replace_substring_regex(text, r"\.000000$", "")


def _time_text(array: pa.Array) -> pa.Array:
    """ISO 8601: 03:04:05.600000."""
    return _short_fraction(array.cast(pa.string()), array.type.unit)


def _moment_text(array: pa.Array) -> pa.Array:
    """ISO 8601: 2026-01-02T03:04:05.600000, with the zone's offset at that moment if the type has a zone.

    The offset is taken from the local time, which costs a tenth of what Arrow's own text of a zoned moment does.
    """
    zone, unit = array.type.tz, array.type.unit
    local = array if zone is None else pc.local_timestamp(array)
    text = _short_fraction(local.cast(pa.string()), unit)
    text = pc.replace_substring_regex(text, r"^(-?\d{4,5}-\d\d-\d\d) ", r"\1T")
    if zone is None:
        return text
    offsets, places = np.unique((_counts(local) - _counts(array)) * _NS[unit] // 10**9, return_inverse=True)
    zoned = pc.binary_join_element_wise(text, pa.array(map(_offset, offsets), pa.string()).take(pa.array(places)), "")
    beyond = pc.starts_with(text, "<")
    return pc.if_else(beyond, array.cast(pa.timestamp(unit)).cast(pa.string()), zoned)


def _offset(seconds: int) -> str:
    hours, minutes = divmod(abs(int(seconds)) // 60, 60)
    return f"{'-' if seconds < 0 else '+'}{hours:02d}:{minutes:02d}"


def _duration_text(array: pa.Array) -> pa.Array:
    """As Python writes a timedelta, of any size: `-1 day, 23:59:59.500000`, with 9 digits if there are nanoseconds."""
    per_second = 10**9 // _NS[array.type.unit]
    counts = array.cast(pa.int64()).to_pylist()
    return pa.array([None if count is None else _timedelta(count, per_second) for count in counts], pa.string())


def _timedelta(value: int, per_second: int) -> str:
    seconds, rest = divmod(value, per_second)
    days, seconds = divmod(seconds, 86400)
    ahead = f"{days} day{'' if abs(days) == 1 else 's'}, " if days else ""
    nanoseconds = rest * (10**9 // per_second)
    digits = f"{nanoseconds:09d}"
    fraction = f".{digits.removesuffix('000') if nanoseconds % 1000 == 0 else digits}" if nanoseconds else ""
    return f"{ahead}{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{fraction}"


def _interval_text(array: pa.Array) -> pa.Array:
    """ISO 8601 with a sign for each part: P1M-2DT0.000000003S."""

    def text(months: int, days: int, nanoseconds: int) -> str:
        seconds, rest = divmod(abs(nanoseconds), 10**9)
        return f"P{months}M{days}DT{'-' if nanoseconds < 0 else ''}{seconds}.{rest:09d}S"

    return pa.array([None if value is None else text(*value) for value in array.to_pylist()], pa.string())


def hex_text(array: pa.FixedSizeBinaryArray) -> pa.StringArray:
    """Fixed-size binary in lower-case hexadecimal digits, two a byte: string [rows]."""
    width = array.type.byte_width
    data = np.frombuffer(array.buffers()[1] or b"", np.uint8)[
        array.offset * width : (array.offset + len(array)) * width
    ]
    text = pa.py_buffer(_HEX[data].tobytes())
    offsets = pa.py_buffer(np.arange(len(array) + 1, dtype=np.int32) * np.int32(2 * width))
    valid = pa.py_buffer(np.packbits(array.is_valid().to_numpy(zero_copy_only=False), bitorder="little"))
    return pa.StringArray.from_buffers(len(array), offsets, text, valid if array.null_count else None)


def _uuid_text(array: pa.Array) -> pa.Array:
    """RFC 9562: 8-4-4-4-12 hexadecimal digits."""
    return pc.replace_substring_regex(hex_text(array.storage), r"^(.{8})(.{4})(.{4})(.{4})(.{12})$", r"\1-\2-\3-\4-\5")


# --- kept: lists, maps and structs ------------------------------------------------------------------------------------


def _is_json(kind: pa.DataType) -> bool:
    """Whether orjson writes the type's Python values correctly, at every depth."""
    convert = FORMS[kind_of(kind)].kept
    nested = convert in (_kept_list, _kept_map, _kept_struct)
    return plain_type(kind) == kind and (convert is _same or nested) and all(map(_is_json, children(kind)))


def kept(array: pa.Array) -> pa.Array:
    """The array as a type whose Python values orjson writes; not copied if it already is one."""
    if _is_json(array.type):
        return array
    array = plain(array)
    convert = FORMS[kind_of(array.type)].kept
    assert convert is not None, "the caller asks `refused` first"
    return convert(array)


def _offsets(lengths: pa.Array) -> pa.Array:
    return pa.array(np.append(0, np.cumsum(pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False))), pa.int64())


def _kept_list(array: pa.Array) -> pa.Array:
    values = kept(array.flatten())
    return pa.LargeListArray.from_arrays(_offsets(pc.list_value_length(array)), values, mask=array.is_null())


def _kept_map(array: pa.Array) -> pa.Array:
    """A list of pairs, since keys need not be strings: JSON [[key, value], …]."""
    pairs = _entries(array)
    key, item = (kept(pairs.flatten().field(place)) for place in (0, 1))
    offsets = _offsets(pc.list_value_length(pairs))
    # Arrow takes no mask here, so null maps are marked in the offsets.
    marked = pc.if_else(pa.array(np.append(array.is_null(), False)), None, offsets.cast(pa.int32()))
    return pa.MapArray.from_arrays(marked, key, item)


def _kept_struct(array: pa.Array) -> pa.Array:
    columns = [kept(array.field(place)) for place in range(array.type.num_fields)]
    names = [field.name for field in array.type]
    return pa.StructArray.from_arrays(columns, names=names, mask=array.is_null())


# --- hashed -----------------------------------------------------------------------------------------------------------


def hashed(array: pa.Array) -> pa.Array:
    """The array as a type that etl.hashing has kernels for."""
    array = plain(array)
    convert = FORMS[kind_of(array.type)].hashed
    assert convert is not None, "the caller asks `refused` first"
    return convert(array)


def _as_string(array: pa.Array) -> pa.Array:
    return array.cast(pa.string())


def _as_bool(array: pa.Array) -> pa.Array:
    return array.storage.cast(pa.bool_())


def _bits(array: pa.Array) -> pa.Array:
    """Unsigned integers as int64 of the same 8 bytes."""
    return array.cast(pa.uint64()).view(pa.int64())


def _counts(array: pa.Array) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The integers that store a time, 0 for null: int64 [rows]."""
    wide = array.cast(pa.int32()) if pa.types.is_time32(array.type) else array
    return pc.fill_null(wide.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)


def _day_ns(array: pa.Array) -> pa.Array:
    return pa.array(_counts(array) * _NS[array.type.unit], mask=np.asarray(array.is_null()))


def _seconds_ns(array: pa.Array) -> pa.Array:
    """One pair for one moment or duration, whatever the unit and the zone."""
    per_second = 10**9 // _NS[array.type.unit]
    seconds, rest = np.divmod(_counts(array), per_second)
    parts = [pa.array(seconds), pa.array(rest * _NS[array.type.unit])]
    return pa.StructArray.from_arrays(parts, ["seconds", "nanoseconds"], mask=array.is_null())


def _parts(array: pa.Array) -> pa.Array:
    layout = np.dtype([("months", "<i4"), ("days", "<i4"), ("nanoseconds", "<i8")])
    values = np.frombuffer(array.buffers()[1] or b"", layout)[array.offset : array.offset + len(array)]
    parts = [pa.array(values[name].astype(np.int64)) for name in values.dtype.names or ()]
    return pa.StructArray.from_arrays(parts, list(layout.names or ()), mask=array.is_null())


def _entries(array: pa.Array) -> pa.Array:
    """A map as a list of structs, without the entries of null maps: large_list<struct<key, value>>."""
    starts = array.offsets.to_numpy().astype(np.int64)
    lengths = np.where(array.is_valid(), np.diff(starts), 0)
    ends = np.cumsum(lengths)
    places = pa.array(np.arange(lengths.sum()) + np.repeat(starts[:-1] - (ends - lengths), lengths))
    columns = [plain(each).take(places) for each in (array.keys, array.items)]
    pairs = pa.StructArray.from_arrays(columns, names=["key", "value"])
    return pa.LargeListArray.from_arrays(pa.array(np.append(0, ends)), pairs, mask=array.is_null())


# --- the table --------------------------------------------------------------------------------------------------------

FORMS: Final = {
    # type                    prose  name          kept            hashed       Spark            SQL
    "null":              Form(_text, _text,        _same,          _same,       "void",          None),
    "bool":              Form(None,  None,         _same,          _same,       "boolean",       "BOOLEAN"),
    "int8":              Form(None,  _text,        _same,          _same,       "tinyint",       "TINYINT"),
    "int16":             Form(None,  _text,        _same,          _same,       "smallint",      "SMALLINT"),
    "int32":             Form(None,  _text,        _same,          _same,       "int",           "INT"),
    "int64":             Form(None,  _text,        _same,          _same,       "bigint",        "BIGINT"),
    "uint":              Form(None,  _text,        _same,          _bits,       None,            None),
    "float16":           Form(None,  None,         _same,          _same,       None,            None),
    "float32":           Form(None,  None,         _same,          _same,       "float",         "FLOAT"),
    "float64":           Form(None,  None,         _same,          _same,       "double",        "DOUBLE"),
    "decimal":           Form(None,  _text,        _text,          _as_string,  "decimal",       "DECIMAL"),
    "wide decimal":      Form(None,  _text,        _text,          _as_string,  None,            None),
    "date32":            Form(None,  _text,        _text,          _same,       "date",          "DATE"),
    "date64":            Form(None,  _text,        _text,          _same,       None,            "DATE"),
    "time32":            Form(None,  _time_text,   _time_text,     _day_ns,     None,            None),
    "time64":            Form(None,  _time_text,   _time_text,     _day_ns,     "time",          None),
    "timestamp":         Form(None,  _moment_text, _moment_text,   _seconds_ns, "timestamp_ntz", "TIMESTAMP_NTZ"),
    "timestamp, zone":   Form(None,  _moment_text, _moment_text,   _seconds_ns, "timestamp",     "TIMESTAMP"),
    "timestamp[ns]":     Form(None,  _moment_text, _moment_text,   _seconds_ns, None,            None),
    "duration":          Form(None,  None,         _duration_text, _seconds_ns, "interval",      None),
    "duration[ns]":      Form(None,  None,         _duration_text, _seconds_ns, None,            None),
    "interval":          Form(None,  None,         _interval_text, _parts,      None,            None),
    "string":            Form(_text, _text,        _same,          _same,       "string",        "STRING"),
    "binary":            Form(_text, _text,        _text,          _same,       "binary",        "BINARY"),
    "fixed binary":      Form(None,  hex_text,     hex_text,       _same,       "binary",        "BINARY"),
    "arrow.uuid":        Form(None,  _uuid_text,   _uuid_text,     _storage,    None,            None),
    "arrow.bool8":       Form(None,  None,         _as_bool,       _as_bool,    None,            "TINYINT"),
    "list":              Form(None,  None,         _kept_list,     _same,       "array",         "ARRAY"),
    "map":               Form(None,  None,         _kept_map,      _entries,    "map",           "MAP"),
    "struct":            Form(None,  None,         _kept_struct,   _same,       "struct",        "STRUCT"),
    "union":            Form(),
    "interval of one unit": Form(),
}  # fmt: skip
"""By `kind_of`. docs/reference/arrow_types.md is the user's version."""

_KINDS: Final = {
    "null": [pa.lib.Type_NA],
    "bool": [pa.lib.Type_BOOL],
    "int8": [pa.lib.Type_INT8],
    "int16": [pa.lib.Type_INT16],
    "int32": [pa.lib.Type_INT32],
    "int64": [pa.lib.Type_INT64],
    "uint": [pa.lib.Type_UINT8, pa.lib.Type_UINT16, pa.lib.Type_UINT32, pa.lib.Type_UINT64],
    "float16": [pa.lib.Type_HALF_FLOAT],
    "float32": [pa.lib.Type_FLOAT],
    "float64": [pa.lib.Type_DOUBLE],
    "decimal": [pa.lib.Type_DECIMAL32, pa.lib.Type_DECIMAL64, pa.lib.Type_DECIMAL128, pa.lib.Type_DECIMAL256],
    "date32": [pa.lib.Type_DATE32],
    "date64": [pa.lib.Type_DATE64],
    "time32": [pa.lib.Type_TIME32],
    "time64": [pa.lib.Type_TIME64],
    "timestamp": [pa.lib.Type_TIMESTAMP],
    "duration": [pa.lib.Type_DURATION],
    "interval": [pa.lib.Type_INTERVAL_MONTH_DAY_NANO],
    "interval of one unit": [pa.lib.Type_INTERVAL_MONTHS, pa.lib.Type_INTERVAL_DAY_TIME],
    "string": [pa.lib.Type_STRING, pa.lib.Type_LARGE_STRING],
    "binary": [pa.lib.Type_BINARY, pa.lib.Type_LARGE_BINARY],
    "fixed binary": [pa.lib.Type_FIXED_SIZE_BINARY],
    "list": [pa.lib.Type_LIST, pa.lib.Type_LARGE_LIST, pa.lib.Type_FIXED_SIZE_LIST],
    "map": [pa.lib.Type_MAP],
    "struct": [pa.lib.Type_STRUCT],
    "union": [pa.lib.Type_SPARSE_UNION, pa.lib.Type_DENSE_UNION],
}
_KIND_BY_ID: Final = {number: kind for kind, numbers in _KINDS.items() for number in numbers}


def kind_of(kind: pa.DataType) -> str:
    """The row of FORMS that a type has, without its encoding."""
    kind = plain_type(kind)
    if isinstance(kind, pa.BaseExtensionType):
        return str(kind.extension_name)
    found = _KIND_BY_ID[kind.id]
    if found == "decimal" and not 0 <= kind.scale <= kind.precision <= _MAX_SQL_DIGITS:
        return "wide decimal"
    if found in ("timestamp", "duration") and kind.unit == "ns":
        return f"{found}[ns]"
    return "timestamp, zone" if found == "timestamp" and kind.tz is not None else found


def children(kind: pa.DataType) -> list[pa.DataType]:
    """Types inside a list, map or struct, encoded or not."""
    kind = plain_type(kind)
    if pa.types.is_map(kind):
        return [kind.key_type, kind.item_type]
    if kind_of(kind) == "list":
        return [kind.value_type]
    return [field.type for field in kind] if kind_of(kind) == "struct" else []


@functools.cache
def refused(kind: pa.DataType, use: Use) -> pa.DataType | None:
    """The type, or the one inside it, that has no form for a use; None if all of it has one.

    A struct with two fields of one name has no form as JSON, nor has a zone that is in no time-zone database a form as
    text. Spark reads no encoding except dictionaries.
    """
    if getattr(FORMS[kind_of(kind)], use) is None:
        return kind
    if use == "spark" and plain_type(kind) != kind and not pa.types.is_dictionary(kind):
        return kind
    bare = plain_type(kind)
    if pa.types.is_struct(bare) and use == "kept" and len({field.name for field in bare}) < bare.num_fields:
        return kind
    if pa.types.is_timestamp(bare) and use in ("name", "kept") and bare.tz is not None and not _is_zone(bare.tz):
        return kind
    return next((found for child in children(kind) if (found := refused(child, use)) is not None), None)


@functools.cache
def _is_zone(name: str) -> bool:
    try:
        pa.array([0], pa.timestamp("s", name)).cast(pa.string())
    except pa.ArrowInvalid:
        return False
    return True


def as_text(array: pa.Array, use: Literal["prose", "name"]) -> pa.StringArray:
    """The text of a column for a use; does not check that bytes are UTF-8.

    Args:
        array: of a type that is not `refused` for this use.
        use: what the text is.
    """
    array = plain(array)
    form = FORMS[kind_of(array.type)]
    convert = form.prose if use == "prose" else form.name
    assert convert is not None, "the caller asks `refused` first"
    return convert(array)
