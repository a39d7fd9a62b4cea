"""Plain text: what a row is, cut at any byte; blank lines, line ends, marks, and what is no text."""

import gzip
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.errors import SourceError
from etl.sources.files import cut, list_files, list_source
from etl.sources.formats import plain_text
from etl.sources.read import read_split
from etl.sources.row_groups import Limits
from etl.sources.spec import Description, Source
from tests.etl.sources.shapes.toyshapes import spoken

SHAPE = Description.model_validate({"shape": "text", "example_id": "id", "text": "text", "skill_bucket": "B5"}).root
PROMPTS = Description.model_validate({"shape": "prompts", "user": "text", "skill_bucket": "chat"}).root


def read(path, text_rows=None, split_bytes=1 << 30, shape=SHAPE, max_row_bytes=1000):
    """([(id, text)], [(position, reason)]) of a source."""
    source = Source(spec="toy", path=str(path), text_rows=text_rows)
    good, bad = [], []
    for split in cut("toy", source, list_files("toy", source, {}), split_bytes, {}):
        for batch, lost in read_split(source, shape, split, {}, Limits(row_bytes=max_row_bytes)):
            good += [(row["source_example_id"], row["messages"][0]["content"]) for row in batch.to_pylist()]
            bad += [(row.position, row.reason) for row in lost]
    return good, bad


def rows_by_hand(data: bytes, text_rows: str) -> list[tuple[int, bytes]]:
    """Position and bytes of each row."""
    lines, at = [], 3 * data.startswith(b"\xef\xbb\xbf")
    for line in data[at:].split(b"\n"):
        lines.append((at, line))
        at += len(line) + 1
    groups: list[list[tuple[int, bytes]]] = [[]]
    for place, line in lines:
        if line.strip() == b"" or text_rows == "line":
            groups.append([])
        if line.strip():
            groups[-1].append((place, line))
    return [(group[0][0], b"\n".join(line for _, line in group).removesuffix(b"\r")) for group in groups if group]


TEXT = "\ufeffone\n\n  \r\ntwo\r\nthree\r\n\n\u2028four\rstill\u0085four\n \u00a0\n\nlast"


def test_a_file_is_a_row(tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    (tmp_path / "b c.TXT.gz").write_bytes(gzip.compress(b"x\n") + gzip.compress(b"y\n"))
    (tmp_path / "empty.txt").touch()
    assert read(tmp_path) == (
        [("a.txt:0", TEXT[1:]), ("b c.TXT.gz:0", "x\ny\n"), ("empty.txt:0", "")], []
    )  # fmt: skip


def test_a_line_is_a_row(tmp_path):
    (tmp_path / "a.md").write_bytes(TEXT.encode())
    good, bad = read(tmp_path / "a.md", "line")
    assert [text for _, text in good] == [
        "one", "two", "three", "\u2028four\rstill\u0085four", " \u00a0", "last"
    ]  # fmt: skip
    assert good[:2] == [("a.md:3", "one"), ("a.md:12", "two")]
    assert bad == []


def test_a_block_is_a_row(tmp_path):
    (tmp_path / "a.md").write_bytes(TEXT.encode())
    good, bad = read(tmp_path / "a.md", "paragraph")
    assert [text for _, text in good] == [
        "one", "two\r\nthree", "\u2028four\rstill\u0085four\n \u00a0", "last"
    ]  # fmt: skip
    assert bad == []


@settings(max_examples=150)
@given(
    data=st.lists(st.sampled_from([b"a", b"bc", b" ", b"\n", b"\n\n", b"\r\n", b"\r", b"\xc3\xa9"]), max_size=40),
    marked=st.booleans(),
    split_bytes=st.sampled_from([1, 2, 3, 5, 8, 1000]),
    block_bytes=st.sampled_from([4, 5, 7, 1 << 20]),
    text_rows=st.sampled_from(["line", "paragraph"]),
)
def test_any_cut_gives_the_same_rows(tmp_path_factory, data, marked, split_bytes, block_bytes, text_rows):
    path = tmp_path_factory.mktemp("cut") / "a"
    path.write_bytes(b"\xef\xbb\xbf" * marked + b"".join(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_text, "_BLOCK_BYTES", block_bytes)
        patch.setattr(plain_text, "_TAIL_BYTES", block_bytes)
        good, bad = read(path, text_rows, split_bytes)
    expected = rows_by_hand(path.read_bytes(), text_rows)
    assert good == [(f"a:{place}", text.decode()) for place, text in expected]
    assert bad == []


@pytest.mark.parametrize("block_bytes", [4, 1 << 20])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_row_that_is_too_long_is_a_bad_row(tmp_path, monkeypatch, name, block_bytes):
    monkeypatch.setattr(plain_text, "_BLOCK_BYTES", block_bytes)
    data = b"ok\n\n" + b"x" * 21 + b"\nmore\n\n" + b"y" * 20 + b"\r\n\n  \nend"
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    fits = [f"{name}:{place}" for place in (0, 32, 58)]
    good, bad = read(tmp_path / name, "paragraph", max_row_bytes=20)
    assert ([row for row, _ in good], bad) == (fits, [(4, "too_long")])
    good, bad = read(tmp_path / name, "line", max_row_bytes=20)
    assert ([row for row, _ in good], bad) == ([fits[0], f"{name}:26", *fits[1:]], [(4, "too_long")])
    assert read(tmp_path / name, "file", max_row_bytes=20) == ([], [(0, "too_long")])
    assert read(tmp_path / name, "file", max_row_bytes=len(data))[1] == []


@pytest.mark.parametrize("shape", [SHAPE, PROMPTS])
def test_what_is_no_text_is_a_bad_row(tmp_path, shape):
    (tmp_path / "a.txt").write_bytes(b"one\ntw\xffo\nth\0ree\nfour\n")
    good, bad = read(tmp_path / "a.txt", "line", shape=shape)
    assert [text for _, text in good] == ["one", "four"]
    assert bad == [(4, "invalid_utf8"), (9, "nul")]
    (tmp_path / "a.txt").write_bytes("one\n".encode("utf-16"))
    assert read(tmp_path / "a.txt", shape=shape) == ([], [(0, "utf16")])
    with pytest.raises(SourceError, match="is UTF-16"):
        read(tmp_path / "a.txt", "line", shape=shape)


def test_lines_are_prompts_and_blocks_may_be_code_of_any_ending(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    return 1\n\n\nf()\n")
    (tmp_path / "Makefile").write_text("all:\n")
    good, _ = read(tmp_path, "paragraph", shape=PROMPTS)
    assert good == [("Makefile:0", "all:"), ("a.py:0", "def f():\n    return 1"), ("a.py:24", "f()")]


def test_a_row_knows_its_path_and_folders(tmp_path):
    (tmp_path / "lang=en" / "x").mkdir(parents=True)
    (tmp_path / "lang=en" / "x" / "a.txt").write_text("hi")
    columns = {"shape": "text", "example_id": "path", "text": "text", "language": "lang", "skill_bucket": "B5"}
    shape = Description.model_validate(columns).root
    assert read(tmp_path, shape=shape) == ([("lang=en/x/a.txt", "hi")], [])
    with pytest.raises(SourceError, match=re.escape("lacks the columns ['body']; it has ['id', 'text', 'path']")):
        read(tmp_path, shape=shape.model_copy(update={"text": "body"}))


def test_notes_beside_data_are_left_out_unless_they_are_named(tmp_path):
    (tmp_path / "README.txt").write_text("what this is")
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "x"}\n')
    assert read(tmp_path) == ([("1", "x")], [])
    source = Source(spec="toy", path=str(tmp_path))
    (reason,) = list_source("toy", source, {}).left_out
    assert reason.startswith("text beside other data")
    named = Source(spec="toy", path=(str(tmp_path / "*.txt"), str(tmp_path / "*.jsonl")))
    assert [file.relative for file in list_files("toy", named, {})] == ["README.txt", "a.jsonl"]


def test_another_ending_is_an_error_that_names_the_key(tmp_path):
    (tmp_path / "a.md").write_text("hi")
    for path in (tmp_path, tmp_path / "a.md"):
        with pytest.raises(SourceError, match="text_rows"):
            read(path)


def test_a_prompt_is_what_a_line_says(tmp_path):
    (tmp_path / "a.txt").write_text("hi\n")
    source = Source(spec="toy", path=str(tmp_path), text_rows="line")
    (split,) = cut("toy", source, list_files("toy", source, {}), 1000, {})
    ((batch, _),) = read_split(source, PROMPTS, split, {}, Limits())
    assert [spoken(row) for row in batch.to_pylist()] == [[("user", "hi")]]


def test_a_block_behind_a_mark_and_a_blank_line_belongs_to_the_first_piece(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf\na\n\nb")
    for split_bytes in range(1, 10):
        assert read(tmp_path / "a", "paragraph", split_bytes) == ([("a:4", "a"), ("a:7", "b")], [])
