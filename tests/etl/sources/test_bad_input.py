"""Text that other readers stumble over, in every format, and what is no row: by whole runs of ingest.

What can be read is kept to the byte, what cannot is in quarantine with its place and reason, and the account adds up.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import tracemalloc
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from etl.errors import SourceError
from etl.sources.row_groups import Limits
from etl.sources.spec import Description
from tests.etl.sources.toyingest import CHAT, COLUMNS, ingest
from tests.etl.sources.toysources import rows_of

SHAPE = Description.model_validate({"skill_bucket": "chat", **COLUMNS}).root


def json_lines(rows) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def json_array(rows) -> bytes:
    return json.dumps(rows, ensure_ascii=False).encode()


def pretty_json(rows) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=2).encode()


def ascii_lines(rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def delimited(rows, sign=",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=sign)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def tabs(rows) -> bytes:
    return delimited(rows, "\t")


def arrow(rows) -> bytes:
    table = pa.Table.from_pylist(rows)
    out = pa.BufferOutputStream()
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue().to_pybytes()


def parquet(rows) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue().to_pybytes()


FORMATS = {
    "lines.jsonl": json_lines,
    "ascii.jsonl": ascii_lines,
    "array.json": json_array,
    "pretty.json": pretty_json,
    "commas.csv": delimited,
    "tabs.tsv": tabs,
    "file.arrow": arrow,
    "file.parquet": parquet,
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstd.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
PACKED = {
    "lines.jsonl.gz": json_lines,
    "array.json.zst": json_array,
    "commas.csv.bz2": delimited,
    "file.arrow.xz": arrow,
}


def packed(name: str, data: bytes) -> bytes:
    suffix = "." + name.rpartition(".")[2]
    return PACKERS[suffix](data) if suffix in PACKERS else data


def write_all(folder, rows, formats=FORMATS):
    """The rows as one file of each format, each of which is a source."""
    for name, write in formats.items():
        (folder / name).write_bytes(packed(name, write(rows)))
    return {name: folder / name for name in formats}


# --- what is text is kept as it is ------------------------------------------------------------------------------------

TEXTS = (
    "line \u2028 paragraph \u2029 next line \x85 tab \x0b page \x0c file \x1c group \x1d record \x1e unit \x1f",
    "nul \0 in the middle",
    "\0",
    "every control sign " + "".join(map(chr, range(1, 32))) + "\x7f",
    'quotes " and "" and \\" and \\\\, commas; tabs\t',
    "one\ntwo\r\nthree\rfour\n\nfive",
    " white space round it \t",
    "\ufeffa mark, \ufffd, \uffff and \U0010ffff",
    "composed \u00e9, decomposed e\u0301, 日本語, 𝄞, 👩‍👩‍👧",
    "NaN",
    "null",
    '{"a": [1, "}"]}',
    "<|start|>assistant<|end|>",
    "-",
)
ROWS = [{"q": text, "a": f"{number}: {text}", "m": text} for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    return ingest(folder, write_all(folder, ROWS, FORMATS | PACKED), COLUMNS)


@pytest.mark.parametrize("name", [*FORMATS, *PACKED])
def test_text_is_kept_to_the_byte(written, name):
    """Through the file that ingest writes: also zeros, line ends of every kind, and what looks like something else."""
    found = written[name]
    assert found.said == [(row["q"], row["a"]) for row in ROWS]
    assert [json.loads(row["meta_json"]) for row in found.rows] == [{"m": row["m"]} for row in ROWS]
    assert found.bad == []


def test_a_position_leads_back_to_the_row(written, tmp_path):
    files = write_all(tmp_path, ROWS)
    for name in ("lines.jsonl", "array.json", "pretty.json"):
        data = files[name].read_bytes()
        for row in written[name].rows:
            found, _ = json.JSONDecoder().raw_decode(data[row["position"] :].decode())
            assert found["q"] == row["messages"][0]["content"]
    for name in ("commas.csv", "tabs.tsv", "file.arrow", "file.parquet"):
        assert [row["position"] for row in written[name].rows] == list(range(len(ROWS)))


# --- what is no row ---------------------------------------------------------------------------------------------------

GOOD = b'{"q": "hi", "a": "yo", "m": 1}'
BAD = (
    (b'{"q": "\\ud800", "a": "x"}', "invalid_json"),
    (b'{"q": "\\udc00\\ud800", "a": "x"}', "invalid_json"),
    (b'{"q": "x", "a": "y", "unread": "\\ud83d"}', "invalid_json"),
    (b'{"q": "\xed\xa0\x80", "a": "a half of a pair, as bytes"}', "invalid_json"),
    (b'{"q": "caf\xe9", "a": "Latin-1"}', "invalid_json"),
    (b'{"q": "\xc0\x80", "a": "a zero, as Java writes it"}', "invalid_json"),
    (b'{"q": "a \0 as it is", "a": "x"}', "invalid_json"),
    (b'{"q": "a line\nthat ends", "a": "x"}', "invalid_json"),
    (b'{"q": "x", "a": "y", "m": NaN}', "invalid_json"),
    (b'{"q": "x", "a": "y", "m": [1, -Infinity]}', "invalid_json"),
    (b'{"q": "x", "a": "y", "unread": Infinity}', "invalid_json"),
    (b'{"q": "x", "a": "y", "m": 1e400}', "invalid_json"),
    (b'{"q": "x", "a": "y", "m": ' + b"9" * 5000 + b"}", "invalid_json"),
    (b'{"q": "x", "a": "y",}', "invalid_json"),
    (b"{'q': 'x', 'a': 'y'}", "invalid_json"),
    (b'{"q": "x", "a": "y", "unread": ' + b"[" * 3000 + b"]" * 3000 + b"}", "invalid_json"),
    (b'{"q": "x", "a": "y", "m": ' + b"[" * 400 + b"]" * 400 + b"}", "too_deep"),
    (b"7", "not_an_object"),
    (b"null", "not_an_object"),
    (b'"text"', "not_an_object"),
    (b'[{"q": "x", "a": "y"}]', "not_an_object"),
    (b"{}", "missing_q"),
    (b'{"q": null, "a": "y"}', "missing_q"),
    (b'{"q": "x"}', "missing_a"),
    (b'{"q": 7, "a": "y"}', "wrong_type"),
    (b'{"q": ["x"], "a": "y"}', "wrong_type"),
)
ONLY_IN_LINES = (
    (b'{"q": "x", "a": "y"', "invalid_json"),
    (b'{"q": "x', "invalid_json"),
    (GOOD + GOOD, "invalid_json"),
    (GOOD + b" and more", "invalid_json"),
    (b"// a comment", "invalid_json"),
    (b"\x1e" + GOOD, "invalid_json"),
    (b"\0" * 30, "invalid_json"),
)
ONLY_OVER_LINES = ((b'{\n "q": "x",\n "a": NaN\n}', "invalid_json"), (b'{\n "q": "x"\n}', "missing_a"))


def layouts():
    """Name of a file -> the text around its values, and the values that are no rows."""
    one_a_line = [bad for bad in BAD if b"\n" not in bad[0]]
    pretty = json.dumps(json.loads(GOOD), indent=1).encode()
    return {
        "lines.jsonl": (GOOD, b"", b"\n", b"\n", [*one_a_line, *ONLY_IN_LINES]),
        "lines.jsonl.gz": (GOOD, b"", b"\r\n", b"", [*one_a_line, *ONLY_IN_LINES]),
        "array.json": (GOOD, b"[", b",", b"]", [*BAD, *ONLY_OVER_LINES]),
        "lines_of_an_array.json": (GOOD, b"[\n  ", b",\n  ", b"\n]\n", [*BAD, *ONLY_OVER_LINES]),
        "pretty.json.xz": (pretty, b"", b"\n", b"\n", [*BAD, *ONLY_OVER_LINES]),
    }


@pytest.fixture(scope="module")
def malformed(tmp_path_factory):
    """Of each layout what ingest made of it, and the place, text and reason of each bad row."""
    folder = tmp_path_factory.mktemp("malformed")
    expected = {}
    for name, (good, begin, between, end, bad) in layouts().items():
        data, places = begin + good, []
        for text, reason in bad:
            places.append((len(data) + len(between), text, reason))
            data += between + text + between + good
        (folder / name).write_bytes(packed(name, data + end))
        expected[name] = places
    found = ingest(folder, {name: folder / name for name in expected}, COLUMNS)
    return {name: (found[name], places) for name, places in expected.items()}


@pytest.mark.parametrize("layout", layouts())
def test_json_that_is_no_row_is_in_quarantine_as_it_was(malformed, layout):
    found, places = malformed[layout]
    assert [(row["position"], row["raw"].rstrip(b"\r"), row["reason"]) for row in found.bad] == places
    assert found.said == [("hi", "yo")] * (len(places) + 1)


def test_the_quarantine_says_what_is_no_number(malformed):
    details = [row["detail"] for row in malformed["lines.jsonl"][0].bad if b"NaN" in row["raw"] or b"Inf" in row["raw"]]
    assert [text.split(":")[0] for text in details] == [
        "NaN is no JSON, write null", "-Infinity is no JSON, write null", "Infinity is no JSON, write null",
    ]  # fmt: skip


@pytest.mark.parametrize("sign", [",", "\t", ";"], ids=["csv", "tsv", "semicolons"])
def test_delimited_text_that_is_no_row_is_in_quarantine_as_it_was(tmp_path, sign):
    good = "hi,yo,1\r\n"
    bad = (
        ("one,two\r\n", "wrong_number_of_values", b'["one","two"]'),
        ("one,two,three,four\r\n", "wrong_number_of_values", b'["one","two","three","four"]'),
        ('"a"b,c,d\r\n', "invalid_csv", b'"a"b,c,d'),
        ('"two\r\nlines"x,c,d\r\n', "invalid_csv", b'"two\r\nlines"x,c,d'),
        ("caf\udce9,b,1\r\n", "invalid_utf8", b"caf\xe9"),
        ('"\udced\udca0\udc80",b,1\r\n', "invalid_utf8", b"\xed\xa0\x80"),
        ("x" * 3000 + ",b,1\r\n", "too_long", b"x" * 3000 + b",b,1"),
        ('"' + "x\r\n" * 1000 + ' ""quoted""",b,1\r\n', "too_long", None),
    )
    text = "q,a,m\r\n" + good + "".join(line + good for line, *_ in bad)
    data = text.replace(",", sign).encode("utf-8", "surrogateescape")
    name = "x.tsv" if sign == "\t" else "x.csv"
    (tmp_path / name).write_bytes(data)
    found = ingest(tmp_path, {"x": tmp_path / name}, COLUMNS, max_row_bytes=2000)["x"]
    assert found.reasons == [(2 * number + 1, reason) for number, (_, reason, _) in enumerate(bad)]
    for row, (_, reason, expected) in zip(found.bad, bad, strict=True):
        if reason != "wrong_number_of_values" and expected is not None:
            expected = expected.replace(b",", sign.encode())
        assert expected in (None, row["raw"])
    assert found.said == [("hi", "yo")] * (len(bad) + 1)


def test_numbers_that_json_does_not_know_are_null_in_meta(tmp_path):
    rows = [{"q": "x", "a": "y", "m": {"one": value, "all": [1.5, value]}} for value in (float("nan"), float("-inf"))]
    paths = write_all(tmp_path, rows, {"x.parquet": parquet, "x.arrow": arrow})
    for found in ingest(tmp_path, paths, COLUMNS).values():
        assert [row["meta_json"] for row in found.rows] == ['{"m":{"one":null,"all":[1.5,null]}}'] * 2


def test_of_a_key_that_stands_twice_the_last_value_counts(tmp_path):
    """In a batch without a bad row, beside one, in an array, in what is kept and in a number beyond 64 bits."""
    twice = b'{"q": "first", "a": "x", "m": {"k": 1, "k": 2}, "q": "last", "m": {"k": 3, "k": 18446744073709551616}}'
    files = {"alone.jsonl": twice, "beside.jsonl": twice + b"\nbad", "array.json": b"[" + twice + b"]"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for found in ingest(tmp_path, {name: tmp_path / name for name in files}, COLUMNS).values():
        assert found.said == [("last", "x")]
        assert [row["meta_json"] for row in found.rows] == ['{"m":{"k":18446744073709551616}}']


def test_odd_keys_and_enormous_numbers_are_kept(tmp_path):
    m = {"": 1, "a.b": 2, "é ☃": 3, "\0": 4, "big": -(10**40), "small": 5e-324, "text": "😀"}
    row = {"q": "x", "a": "y", "m": m, "": 7, "m.é": 8, "q.q": "no"}
    paths = write_all(tmp_path, [row], {"x.jsonl": ascii_lines, "y.json": pretty_json, "z.jsonl.gz": ascii_lines})
    for found in ingest(tmp_path, paths, COLUMNS).values():
        assert found.said == [("x", "y")]
        assert json.loads(found.rows[0]["meta_json"]) == {"m": m}


# --- line ends, marks and encodings -----------------------------------------------------------------------------------

LINE_ENDS = {"lf": "\n", "crlf": "\r\n", "cr": "\r", "blank": "\n \r\n\t\n\n", "crcrlf": "\r\r\n"}


@pytest.mark.parametrize("is_ended", [True, False])
@pytest.mark.parametrize("end", LINE_ENDS)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_marks(tmp_path, end, is_ended, mark):
    sign = LINE_ENDS[end]
    texts = {
        "x.jsonl": [GOOD.decode()] * 3,
        "y.json": ["[", GOOD.decode() + ",", GOOD.decode() + ",", GOOD.decode(), "]"],
        "z.json": json.dumps(json.loads(GOOD), indent=2).split("\n") * 3,
        "x.csv": ["q,a,m", *["hi,yo,1"] * 3],
    }
    for name, lines in texts.items():
        if name == "x.csv" and end == "blank":
            sign = "\n\r\n\n"
        (tmp_path / name).write_bytes((mark + sign.join(lines) + sign * is_ended).encode())
        good, bad = rows_of(tmp_path / name, SHAPE)
        assert [row["messages"][0]["content"] for row in good] == ["hi"] * 3, name
        assert bad == []


def test_mixed_line_ends(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(GOOD + b"\r\n" + GOOD + b"\n\r\n" + GOOD + b"\r\r\n" + GOOD)
    (tmp_path / "x.csv").write_bytes(b"q,a,m\r\nhi,yo,1\nhi,yo,1\r" + b"hi,yo,1\n\r\nhi,yo,1")
    found = ingest(tmp_path, {name: tmp_path / name for name in ("x.jsonl", "x.csv")}, COLUMNS)
    assert [one.said for one in found.values()] == [[("hi", "yo")] * 4] * 2


WIDE = [f"utf-{bits}{order}" for bits in (16, 32) for order in ("", "-le", "-be")]


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.tsv", "x.jsonl.gz"])
def test_other_encodings_are_named(tmp_path, name, encoding):
    text = FORMATS["commas.csv" if "sv" in name else "array.json" if name == "x.json" else "lines.jsonl"](ROWS[9:])
    (tmp_path / name).write_bytes(packed(name, text.decode().encode(encoding)))
    with pytest.raises(SourceError, match=rf"{name} is {encoding[:6].upper()}; convert it to UTF-8"):
        rows_of(tmp_path / name, SHAPE)


# --- files without rows -----------------------------------------------------------------------------------------------

EMPTY = {
    "empty.jsonl": b"",
    "blank.jsonl": b"\n \n\r\n\t\n",
    "mark.jsonl": b"\xef\xbb\xbf",
    "array.json": b"[]",
    "open.json": b"[\n]\n",
    "marked.json": b"\xef\xbb\xbf[ ]",
    "empty.json": b"",
    "empty.csv": b"",
    "blank.csv": b"\r\n\n",
    "header.csv": b"q,a,m\n",
    "header.tsv": b"q\ta\tm",
    "mark.csv": b"\xef\xbb\xbf",
    "empty.jsonl.gz": gzip.compress(b""),
    "empty.csv.zst": zstd.compress(b""),
}
SCHEMA = pa.schema([("q", pa.string()), ("a", pa.string())])


def test_empty_files_among_full_ones(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in EMPTY.items():
        (folder / name).write_bytes(data)
    (folder / "rows.parquet").write_bytes(parquet([{"q": "hi", "a": "yo"}]))
    (folder / "rows.csv").write_bytes(b"q,a\nhi,yo\n")
    pq.write_table(SCHEMA.empty_table(), folder / "no_rows.parquet")
    pq.ParquetWriter(folder / "no_row_groups.parquet", SCHEMA).close()
    with pa.OSFile(str(folder / "no_batches.arrow"), "wb") as out, pa.ipc.new_file(out, SCHEMA):
        pass
    found = ingest(tmp_path, {"x": folder}, COLUMNS)["x"]
    assert found.said == [("hi", "yo")] * 2
    assert found.bad == []


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_file_alone_has_no_rows(tmp_path, name):
    (tmp_path / name).write_bytes(EMPTY[name])
    assert rows_of(tmp_path / name, SHAPE) == ([], [])


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "x.jsonl.gz", "x.csv.zst", "x.json.xz", "x.jsonl.bz2"])
def test_a_file_of_no_bytes_is_an_error_where_the_format_has_some(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError, match=name):
        rows_of(tmp_path / name, SHAPE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" + GOOD + b"] and more", "continues after the end of its array, at byte 33"),
        (b"[" + GOOD + b"] [1]", "continues after the end of its array, at byte 33"),
        (b"[" + GOOD + b',{"q": "x', "is truncated"),
        (b"[\n" + GOOD + b",\n", "is truncated"),
    ],
)
def test_an_array_that_does_not_end_where_its_file_does_is_an_error(tmp_path, data, message):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(SourceError, match=message):
        rows_of(tmp_path / "x.json", SHAPE)


# --- rows of many bytes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FORMATS, *PACKED])
def test_a_row_above_the_limit_is_in_quarantine_and_those_beside_it_are_read(tmp_path, name):
    rows = [{"q": "hi", "a": text, "m": "1"} for text in ("yo", "x" * 1800, "ä" * 1100, "yo")]
    (tmp_path / name).write_bytes(packed(name, {**FORMATS, **PACKED}[name](rows)))
    found = ingest(tmp_path, {"x": tmp_path / name}, COLUMNS, max_row_bytes=2000)["x"]
    assert found.said == [("hi", row["a"]) for row in rows if "ä" not in row["a"]]
    (bad,) = found.bad
    assert bad["reason"] == "too_long"
    assert "above max_row_bytes=2000" in bad["detail"]
    assert len(bad["raw"]) > 1900


@pytest.mark.parametrize("name", ["lines.jsonl", "array.json", "commas.csv", "file.parquet"])
def test_a_row_of_50_megabytes_is_read(tmp_path, name):
    rows = [{"q": "hi", "a": text} for text in ("yo", "so long " * 6_250_000, "yo")]
    (tmp_path / name).write_bytes(FORMATS[name](rows))
    good, bad = rows_of(tmp_path / name, SHAPE)
    assert [row["messages"][1]["content"] == said["a"] for row, said in zip(good, rows, strict=True)] == [True] * 3
    assert bad == []


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.csv.gz"])
def test_what_is_held_of_a_row_above_the_limit_is_bounded(tmp_path, name):
    long = {"q": "hi", "a": ("so long " * 5_000 + "\n") * 1000}
    write = json_array if name == "x.json" else json_lines if name == "x.jsonl" else delimited
    (tmp_path / name).write_bytes(packed(name, write([{"q": "hi", "a": "yo"}, long])))
    tracemalloc.start()
    good, bad = rows_of(tmp_path / name, SHAPE, limits=Limits(row_bytes=100_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(good), [reason for _, reason in bad]) == (1, ["too_long"])
    assert peak < 16_000_000


def test_messages_of_many_bytes(tmp_path):
    """The limit counts what is nested, too."""
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x" * 1000}]
    rows = [{"messages": said}, {"messages": said * 4}]
    formats = {"x.jsonl": json_lines, "x.json": pretty_json, "x.arrow": arrow, "x.parquet": parquet}
    for found in ingest(tmp_path, write_all(tmp_path, rows, formats), CHAT, max_row_bytes=2000).values():
        assert (len(found.rows), [row["reason"] for row in found.bad]) == (1, ["too_long"])
