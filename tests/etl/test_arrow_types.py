"""Every Arrow type and encoding, by itself and inside lists, structs and maps: its form for each use, or a refusal."""

import datetime
import decimal
import math
import uuid
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.arrow_types import FORMS, as_text, hex_text, kept, kind_of, plain, plain_type, refused
from etl.errors import SchemaError
from etl.hashing import ContentDigest, hash_array
from etl.storage.catalog import sql_type

UUID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
BIG = decimal.Decimal("12345678901234567890123456789012345678901234567890.12")
DAY = 86400
AT = 1_767_323_045  # 2026-01-02T03:04:05Z


def of(kind, *values):
    return pa.array([*values, None], kind)


def counted(kind, *counts, by=pa.int64):
    """Values given as the integers behind them."""
    return pa.array([*counts, None], by()).cast(kind)


def extension(kind, storage):
    return pa.ExtensionArray.from_storage(kind, storage)


def union(make):
    children = [pa.array([1, 2]), pa.array(["a", "b"])]
    codes = pa.array([0, 1], pa.int8())
    offsets = [] if make == pa.UnionArray.from_sparse else [pa.array([0, 0], pa.int32())]
    return make(codes, *offsets, children)


# Array with a null at its end -> what each of its other values is as JSON; REFUSED where the type has no form.
REFUSED = object()
MOMENTS = {
    "s": ["2026-01-02T03:04:05"],
    "ms": ["2026-01-02T03:04:05", "2026-01-02T03:04:05.600000"],
    "us": ["2026-01-02T03:04:05", "2026-01-02T03:04:05.600000", "2026-01-02T03:04:05.000001"],
    "ns": ["2026-01-02T03:04:05", "2026-01-02T03:04:05.600000", "2026-01-02T03:04:05.000000001"],
}
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def moments(unit, zone=None):
    n = PER_SECOND[unit]
    return counted(pa.timestamp(unit, zone), *[AT * n, AT * n + n * 3 // 5, AT * n + 1][: len(MOMENTS[unit])])


def in_zone(unit):
    return [text.replace("T03:", "T04:") + "+01:00" for text in MOMENTS[unit]]


FLAT = [
    (pa.nulls(2), [None]),
    (of(pa.bool_(), True, False), [True, False]),
    *[(of(kind, -128, 127), [-128, 127]) for kind in (pa.int8(), pa.int16(), pa.int32())],
    (of(pa.int64(), -(2**63), 2**53 + 1), [-(2**63), 2**53 + 1]),
    *[(of(kind, 0, 255), [0, 255]) for kind in (pa.uint8(), pa.uint16(), pa.uint32())],
    (of(pa.uint64(), 2**64 - 1), [2**64 - 1]),
    *[(of(kind, 1.5, math.nan, math.inf, -0.0), [1.5, None, None, -0.0]) for kind in (pa.float32(), pa.float64())],
    (pa.array([np.float16(1.5), np.float16("nan"), None], pa.float16()), [1.5, None]),
    *[
        (of(make(7, 2), decimal.Decimal("1.5"), decimal.Decimal("-12345.67")), ["1.50", "-12345.67"])
        for make in (pa.decimal32, pa.decimal64, pa.decimal128, pa.decimal256)
    ],
    (of(pa.decimal256(60, 2), BIG), [str(BIG)]),
    (of(pa.decimal128(5, -3), decimal.Decimal(12000)), ["1.2E+4"]),
    (
        counted(pa.date32(), 0, 3_000_000, -800_000, 2**31 - 1, by=pa.int32),
        ["1970-01-01", "10183-09-21", "-0221-09-04", "<value out of range: 2147483647>"],
    ),
    (counted(pa.date64(), 0, DAY * 1000), ["1970-01-01", "1970-01-02"]),
    (counted(pa.time32("s"), 1, -1, by=pa.int32), ["00:00:01", "<value out of range: -1>"]),
    (counted(pa.time32("ms"), 1000, 1600, by=pa.int32), ["00:00:01", "00:00:01.600000"]),
    (counted(pa.time64("us"), 10**6, 1), ["00:00:01", "00:00:00.000001"]),
    (counted(pa.time64("ns"), 10**9, 1, 1000), ["00:00:01", "00:00:00.000000001", "00:00:00.000001"]),
    *[(moments(unit), MOMENTS[unit]) for unit in MOMENTS],
    *[(moments(unit, "UTC"), [f"{text}+00:00" for text in MOMENTS[unit]]) for unit in MOMENTS],
    *[(moments(unit, zone), in_zone(unit)) for unit in MOMENTS for zone in ("Europe/Berlin", "+01:00")],
    (moments("us", "Nowhere/Land"), REFUSED),
    (
        counted(pa.timestamp("s"), 253_402_300_800, -62_135_596_801, 2**62),
        ["10000-01-01T00:00:00", "0000-12-31T23:59:59", "<value out of range: 4611686018427387904>"],
    ),
    (counted(pa.timestamp("s", "Europe/Berlin"), 2**62), ["<value out of range: 4611686018427387904>"]),
    (
        counted(pa.duration("s"), 0, 90061, -1, 2**62),
        ["0:00:00", "1 day, 1:01:01", "-1 day, 23:59:59", "53375995583650 days, 7:45:04"],
    ),
    (counted(pa.duration("ms"), 1500), ["0:00:01.500000"]),
    (counted(pa.duration("us"), 1500), ["0:00:00.001500"]),
    (counted(pa.duration("ns"), 1500, 1000), ["0:00:00.000001500", "0:00:00.000001"]),
    (
        pa.array([pa.MonthDayNano([1, -2, 3]), pa.MonthDayNano([0, 0, -1_500_000_000]), None]),
        ["P1M-2DT0.000000003S", "P0M0DT-1.500000000S"],
    ),
    *[(of(kind, "é", "") , ["é", ""]) for kind in (pa.string(), pa.large_string(), pa.string_view())],
    *[(of(kind, "é".encode(), b""), ["é", ""]) for kind in (pa.binary(), pa.large_binary(), pa.binary_view())],
    (of(pa.binary(2), b"\x00\xff", b"ab"), ["00ff", "6162"]),
    (extension(pa.uuid(), of(pa.binary(16), UUID.bytes)), [str(UUID)]),
    (extension(pa.bool8(), of(pa.int8(), 1, 0, 7)), [True, False, True]),
    (extension(pa.json_(), of(pa.string(), '{"a":1}')), ['{"a":1}']),
    (extension(pa.opaque(pa.int32(), "thing", "maker"), of(pa.int32(), 7)), [7]),
    (extension(pa.fixed_shape_tensor(pa.int32(), [2]), of(pa.list_(pa.int32(), 2), [1, 2])), [[1, 2]]),
    (of(pa.dictionary(pa.int8(), pa.string()), "a", "b", "a"), ["a", "b", "a"]),
    (of(pa.dictionary(pa.uint32(), pa.int16()), 7, 7), [7, 7]),
    (pa.DictionaryArray.from_arrays([1, 0, None], ["a", None]), [None, "a"]),
    (pc.run_end_encode(of(pa.string(), "a", "a", "b")), ["a", "a", "b"]),
    (pc.run_end_encode(of(pa.int64(), 1, 1)), [1, 1]),
    *[
        (of(kind, [1, None], []), [[1, None], []])
        for kind in (make(pa.int16()) for make in (pa.list_, pa.large_list, pa.list_view, pa.large_list_view))
    ],
    *[
        (of(kind, ["a"], None, [], ["b"], ["c", "d"]), [["a"], None, [], ["b"], ["c", "d"]])
        for kind in (make(pa.binary()) for make in (pa.list_view, pa.large_list_view))
    ],
    (pa.ListViewArray.from_arrays([2, 0, 1, None], [2, 1, 2, 0], pa.array([1, 2, 3, 4])), [[3, 4], [1], [2, 3]]),
    (of(pa.list_(pa.binary(1), 2), [b"a", None]), [["61", None]]),
    (
        of(pa.struct([("x", pa.date32()), ("y", pa.string())]), {"x": datetime.date(2026, 1, 2), "y": None}),
        [{"x": "2026-01-02", "y": None}],
    ),
    (of(pa.struct([]), {}), [{}]),
    (of(pa.map_(pa.string(), pa.binary(1)), [("k", b"\xff"), ("k", None)], []), [[["k", "ff"], ["k", None]], []]),
    (of(pa.map_(pa.date32(), pa.int8()), [(datetime.date(2026, 1, 2), 1)]), [[["2026-01-02", 1]]]),
    (union(pa.UnionArray.from_sparse), REFUSED),
    (union(pa.UnionArray.from_dense), REFUSED),
    (pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), REFUSED),
]  # fmt: skip
EVERY = pytest.mark.parametrize(("array", "expected"), FLAT, ids=[str(array.type) for array, _ in FLAT])


def as_json(array):
    """Through kept columns to JSON and back."""
    column = kept(array)
    column.validate(full=True)
    return [orjson.loads(orjson.dumps(value)) for value in column.to_pylist()]


def wrapped(array):
    """The array inside a list, a struct and a map, with a null row that holds something, and what holds a value."""
    size = len(array)
    mask = pa.array([n == size - 1 for n in range(size)])
    ends = pa.array(range(size + 1), pa.int32())
    yield pa.StructArray.from_arrays([array], names=["x"], mask=mask), lambda value: {"x": value}
    yield pa.ListArray.from_arrays(ends, array, mask=mask), lambda value: [value]
    keys = pa.array(["k"] * size)
    yield pa.MapArray.from_arrays(ends, keys, array), lambda value: [["k", value]]


def test_every_type_of_arrow_is_there():
    """By pyarrow's own list of type ids, which has two intervals that pyarrow cannot make an array of."""
    ids = {getattr(pa.lib, name) for name in dir(pa.lib) if name.startswith("Type_")}
    made = {array.type.id for array, _ in FLAT}
    assert ids - made == {pa.lib.Type_INTERVAL_MONTHS, pa.lib.Type_INTERVAL_DAY_TIME}
    assert {kind_of(array.type) for array, _ in FLAT} == set(FORMS) - {"interval of one unit"}


@EVERY
def test_kept_as_json(array, expected):
    if expected is REFUSED:
        assert refused(array.type, "kept") == array.type
        assert refused(pa.list_(pa.struct([("x", array.type)])), "kept") == array.type
        return
    assert refused(array.type, "kept") is None
    assert as_json(array) == [*expected, None]
    assert as_json(array.slice(1)) == [*expected, None][1:]
    for outer, holds in wrapped(array):
        last = [holds(None)] if pa.types.is_map(outer.type) else [None]
        assert as_json(outer) == [*map(holds, expected), *last]
        assert as_json(outer.slice(1)) == [*map(holds, expected), *last][1:]


@EVERY
def test_hashed(array, expected):
    if pa.types.is_union(array.type):
        for kind in (array, pa.ListArray.from_arrays([0, 1, 2], array)):
            with pytest.raises(SchemaError, match=r"type (sparse|dense)_union.* has no hash"):
                hash_array(kind)
        with pytest.raises(SchemaError, match="column 'c' cannot be stored"):
            ContentDigest().add(pa.record_batch({"c": array}))
        return
    hashes = hash_array(array, 7).tolist()
    assert hashes[1:] == hash_array(array.slice(1), 7).tolist()
    assert hashes == hash_array(plain(array), 7).tolist()
    if expected is not REFUSED and not pa.types.is_null(array.type):
        assert hashes[-1] == hash_array(pa.nulls(1), 7)[0]
        is_float = pa.types.is_floating(array.type)
        assert len(set(hashes)) == len({*map(repr, expected), "None"}) or is_float
    for outer, _ in wrapped(array):
        assert len(set(hash_array(outer, 7).tolist())) >= len(set(hashes)) - 1
        assert hash_array(outer, 7)[1:].tolist() == hash_array(outer.slice(1), 7).tolist()


@EVERY
def test_text_and_names(array, expected):
    kind = kind_of(array.type)
    says = FORMS[kind]
    for use, form in (("prose", says.prose), ("name", says.name)):
        if refused(array.type, use) is None:
            assert as_text(array, use).type == pa.string() or kind == "string"
            wanted = [value if value is None or isinstance(value, str) else str(value) for value in expected]
            assert as_text(array, use).to_pylist() == [*wanted, None]
        else:
            assert form is None or expected is REFUSED
    assert (says.prose is not None) == (kind in ("null", "string", "binary"))


@EVERY
def test_stored_and_read_again_a_column_has_the_same_digest(array, expected, tmp_path):
    table = pa.table({"c": array})
    try:
        pq.write_table(table, tmp_path / "x.parquet")
        again = pq.read_table(tmp_path / "x.parquet")
    except (OSError, pa.ArrowException):  # Parquet has no such type, or Arrow cannot read what it wrote
        unstored = (
            "run_end",
            "month_day_nano",
            "_union",
            "struct<>",
            "decimal128(5, -3)",
            "fixed_s",
            "[s",
            "int64, ord",
        )
        assert any(word in str(array.type) for word in unstored)
        return
    digests = []
    for each in (table, again):
        digest = ContentDigest()
        digest.add(each.combine_chunks().to_batches()[0])
        digests.append(str(digest))
    if not pa.types.is_date64(array.type):  # comes back as date32, which has always had a hash of its own
        assert digests[0] == digests[1]


@EVERY
def test_sql(array, expected):
    if refused(array.type, "sql") is not None:
        with pytest.raises(SchemaError, match=r"the Arrow type .* has no SQL type here; docs/reference/arrow_types.md"):
            sql_type(array.type)
        return
    assert sql_type(pa.list_(array.type)) == f"ARRAY<{sql_type(array.type)}>"
    assert sql_type(array.type).split("(")[0].split("<")[0] == FORMS[kind_of(array.type)].sql


def test_the_documentation_has_the_table():
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "arrow_types.md").read_text()
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    told = {kind: uses for kind, *uses in lines[1:]}
    assert list(told) == list(FORMS)
    for kind, form in FORMS.items():
        assert [use == "—" for use in told[kind][:4]] == [
            convert is None for convert in (form.prose, form.name, form.kept, form.hashed)
        ], kind
        assert told[kind][4:] == [form.spark or "—", form.sql or "—"], kind


def test_words_of_sql():
    inner = pa.struct([("t", pa.timestamp("us")), ("d", pa.decimal128(20, 2))])
    assert sql_type(pa.map_(pa.string(), inner)) == "MAP<STRING, STRUCT<`t`: TIMESTAMP_NTZ, `d`: DECIMAL(20,2)>>"
    assert sql_type(pa.timestamp("us"), "hive") == sql_type(pa.timestamp("us", "UTC"), "hive") == "TIMESTAMP"
    assert [sql_type(kind) for kind in (pa.date32(), pa.string_view(), pa.list_(pa.int8(), 3))] == [
        "DATE", "STRING", "ARRAY<TINYINT>",
    ]  # fmt: skip


def test_one_moment_has_one_hash_in_every_unit_and_zone():
    kinds = [pa.timestamp(unit, zone) for unit in PER_SECOND for zone in (None, "UTC", "Asia/Tokyo")]
    moments = [counted(kind, AT * PER_SECOND[kind.unit]) for kind in kinds]
    assert len({hash_array(array, 7)[0] for array in moments}) == 1
    spans = [counted(pa.duration(unit), -5 * PER_SECOND[unit]) for unit in PER_SECOND]
    assert len({hash_array(array, 7)[0] for array in spans}) == 1
    times = [counted(pa.time32("s"), 61, by=pa.int32), counted(pa.time64("ns"), 61 * 10**9)]
    assert len({hash_array(array, 7)[0] for array in times}) == 1


def test_unsigned_integers_hash_as_their_bytes():
    assert hash_array(pa.array([7], pa.uint64())) == hash_array(pa.array([7], pa.int64()))
    assert hash_array(pa.array([2**64 - 1], pa.uint64())) == hash_array(pa.array([-1], pa.int64()))


def test_columns_that_are_json_already_are_not_copied():
    array = pa.array([{"x": [1, None], "y": "a"}, None])
    assert kept(array) is array
    assert plain_type(pa.dictionary(pa.int8(), pa.string_view())) == pa.large_string()


@given(st.lists(st.none() | st.binary(min_size=3, max_size=3), max_size=6), st.integers(0, 6))
def test_hexadecimal(values, start):
    array = pa.array(values, pa.binary(3)).slice(start)
    assert hex_text(array).to_pylist() == [None if value is None else value.hex() for value in values[start:]]


@given(st.lists(st.datetimes(datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31)), max_size=6))
def test_moments_are_written_as_orjson_writes_datetimes(values):
    assert kept(pa.array(values, pa.timestamp("us"))).to_pylist() == [orjson.loads(orjson.dumps(v)) for v in values]


@given(
    st.lists(st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2037, 12, 31)), max_size=6),
    st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "-05:30"]),
)
def test_moments_in_a_zone_are_written_as_orjson_writes_them(values, zone):
    array = pa.array(values, pa.timestamp("us", zone))
    assert kept(array).to_pylist() == [orjson.loads(orjson.dumps(value)) for value in array.to_pylist()]


@given(st.lists(st.timedeltas(), max_size=6))
def test_durations_are_written_as_python_writes_timedeltas(values):
    counts = [(value.days * DAY + value.seconds) * 10**6 + value.microseconds for value in values]
    fitting = [(n, str(value)) for n, value in zip(counts, values, strict=True) if abs(n) < 2**63]
    array = pa.array([n for n, _ in fitting], pa.int64()).cast(pa.duration("us"))
    assert kept(array).to_pylist() == [text for _, text in fitting]
