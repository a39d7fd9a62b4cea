"""Raw rows to PROMPT: the same rows however a file is cut, and every bad row with its place and reason."""

import bz2
import gzip
import json
import lzma
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.errors import SourceError
from etl.sources import prompts, raw
from etl.sources.files import cut, list_files
from etl.sources.formats import jsonl as jsonl_format
from etl.sources.read import read_split
from etl.sources.row_groups import Limits
from etl.sources.shapes.columns import ColumnsShape
from etl.sources.spec import Source
from tests.etl.rows import asked
from tests.etl.sources.toysources import SHAPE, documents, example, jsonl, rows_of, table, without_places

# --- what a row becomes ----------------------------------------------------------------------------------------------


def test_columns_of_a_row(tmp_path):
    full = example(1, why="since", lang="de", task="sum", m={"x": [1, None]}, unknown=5)
    jsonl(tmp_path / "x.jsonl", full, example(2, why="", task="else"))
    (one, two), bad = rows_of(tmp_path)
    assert bad == []
    assert one == {
        "id": one["id"],
        "source_dataset": "toy",
        "source_subset": None,
        "source_example_id": "e1",
        "license": None,
        "language": "de",
        "split_key": one["id"].hex(),
        "messages": asked("q1", "a1", "since"),
        "skill_bucket": "B2",
        "meta_json": '{"m":{"x":[1,null]},"task":"sum"}',
        "file": "x.jsonl",
        "position": 0,
        **dict.fromkeys(("tools", "conversation_id", "expected_completion_tokens", "bucket_rule", "verdict")),
    }
    assert (two["file"], two["position"]) == ("x.jsonl", len(json.dumps(full)) + 1)
    assert two["messages"] == asked("q2", "a2")
    assert (two["skill_bucket"], two["meta_json"]) == ("B1", '{"task":"else"}')


def test_columns_that_a_shape_can_name(tmp_path):
    shape = SHAPE.model_copy(update={"subset": "part", "license": "rights", "split_key": "tree", "meta": ()})
    jsonl(tmp_path / "x.jsonl", example(1, part="main", rights="CC0", tree="t9"), example(2))
    (one, two), _ = rows_of(tmp_path, shape)
    assert (one["source_subset"], one["license"], one["split_key"], one["meta_json"]) == ("main", "CC0", "t9", "{}")
    assert (two["source_subset"], two["license"], two["split_key"]) == (None, None, two["id"].hex())


def only_id(tmp_path, row, shape=SHAPE, name="toy"):
    jsonl(tmp_path / "one.jsonl", row)
    (got,), _ = rows_of(tmp_path / "one.jsonl", shape, name=name)
    return got["id"]


def test_the_id_is_of_source_subset_example_and_messages_alone(tmp_path):
    shape = SHAPE.model_copy(update={"subset": "part", "license": "rights", "split_key": "tree"})
    base = example(1, part="main", why="so")
    first = only_id(tmp_path, base, shape)
    for same in ({"lang": "fr"}, {"rights": "MIT"}, {"tree": "t"}, {"task": "code"}, {"m": 1}, {"other": 1}):
        assert only_id(tmp_path, base | same, shape) == first
    jsonl(tmp_path / "far.jsonl", b"\n", example(0), base)
    assert rows_of(tmp_path / "far.jsonl", shape, 7)[0][1]["id"] == first
    others = [{"part": "dev"}, {"part": None}, {"id": "e2"}, {"q": "Q"}, {"a": "A"}, {"why": "no"}, {"why": ""}]
    ids = {only_id(tmp_path, base | other, shape) for other in others} | {only_id(tmp_path, base, shape, "else")}
    assert len(ids) == len(others) + 1
    assert first not in ids


def test_text_that_moves_between_columns_is_another_row(tmp_path):
    assert only_id(tmp_path, example(q="ab", a="c")) != only_id(tmp_path, example(q="a", a="bc"))


# --- JSONL -----------------------------------------------------------------------------------------------------------

GOOD_LINES = st.builds(
    lambda n, text: json.dumps(example(n, q=text), ensure_ascii=False).encode(),
    st.integers(0, 99),
    st.text(st.sampled_from('a é\u2028\u2029\u0085\x1c\x0c\r\n"\\𝄞'), max_size=8),
)
BAD_LINES = st.sampled_from(
    [b"{", b"[1]", b"null", b'"x"', b'{"id": 1', b"\xff\xfe", b'{"q": "\xff"}', b"{}\x00", b"\xef\xbb\xbf{}"]
)
BLANK_LINES = st.sampled_from([b"", b" ", b"\t", b"\x0b\x0c"])
LINES = st.lists(
    st.tuples(st.one_of(GOOD_LINES, GOOD_LINES, BAD_LINES, BLANK_LINES), st.sampled_from([b"\n", b"\r\n"])), max_size=12
)


def lines_by_hand(data: bytes) -> tuple[list[tuple[int, dict]], list[int]]:
    """(offset, row) of the lines that hold a whole row and the offsets of the others, by bytes.split and json."""
    good, bad, offset = [], [], 0
    for line in data.split(b"\n"):
        text = line.removeprefix(b"\xef\xbb\xbf") if offset == 0 else line
        if text.strip():
            try:
                row = json.loads(text.decode("utf-8"))
                assert set(row) == {"id", "q", "a"}
                good.append((offset, row))
            except (ValueError, AssertionError, TypeError):
                bad.append(offset)
        offset += len(line) + 1
    return good, bad


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("jsonl")


@given(lines=LINES, bom=st.booleans(), ended=st.booleans(), split_bytes=st.integers(1, 400))
def test_any_cut_gives_the_same_rows(scratch, lines, bom, ended, split_bytes):
    data = (b"\xef\xbb\xbf" if bom else b"") + b"".join(line + end for line, end in lines)
    data = data if ended or not lines else data.removesuffix(lines[-1][1])
    (scratch / "x.jsonl").write_bytes(data)
    rows, bad = rows_of(scratch / "x.jsonl")
    good_by_hand, bad_by_hand = lines_by_hand(data)
    assert [(row["source_example_id"], row["messages"][0]["content"]) for row in rows] == [
        (row["id"], row["q"]) for _, row in good_by_hand
    ]
    assert [position for position, _ in bad] == bad_by_hand
    assert rows_of(scratch / "x.jsonl", split_bytes=split_bytes) == (rows, bad)


def test_positions_are_the_byte_offsets_of_the_lines(tmp_path, monkeypatch):
    jsonl(tmp_path / "x.jsonl", b"\xef\xbb\xbf{\r\n", b"\r\n", b"[]\n", b"\n", b"{}\n", example(), b"oops")
    size = len(json.dumps(example())) + 1
    expected = [(0, "invalid_json"), (8, "not_an_object"), (12, "missing_id"), (15 + size, "invalid_json")]
    assert rows_of(tmp_path)[1] == expected
    monkeypatch.setattr(raw, "ROW_GROUP_BYTES", 1)
    assert rows_of(tmp_path, split_bytes=4)[1] == expected


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b"{'id': 1}", "invalid_json", "unexpected character"),
        (b'{"id": "\xc3\x28"}', "invalid_json", "UTF-8"),
        (b'{"id": "\\ud800"}', "invalid_json", "surrogate"),
        (b'{"id": NaN}', "invalid_json", ""),
        (b"[" * 5000, "invalid_json", ""),
        (b"[]", "not_an_object", "a list"),
        (b"7", "not_an_object", "a int"),
        (json.dumps(example(a=None)).encode(), "missing_a", "null or absent"),
        (b'{"id": "e", "a": "x"}', "missing_q", "null or absent"),
        (json.dumps(example(a=["x"])).encode(), "wrong_type", "column 'a' is a list, text is needed"),
        (json.dumps(example(a=5)).encode(), "wrong_type", "column 'a' is a int, text is needed"),
        (json.dumps(example(id=True)).encode(), "wrong_type", "column 'id' is a bool"),
        (json.dumps(example(id=1.5)).encode(), "wrong_type", "column 'id' is a float"),
        (json.dumps(example(lang={})).encode(), "wrong_type", "column 'lang' is a dict"),
    ],
)
def test_a_bad_line_says_why_and_what_stood_there(tmp_path, line, reason, detail):
    jsonl(tmp_path / "x.jsonl", example(1), line + b"\n", example(2))
    source = Source(spec="toy", path=str(tmp_path))
    (split,) = cut("toy", source, list_files("toy", source, {}), 1 << 30, {})
    ((batch, (bad,)),) = read_split(source, SHAPE, split, {}, Limits())
    assert batch.column("source_example_id").to_pylist() == ["e1", "e2"]
    assert (bad.position, bad.reason) == (len(json.dumps(example(1))) + 1, reason)
    assert detail in bad.detail
    assert bad.raw == line


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (BOM + b'{"id": "e7", "a": "x"}\r', "e7"),
        (b'  {"a": "x", "id": 12, "q": ["x"]} ', "12"),
        (b'{"id": 36893488147419103232, "q": "x"}', "36893488147419103232"),
        (b'{"id": "e7", "q": "x", "a": "\xff"}', None),
        (b'{"id": ["e7"], "q": "x", "a": "y"}', None),
        (b'["e7"]', None),
        (b'{"id": "e7", "a": "' + b"x" * 3_000_000 + b'"}', "e7"),
    ],
)
def test_a_bad_line_is_kept_as_it_was_with_the_name_of_its_row(tmp_path, line, name):
    jsonl(tmp_path / "x.jsonl", line + b"\n", example(2))
    source = Source(spec="toy", path=str(tmp_path))
    (split,) = cut("toy", source, list_files("toy", source, {}), 1 << 30, {})
    ((batch, (bad,)),) = read_split(source, SHAPE, split, {}, Limits())
    assert batch.num_rows == 1
    assert (bad.position, bad.raw, bad.example_id) == (0, line, name)


def test_a_quarantine_keeps_the_start_of_a_long_line(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "RAW_BYTES", 1 << 16)
    jsonl(tmp_path / "x.jsonl", b'{"id": "' + b"x" * 200_000)
    source = Source(spec="toy", path=str(tmp_path))
    (split,) = cut("toy", source, list_files("toy", source, {}), 1 << 30, {})
    ((batch, (bad,)),) = read_split(source, SHAPE, split, {}, Limits())
    assert batch.num_rows == 0
    assert bad.raw == b'{"id": "' + b"x" * (raw.RAW_BYTES - 8)


def test_numbers_are_good_names(tmp_path):
    jsonl(tmp_path / "x.jsonl", example(id=17, task=4), example(id=-(2**63)))
    rows, bad = rows_of(tmp_path)
    assert bad == []
    assert [row["source_example_id"] for row in rows] == ["17", str(-(2**63))]


def test_batches_are_closed_at_the_size_of_a_row_group(tmp_path, monkeypatch):
    jsonl(tmp_path / "x.jsonl", *(example(n) for n in range(10)))
    monkeypatch.setattr(raw, "ROW_GROUP_BYTES", 4 * len(json.dumps(example())))
    source = Source(spec="toy", path=str(tmp_path))
    (split,) = cut("toy", source, list_files("toy", source, {}), 1 << 30, {})
    assert [batch.num_rows for batch, _ in read_split(source, SHAPE, split, {}, Limits())] == [4, 4, 2]


# --- lines and files that are no rows --------------------------------------------------------------------------------


def test_what_is_kept_and_nested_too_deep_is_a_bad_row(tmp_path):
    line = b'{"id": "e", "q": "q", "a": "a", "m": %s}\n'
    deep = {depth: line % (b"[" * depth + b"]" * depth) for depth in (200, 300, 1200)}
    jsonl(tmp_path / "x.jsonl", example(1), *deep.values(), example(2))
    rows, bad = rows_of(tmp_path)
    first = len(json.dumps(example(1))) + 1
    places = [first + len(deep[200]), first + len(deep[200]) + len(deep[300])]
    assert [row["source_example_id"] for row in rows] == ["e1", "e", "e2"]
    assert bad == list(zip(places, ["too_deep", "invalid_json"], strict=True))


def test_a_long_number_beside_what_is_nested_deep_is_read_or_a_bad_row(tmp_path):
    """Such a number is read by another parser, whose depth is less than the first one's."""
    for name in ("id", "m"):
        line = json.dumps(example(1, **{name: 2**70}))[:-1].encode()
        lines = [line + b', "other": ' + b"[" * depth + b"]" * depth + b"}\n" for depth in (500, 1010)]
        jsonl(tmp_path / "x.jsonl", *lines)
        rows, bad = rows_of(tmp_path)
        assert (len(rows), bad) == (1, [(len(lines[0]), "too_deep")])
        assert str(2**70) in rows[0]["source_example_id"] + rows[0]["meta_json"]


LONG = st.lists(st.tuples(st.integers(0, 99), st.sampled_from(["", "long " * 9, "longer " * 60])), max_size=8)


@settings(max_examples=40)
@given(rows=LONG, ended=st.booleans(), split_bytes=st.integers(1, 700))
def test_lines_that_are_too_long_are_bad_rows_in_any_cut(scratch, rows, ended, split_bytes):
    lines = [json.dumps(example(n, q=text)).encode() for n, text in rows]
    (scratch / "x.jsonl").write_bytes(b"\n".join(lines) + b"\n" * ended)
    offsets = [sum(len(line) + 1 for line in lines[:count]) for count in range(len(lines))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl_format, "_LINE_BYTES", 64)
        good, bad = rows_of(scratch / "x.jsonl", split_bytes=split_bytes, limits=Limits(row_bytes=100))
    assert [row["source_example_id"] for row in good] == [f"e{n}" for n, text in rows if len(text) < 100]
    assert bad == [(at, "too_long") for at, (_, text) in zip(offsets, rows, strict=True) if len(text) > 100]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a mark"])
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"], ids=["cut", "ended", "blank"])
@pytest.mark.parametrize("block", [7, 1 << 20])
def test_a_line_of_the_limit_is_a_row_and_one_byte_more_is_not(tmp_path, monkeypatch, mark, end, block):
    monkeypatch.setattr(jsonl_format, "_LINE_BYTES", block)
    line = json.dumps(example(1)).encode()
    (tmp_path / "x.jsonl").write_bytes(mark + line + end)
    for row_bytes, expected in ((len(line), (1, [])), (len(line) - 1, (0, [(0, "too_long")]))):
        rows, bad = rows_of(tmp_path, limits=Limits(row_bytes=row_bytes))
        assert (len(rows), bad) == expected


@pytest.mark.parametrize("name", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_a_source_error(tmp_path, name):
    text = json.dumps(example(1)) + "\n"
    (tmp_path / "x.jsonl").write_bytes((text if name == "utf-16" else "\ufeff" + text).encode(name))
    with pytest.raises(SourceError, match=r"x\.jsonl is UTF-16; convert it to UTF-8"):
        rows_of(tmp_path)


def test_bytes_that_are_zero_are_bad_and_written_ones_are_text(tmp_path):
    jsonl(tmp_path / "x.jsonl", example(1, q="a\0b"), b"\0" * 9 + b"\n", b'{"id": "e2", "q": "\0", "a": ""}\n')
    rows, bad = rows_of(tmp_path)
    assert [row["messages"][0]["content"] for row in rows] == ["a\0b"]
    assert [reason for _, reason in bad] == ["invalid_json"] * 2


def test_a_mistake_of_our_own_is_not_the_files(tmp_path, monkeypatch):
    jsonl(tmp_path / "x.jsonl", example(1))
    pq.write_table(table(), tmp_path / "x.parquet")
    for name in ("x.jsonl", "x.parquet"):
        for mistake in (AssertionError, KeyError, MemoryError, KeyboardInterrupt):
            monkeypatch.setattr(prompts, "_conversations", Mock(side_effect=mistake))
            with pytest.raises(mistake):
                rows_of(tmp_path / name)


PACKERS = {".gz": gzip.compress, ".zst": zstd.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_compressed_file_gives_the_rows_of_the_plain_one(tmp_path, suffix):
    # Longer than what is stored, so that the end of the split is not the end of the text.
    jsonl(tmp_path / "x.jsonl", *(example(n, q="again " * 50) for n in range(200)), b"oops\n")
    (tmp_path / f"y.jsonl{suffix}").write_bytes(PACKERS[suffix]((tmp_path / "x.jsonl").read_bytes()))
    plain = rows_of(tmp_path / "x.jsonl")
    assert len(plain[0]) == 200
    packed = rows_of(tmp_path / f"y.jsonl{suffix}", split_bytes=10)
    assert without_places(packed) == without_places(plain)
    assert [row["position"] for row in packed[0]] == [row["position"] for row in plain[0]]
    assert packed[1] == plain[1]


def test_a_file_that_goes_away_is_a_source_error(tmp_path):
    jsonl(tmp_path / "x.jsonl", example())
    source = Source(spec="toy", path=str(tmp_path))
    (split,) = cut("toy", source, list_files("toy", source, {}), 1 << 30, {})
    (tmp_path / "x.jsonl").unlink()
    with pytest.raises(SourceError, match=r"x\.jsonl cannot be read"):
        list(read_split(source, SHAPE, split, {}, Limits()))


# --- real files ------------------------------------------------------------------------------------------------------


def test_real_malformed_lines(shared_data):
    shape = ColumnsShape(
        shape="columns", example_id="instruction", user="instruction", final="output", skill_bucket={"default": "B1"},
        meta=("status", "input", "other"),
    )  # fmt: skip
    path = shared_data / "alpaca_libre" / "alpaca_libre_tasks_v2.jsonl.gz"
    rows, bad = rows_of(path, shape)
    lines = gzip.decompress(path.read_bytes()).split(b"\n")
    invalid, offset = [], 0
    for line in lines:
        try:
            json.loads(line)
        except ValueError:
            invalid += [offset] if line.strip() else []
        offset += len(line) + 1
    assert len(invalid) == 14
    assert [position for position, reason in bad if reason == "invalid_json"] == invalid
    assert len(rows) + len(bad) == 2294


def test_real_text_with_line_separators_of_unicode(shared_data, tmp_path):
    shape = ColumnsShape(
        shape="columns", example_id="question", user="question", final="answer", skill_bucket={"default": "B2"}
    )
    path = shared_data / "gsm8k" / "train.jsonl.gz"
    rows, bad = rows_of(path, shape)
    text = gzip.decompress(path.read_bytes())
    assert (len(rows), bad) == (7473, [])
    assert len(text.decode().splitlines()) == 7475
    (tmp_path / "plain.jsonl").write_bytes(text)
    assert without_places(rows_of(tmp_path / "plain.jsonl", shape, 100_003)) == without_places((rows, []))


@pytest.mark.parametrize("case", ["array", "arrayl", "pretty"])
def test_field_case_of_an_array(shared_data, case):
    rows, bad = rows_of(shared_data / "field_cases" / case, documents())
    assert [row["source_example_id"] for row in rows] == [f"d{n}" for n in range(20)]
    assert bad == []


@pytest.mark.parametrize("case", ["zst_cut", "zst_plain"])
def test_field_case_of_a_compressed_file(shared_data, case):
    with pytest.raises(SourceError, match=r"a\.jsonl\.zst cannot be read"):
        rows_of(shared_data / "field_cases" / case, documents())


def field_case_of_synth(folder):
    return rows_of(folder, Source(spec="synth", path=str(folder)).shape())


def test_field_case_of_a_value_that_is_nested_too_deep(shared_data):
    rows, bad = field_case_of_synth(shared_data / "field_cases" / "deep")
    assert (len(rows), bad) == (1, [(0, "too_deep")])


def test_field_case_of_a_date_beyond_the_year_9999(shared_data):
    rows, bad = field_case_of_synth(shared_data / "field_cases" / "date")
    dates = [json.loads(row["meta_json"])["constraints"] for row in rows]
    assert (dates, bad) == (["29349-01-26", "1970-01-02", "1970-01-03"], [])
