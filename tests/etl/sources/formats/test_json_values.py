"""Arrays of objects and objects over several lines give the rows that one object a line gives."""

import gzip
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.errors import SourceError
from etl.sources.formats import json_values
from etl.sources.spec import Description
from tests.etl.sources.shapes.toyshapes import spoken
from tests.etl.sources.toysources import rows_of

SHAPE = Description.model_validate({"shape": "columns", "user": "q", "final": "a", "skill_bucket": "chat"}).root
ROWS: list[dict] = [
    {"q": 'say "[{" \\', "a": "é,\n]"},
    {"q": "2", "a": "b", "more": [{"x": []}, "]"]},
    {"q": "3", "a": "c"},
]
ANSWERS = [[("user", row["q"]), ("assistant", "final", row["a"])] for row in ROWS]

TEXT = st.text(max_size=8)
SIMPLE = st.none() | st.booleans() | st.integers(-9, 9) | TEXT
NESTED = st.recursive(
    SIMPLE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
OBJECTS = st.lists(st.dictionaries(TEXT, NESTED, max_size=4), min_size=1, max_size=4)


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.json.gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        json.dumps(ROWS, ensure_ascii=False, indent="\t").replace("\n", "\r\n"),
        "\n" + ",\n".join(map(json.dumps, ROWS)).join(("[\n", "\n]\n\n")),
        "\n".join(json.dumps(row, indent=1) for row in ROWS),
        "\n".join(map(json.dumps, ROWS)),
    ],
)
def test_every_layout_gives_the_same_rows(tmp_path, name, mark, text):
    data = (mark + text).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    for split_bytes in (1 << 30, 17):
        good, bad = rows_of(tmp_path / name, SHAPE, split_bytes)
        assert [spoken(row) for row in good] == ANSWERS
        assert bad == []
        for row in good:
            assert data[row["position"] :].removeprefix(b"\xef\xbb\xbf").startswith(b"{")


@settings(max_examples=30)
@given(rows=OBJECTS, block=st.integers(1, 40), indent=st.none() | st.just(1))
def test_values_are_found_in_blocks_of_any_size(rows, block, indent):
    class Short(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, block) if size > 0 else size)

    data = json.dumps(rows, indent=indent).encode()
    values = [value for some in json_values.values("x", Short(data), 1 << 20) for value in some]
    assert [json.loads(text) for _, text, _ in values] == rows
    assert all(data[start : start + size] == text for start, text, size in values)


def test_bad_elements_are_bad_rows(tmp_path):
    (tmp_path / "x.json").write_text('[{"q": "1", "a": "b"}, 7, {"q": }, ["x"], {"q": "2", "a": "c"}]')
    good, bad = rows_of(tmp_path / "x.json", SHAPE)
    assert len(good) == 2
    assert bad == [(23, "not_an_object"), (26, "invalid_json"), (35, "not_an_object")]


def test_lines_that_are_lists_stay_bad_rows(tmp_path):
    (tmp_path / "x.jsonl").write_text('[{"q": "1"}]\n[{"q": "2"}]\n')
    assert rows_of(tmp_path / "x.jsonl", SHAPE) == ([], [(0, "not_an_object"), (13, "not_an_object")])


@pytest.mark.parametrize(
    "text", ['[{"q": "1", "a": "b"}', '[{"q": "1", "a": "b"}, {"q": "2', "[", '{\n "q": "1",\n "a": "b']
)
def test_a_file_that_is_cut_short_is_an_error(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SourceError, match=r"x\.json is truncated"):
        rows_of(tmp_path / "x.json", SHAPE)


def test_a_file_that_goes_on_behind_its_array_is_an_error(tmp_path):
    (tmp_path / "x.json").write_text('[{"q": "1",\n "a": "b"}]\n\n {"q": "2"}')
    with pytest.raises(SourceError, match="continues after the end of its array, at byte 26"):
        rows_of(tmp_path / "x.json", SHAPE)


def test_of_a_value_that_is_too_long_the_start_is_held():
    data = b'[{"a": "' + b"x" * 5000 + b'"}, {"a": "y"}]'
    (first, text, size), last = (value for some in json_values.values("x", io.BytesIO(data), 100) for value in some)
    assert (first, size, len(text)) == (1, 5009, 101)
    assert last[1] == b'{"a": "y"}'
