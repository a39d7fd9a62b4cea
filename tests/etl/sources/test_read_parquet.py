"""Parquet to PROMPT: the rows of JSONL in any cut, columns of any type, and files that are damaged or not for us."""

import base64
import datetime
import decimal
import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption
import pytest

from etl.errors import SourceError
from etl.sources import raw
from etl.sources.files import cut, list_files
from etl.sources.read import read_split
from etl.sources.row_groups import Limits
from etl.sources.spec import Source
from tests.etl.rows import asked
from tests.etl.sources.toysources import SHAPE, example, jsonl, rows_of, table, without_places


def unchecked(*texts: bytes) -> pa.Array:
    """A string array that holds these bytes, UTF-8 or not."""
    return pc.cast(pa.array(texts), options=pc.CastOptions(target_type=pa.string(), allow_invalid_utf8=True))


@pytest.mark.parametrize("split_bytes", [1, 200, 500, 1000, 1 << 30])
def test_parquet_gives_the_rows_of_jsonl_in_any_cut(tmp_path, split_bytes):
    jsonl(tmp_path / "x.jsonl", *table().to_pylist())
    pq.write_table(table(), tmp_path / "x.parquet", row_group_size=2)
    found = rows_of(tmp_path / "x.parquet", split_bytes=split_bytes)
    assert without_places(found) == without_places(rows_of(tmp_path / "x.jsonl"))


def test_a_large_row_group_becomes_several_batches(tmp_path, monkeypatch):
    pq.write_table(table(100, q=unchecked(*[b"q"] * 99, b"\xff")), tmp_path / "x.parquet")
    monkeypatch.setattr(raw, "ROW_GROUP_BYTES", 500)
    source = Source(spec="toy", path=str(tmp_path))
    (split,) = cut("toy", source, list_files("toy", source, {}), 1 << 30, {})
    sizes = [batch.num_rows for batch, _ in read_split(source, SHAPE, split, {}, Limits())]
    assert len(sizes) > 5
    assert sum(sizes) == 99
    rows, bad = rows_of(tmp_path)
    assert [row["source_example_id"] for row in rows] == [f"e{n}" for n in range(99)]
    assert bad == [(99, "invalid_utf8")]


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_text_may_be_stored_in_any_text_type(tmp_path, kind):
    columns = {name: table()[name].cast(kind) for name in ("q", "a", "task")}
    pq.write_table(table(), tmp_path / "plain.parquet")
    pq.write_table(table(**columns), tmp_path / "other.parquet")
    found = rows_of(tmp_path / "other.parquet")
    assert without_places(found) == without_places(rows_of(tmp_path / "plain.parquet"))


def test_a_column_of_nulls_is_text_too(tmp_path):
    pq.write_table(table(2, lang=pa.nulls(2), q=pa.nulls(2)), tmp_path / "x.parquet")
    assert rows_of(tmp_path) == ([], [(0, "missing_q"), (1, "missing_q")])


def test_numbers_are_good_names_in_parquet(tmp_path):
    pq.write_table(table(3, id=pa.array([1, None, -3], pa.int16())), tmp_path / "x.parquet")
    rows, bad = rows_of(tmp_path)
    assert [row["source_example_id"] for row in rows] == ["1", "-3"]
    assert bad == [(1, "missing_id")]


def test_text_that_is_not_utf8_is_quarantined_with_its_row_number(tmp_path):
    texts = unchecked(b"fine", b"\xc3\x28", "é".encode(), b"ok", b"\xed\xa0\x80", b"ok", b"cut \xf0\x9f")
    answers = unchecked(*[b"a"] * 4, b"\xff", b"\xff", b"a")
    pq.write_table(table(q=texts, a=answers), tmp_path / "x.parquet", row_group_size=3)
    expected = [(1, "invalid_utf8"), (4, "invalid_utf8"), (5, "invalid_utf8"), (6, "invalid_utf8")]
    for split_bytes in (1, 1 << 30):
        rows, bad = rows_of(tmp_path, split_bytes=split_bytes)
        assert bad == expected
        assert [row["source_example_id"] for row in rows] == ["e0", "e2", "e3"]


def test_bytes_that_are_not_utf8_are_quarantined_alike(tmp_path):
    pq.write_table(table(2, q=pa.array([b"ok", b"\xff"])), tmp_path / "x.parquet")
    rows, bad = rows_of(tmp_path)
    assert ([row["messages"][0]["content"] for row in rows], bad) == (["ok"], [(1, "invalid_utf8")])


@pytest.mark.parametrize(
    "kept",
    [
        unchecked(b"ok", b"\xff"),
        pa.array([b"ok", b"\xff"]),
        unchecked(b"ok", b"\xff").cast(pa.large_string(), safe=False),
        pa.ListArray.from_arrays([0, 1, 2], unchecked(b"ok", b"\xff")),
        pa.StructArray.from_arrays([unchecked(b"ok", b"\xff")], names=["x"]),
    ],
    ids=lambda array: str(array.type),
)
def test_kept_columns_must_be_utf8_too(tmp_path, kept):
    pq.write_table(table(2, m=kept), tmp_path / "x.parquet")
    rows, bad = rows_of(tmp_path)
    assert ([row["source_example_id"] for row in rows], bad) == (["e0"], [(1, "invalid_utf8")])
    assert "ok" in json.dumps(json.loads(rows[0]["meta_json"])["m"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.5, 1.5),
        (True, True),
        ('say "hi"', 'say "hi"'),
        (b'say "hi"', 'say "hi"'),
        ({"x": [1, 2]}, {"x": [1, 2]}),
        (decimal.Decimal("1.50"), "1.50"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.datetime(2026, 1, 2, 3, 4), "2026-01-02T03:04:00"),
    ],
    ids=repr,
)
def test_kept_columns_of_any_type_become_json(tmp_path, value, expected):
    # The second row has no question: its quarantine shows the kept column as well.
    pq.write_table(table(2, m=pa.array([value, value]), q=pa.array(["q", None])), tmp_path / "x.parquet")
    (row,), bad = rows_of(tmp_path)
    assert json.loads(row["meta_json"]) == {"m": expected, "task": "code"}
    assert bad == [(1, "missing_q")]


def test_bytes_inside_lists_are_text_and_fixed_ones_are_digits(tmp_path):
    kept = pa.array(
        [{"x": [b"ok"], "y": bytes(range(16))}], pa.struct([("x", pa.list_(pa.binary())), ("y", pa.binary(16))])
    )
    pq.write_table(table(1, m=kept), tmp_path / "x.parquet")
    (row,), _ = rows_of(tmp_path)
    assert json.loads(row["meta_json"])["m"] == {"x": ["ok"], "y": "000102030405060708090a0b0c0d0e0f"}


def test_names_may_be_of_any_type_that_is_exact(tmp_path):
    ids = pa.array([bytes(range(4)), b"abcd"], pa.binary(4))
    pq.write_table(table(2, id=ids, lang=pa.array([datetime.date(2026, 1, 2)] * 2)), tmp_path / "x.parquet")
    rows, _ = rows_of(tmp_path)
    assert [(row["source_example_id"], row["language"]) for row in rows] == [
        ("00010203", "2026-01-02"), ("61626364", "2026-01-02"),
    ]  # fmt: skip


def test_dates_beyond_python_are_kept_and_shown_in_a_quarantine(tmp_path):
    days = pa.array([3_000_000, -800_000], pa.int32()).cast(pa.date32())
    pq.write_table(table(2, m=days, q=pa.array(["q", None])), tmp_path / "x.parquet")
    (row,), bad = rows_of(tmp_path)
    assert (json.loads(row["meta_json"])["m"], bad) == ("10183-09-21", [(1, "missing_q")])


def test_a_kept_column_that_has_no_form_is_named(tmp_path):
    twice = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    pq.write_table(table(1, m=twice), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=r"column 'm' is struct<.*> has no form as JSON; remove it from the source's"):
        rows_of(tmp_path)


@pytest.mark.parametrize("number", [2**53 + 1, 2**64 - 1, 2**64, -(2**63) - 1, 10**40 + 1, -(10**19)])
def test_whole_numbers_keep_their_digits(tmp_path, number):
    line = f'{{"id": {number}, "q": "q", "a": "a", "m": [{number}, 1e300, 0.00001, "e+", {{"x": {number}}}]}}'
    jsonl(tmp_path / "x.jsonl", line.encode() + b"\n", example(m=number))
    (first, second), bad = rows_of(tmp_path)
    assert bad == []
    assert first["source_example_id"] == str(number)
    assert first["meta_json"] == f'{{"m":[{number},1e+300,0.00001,"e+",{{"x":{number}}}]}}'
    assert second["meta_json"] == f'{{"m":{number}}}'


@pytest.mark.parametrize("name", ["id", "q", "a"])
def test_a_required_column_that_a_file_lacks_is_a_source_error(tmp_path, name):
    pq.write_table(table().drop_columns([name]), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=rf"x\.parquet lacks the columns \['{name}'\]; it has \["):
        rows_of(tmp_path)


def test_other_columns_may_be_absent(tmp_path):
    pq.write_table(table(1).drop_columns(["why", "task", "m"]), tmp_path / "x.parquet")
    (row,), _ = rows_of(tmp_path)
    assert (row["messages"], row["skill_bucket"], row["meta_json"]) == (asked("q0", "a0"), "B1", "{}")


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("q", pa.array([1, 2])),
        ("a", pa.array([["x"], ["y"]])),
        ("id", pa.array([0.5, 1.5])),
        ("lang", pa.array([True, False])),
    ],
)
def test_a_column_of_another_type_is_a_source_error(tmp_path, name, column):
    pq.write_table(table(2, **{name: column}), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=f"column '{name}' is .*, text is needed"):
        rows_of(tmp_path)


def test_parquet_without_rows(tmp_path):
    pq.write_table(table().slice(0, 0), tmp_path / "x.parquet")
    assert rows_of(tmp_path) == ([], [])


def test_a_damaged_row_group_is_a_source_error(tmp_path):
    pq.write_table(table(2000), tmp_path / "x.parquet", compression="zstd", use_dictionary=False)
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    data[10:2000] = b"\xff" * 1990
    (tmp_path / "x.parquet").write_bytes(data)
    with pytest.raises(SourceError, match=r"x\.parquet: row group 0 \(rows 0 to 1999\) cannot be read"):
        rows_of(tmp_path)


@pytest.mark.parametrize("name", ["q", "m"])
def test_columns_of_one_name_are_a_source_error(tmp_path, name):
    doubled = table(2)
    doubled = pa.Table.from_arrays([*doubled.columns, doubled[name]], names=[*doubled.column_names, name])
    pq.write_table(doubled, tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=rf"x\.parquet has several columns named \['{name}'\]"):
        rows_of(tmp_path)


def test_columns_of_one_name_that_are_not_read_do_no_harm(tmp_path):
    doubled = table(2)
    extra = pa.array([1, 2])
    pq.write_table(
        pa.Table.from_arrays([*doubled.columns, extra, extra], names=[*doubled.column_names, "else", "else"]),
        tmp_path / "x.parquet",
    )
    assert len(rows_of(tmp_path)[0]) == 2


@pytest.mark.parametrize(
    "kept",
    [
        pa.FixedSizeListArray.from_arrays(pa.array(range(6)), 2, mask=pa.array([False, True, False])),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), unchecked(b"ok", b"\xff")),
    ],
    ids=["a null of a fixed-size list", "a dictionary that is not UTF-8"],
)
def test_what_the_library_cannot_read_is_a_source_error(tmp_path, kept):
    """Limits of pyarrow: both files are written without complaint and cannot be read again."""
    pq.write_table(table(3, m=kept), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=r"x\.parquet: row group 0 \(rows 0 to 2\) cannot be read \(Arrow|\(OSError"):
        rows_of(tmp_path)


class KeysInClear(encryption.KmsClient):  # type: ignore[misc]  # it is Any to mypy
    """What stands for a key service: keys are packed as they are."""

    def wrap_key(self, key_bytes, master_key_identifier):
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key, master_key_identifier):
        return base64.b64decode(wrapped_key)


@pytest.mark.parametrize(
    ("plain", "told"),
    [(False, "is not a readable Parquet file"), (True, r"row group 0 \(rows 0 to 6\) cannot be read")],
)
def test_an_encrypted_file_is_a_source_error(tmp_path, plain, told):
    factory = encryption.CryptoFactory(lambda _: KeysInClear())
    settings = encryption.EncryptionConfiguration(
        footer_key="k", column_keys={"c": ["q"]}, plaintext_footer=plain, double_wrapping=False
    )
    keys = factory.file_encryption_properties(encryption.KmsConnectionConfig(), settings)
    with pq.ParquetWriter(tmp_path / "x.parquet", table().schema, encryption_properties=keys) as writer:
        writer.write_table(table())
    with pytest.raises(SourceError, match=rf"x\.parquet:? {told} \(.*crypt"):
        rows_of(tmp_path)
