"""Benchmarks as files: which are found, what is read of a row, and the error for each mistake."""

import bz2
import gzip
import lzma

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from pydantic import ValidationError

from etl.errors import ConfigError, SourceError
from etl.filters.benchmarks import Benchmark, benchmark_files, read_items

COLUMNS = {"question_columns": "q", "answer_columns": "a"}


def items_of(benchmark, name="toy"):
    return list(read_items(name, benchmark, benchmark_files(name, benchmark)))


def test_one_path_or_column_is_a_list_of_one_and_a_path_decides_nothing():
    one = Benchmark(path="a.jsonl", question_columns="q", answer_columns="a")
    assert one == Benchmark(path=["a.jsonl"], question_columns=["q"], answer_columns=["a"])
    assert one.fingerprinted() == {"question_columns": ["q"], "answer_columns": ["a"]}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"path": []}, "at least 1"),
        ({"question_columns": []}, "at least 1"),
        ({"path": "s3://key:secret@bucket/a.jsonl"}, "a s3:// URL contains credentials"),
    ],
)
def test_a_benchmark_that_names_nothing_or_a_secret_is_refused(fields, told):
    with pytest.raises(ValidationError, match=told) as raised:
        Benchmark.model_validate({"path": "a.jsonl", "question_columns": "q"} | fields)
    assert "secret" not in raised.value.errors()[0]["msg"]


def test_files_of_all_paths_are_read_once_in_the_order_of_their_names(tmp_path):
    """A folder with what is below it; hidden files and other formats are passed over; positions count on."""
    for name in ("b.jsonl", "a/c.ndjson", "_d.jsonl", ".e.jsonl", "notes.doc"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(orjson.dumps({"q": name}) + b"\n\n" + orjson.dumps({"q": f"{name} again"}))
    paths = [str(tmp_path), str(tmp_path / "*.jsonl"), str(tmp_path / "b.jsonl")]
    benchmark = Benchmark(path=paths, question_columns="q")
    assert benchmark_files("toy", benchmark) == [tmp_path / "a" / "c.ndjson", tmp_path / "b.jsonl"]
    assert items_of(benchmark) == [
        ("0", "a/c.ndjson", ""), ("1", "a/c.ndjson again", ""), ("2", "b.jsonl", ""), ("3", "b.jsonl again", ""),
    ]  # fmt: skip


def test_links_and_endings_are_those_of_sources(tmp_path):
    """As a hub's cache has them: names that are links to blobs; any letter case; what is not read is not in the way."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    folder.mkdir()
    (blobs / "0a1b").write_bytes(orjson.dumps({"q": "linked?"}))
    (folder / "a.jsonl").symlink_to(blobs / "0a1b")
    (folder / "B.JSONL.GZ").write_bytes(gzip.compress(orjson.dumps({"q": "loud?"})))
    (folder / "readme.md").write_text("x")
    for path in (folder, folder / "*"):
        files = benchmark_files("toy", Benchmark(path=str(path), question_columns="q"))
        assert files == [folder / "B.JSONL.GZ", folder / "a.jsonl"]
    assert [q for _, q, _ in items_of(Benchmark(path=str(folder), question_columns="q"))] == ["loud?", "linked?"]
    (folder / "a.jsonl").unlink()
    (folder / "B.JSONL.GZ").unlink()
    with pytest.raises(ConfigError, match=r"toy\.path: no file .*1 skipped \(unknown ending\): readme\.md"):
        benchmark_files("toy", Benchmark(path=str(folder), question_columns="q"))
    (folder / "a.jsonl").symlink_to(blobs / "gone")
    with pytest.raises(SourceError, match=r"toy\.path: .*a\.jsonl is a link to .*gone"):
        benchmark_files("toy", Benchmark(path=str(folder), question_columns="q"))


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd.compress)],
)
def test_a_byte_order_mark_is_no_text_however_the_file_is_packed(tmp_path, suffix, pack):
    path = tmp_path / f"t.jsonl{suffix}"
    path.write_bytes(pack(b"\xef\xbb\xbf" + orjson.dumps({"q": "größer?"}) + b"\r\n"))
    assert items_of(Benchmark(path=str(path), question_columns="q")) == [("0", "größer?", "")]


def test_a_file_of_a_package_is_found_without_a_glob(tmp_path, monkeypatch):
    package = tmp_path / "toy_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError")
    (package / "t.jsonl").write_bytes(orjson.dumps({"q": "why?"}))
    monkeypatch.syspath_prepend(tmp_path)
    benchmark = Benchmark(path="package:toy_package/t.jsonl", question_columns="q")
    assert benchmark_files("toy", benchmark) == [package / "t.jsonl"]


def test_a_column_whose_name_has_a_dot_goes_before_a_path(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [{"a.b": "itself", "a": {"b": "within"}}, {"a": {"b": ["one", None, 2.5, ["three"]]}}, {"a": "flat"}]
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    questions = [question for _, question, _ in items_of(Benchmark(path=str(path), question_columns="a.b"))]
    assert questions == ["itself", "one\n2.5\nthree", ""]


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.json.zst", "t.json", "t.parquet", "*.parquet", ""])
def test_formats_folders_and_nested_columns(tmp_path, name):
    rows = [{"id": 7, "doc": {"q": ["Which of these", "is a prime number"], "n": 1}, "extra": None}]
    rows.append({"id": None, "doc": {"q": None, "n": 2}, "extra": "and a tail"})
    lines = b"\n".join(map(orjson.dumps, rows))
    folder = tmp_path / "in"
    folder.mkdir()
    if name.endswith(".gz"):
        (folder / name).write_bytes(gzip.compress(lines))
    elif name.endswith(".zst"):
        (folder / name).write_bytes(zstd.compress(lines))
    elif name.endswith(".json"):
        (folder / name).write_bytes(orjson.dumps(rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
        (folder / "_notes.json").write_text("x")
    benchmark = Benchmark(
        path=str(folder / name), question_columns=("doc.q", "extra"), answer_columns="doc.n", id_column="id"
    )
    assert items_of(benchmark) == [
        ("7", "Which of these\nis a prime number", "1"),
        ("1", "and a tail", "2"),
    ]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/no/such.jsonl", r"benchmarks\.toy\.path: .*/no/such\.jsonl; correct the name"),
        ("/no/such*.jsonl", r"benchmarks\.toy\.path: no file .* matches /no/such\*"),
        ("/etc/hostname", r"benchmarks\.toy\.path: /etc/hostname is neither Parquet nor JSON"),
        ("s3x://a/b.jsonl", r"benchmarks\.toy\.path: .*s3x"),
    ],
)
def test_a_path_with_nothing_to_read_is_told(path, told):
    with pytest.raises(ConfigError, match=told):
        benchmark_files("toy", Benchmark(path=path, **COLUMNS))


@pytest.mark.parametrize(
    ("change", "content", "error", "told"),
    [
        (
            {"question_columns": "qq"}, '{"q": "x", "a": "1"}', ConfigError,
            r"toy: no row has the column 'qq'; .* has \['a', 'q'\]",
        ),
        ({"id_column": "a.b"}, '{"q": "x", "a": "1"}', ConfigError, r"toy: no row has the column 'a\.b'"),
        ({}, "", ConfigError, r"toy: .*toy\.jsonl holds no text in \['q'\] \(0 rows\)"),
        ({}, '{"q": " ", "a": "1"}', ConfigError, r"holds no text in \['q'\] \(1 rows\)"),
        ({}, '{"q": {"deep": 1}, "a": "1"}', ConfigError, r"column 'q' holds a dict, .*'q\.text'"),
        ({}, '["x"]', ConfigError, r"row 0 of .*toy\.jsonl is a str; a row must be an object"),
        ({}, '{"q": ', SourceError, r"toy\.jsonl cannot be read \(JSONDecodeError: .*\); replace or remove it"),
    ],
)  # fmt: skip
def test_a_file_without_items_is_told(tmp_path, change, content, error, told):
    path = tmp_path / "toy.jsonl"
    path.write_text(content)
    with pytest.raises(error, match=told):
        items_of(Benchmark.model_validate({"path": str(path)} | COLUMNS | change))


@pytest.mark.parametrize("name", ["bad.parquet", "bad.jsonl.gz", "bad.jsonl.bz2", "bad.jsonl.xz", "bad.jsonl.zst"])
def test_a_damaged_file_is_told(tmp_path, name):
    (tmp_path / name).write_bytes(b"not this")
    with pytest.raises(SourceError, match=rf"benchmarks\.toy: .*{name} cannot be read"):
        items_of(Benchmark(path=str(tmp_path / name), question_columns="q"))


@pytest.mark.parametrize("at", [2, 20, 60, 61, -8, -1])
def test_a_file_that_is_cut_or_has_another_byte_is_told(tmp_path, at):
    lines = b"".join(orjson.dumps({"q": f"What is {n} times {n * n}?"}) + b"\n" for n in range(400))
    packed = gzip.compress(lines, mtime=0)
    for data in (packed[:at], packed[:at] + bytes([packed[at] ^ 0xFF]) + packed[at:][1:]):
        (tmp_path / "t.jsonl.gz").write_bytes(data)
        with pytest.raises(SourceError, match=r"benchmarks\.toy: .*t\.jsonl\.gz cannot be read"):
            items_of(Benchmark(path=str(tmp_path / "t.jsonl.gz"), question_columns="q"))
