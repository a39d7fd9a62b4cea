"""Lines read by kernels: the rows, bad rows and positions that a parser of every line gives, byte for byte."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from etl.sources import raw
from etl.sources.formats import json_rows, jsonl
from etl.sources.spec import Description
from tests.etl.sources.toysources import batches_of, rows_of

CHAT = Description.model_validate(
    {
        "shape": "messages", "example_id": "id", "license": "by", "meta": ["m", "n"], "skill_bucket": "chat",
        "roles": {"narrator": "user", "caller": "call"}, "fields": {"n": "double", "o": "string", "by": "string"},
    }
).root  # fmt: skip
COLUMNS = Description.model_validate(
    {"shape": "columns", "example_id": "id", "user": "q", "final": "a", "meta": ["m", "q"], "skill_bucket": "chat"}
).root
SHAPES = {"messages": CHAT, "columns": COLUMNS}

GOOD_PIECES = [
    "a", " ", "<", "<tools>", "<think>so</think>", "\\n", '\\"', "\\\\", "\\u00e9", "\\ud83d\\ude42", "é", "12345678",
]  # fmt: skip
ODD_PIECES = [
    "<think>", "</think>", "<tool_call>", "\\/", "\\u0000", "\\ud800", "\\u003cthink>", "\\u12", "\\x", "🙂", "\x7f",
    "\t", "\u2028", "\xa0", "\u3000", "日本語",
]  # fmt: skip
GOOD = st.lists(st.sampled_from(GOOD_PIECES), max_size=4).map(lambda pieces: f'"{"".join(pieces)}"')
ODD = st.lists(st.sampled_from(GOOD_PIECES + ODD_PIECES), max_size=6).map(lambda pieces: f'"{"".join(pieces)}"')
TEXTS = st.one_of(GOOD, GOOD, GOOD, ODD)
NUMBERS = st.sampled_from(
    [
        "0", "7", "-12", "1.5", "-0.0", "1e5", "123456789012345678", "10000000000000000.0", "0.1e1", "1e16", "-0", "01",
        "1.", "1E-7", "1e999", "1e+05", "-", "1234567890123456789", "12345678901234567890123",
    ]
)  # fmt: skip
WORDS = st.sampled_from(["null", "true", "false", "[]", "{}", "[[[]]]", '{"a":[1,{"b":"]"}]}', "nul", "NaN", "[1,]"])
VALUES = st.one_of(TEXTS, NUMBERS, WORDS)
SPACES = st.sampled_from(["", " ", "\t", "\r", *[""] * 16, "\x0b"])


@st.composite
def objects(draw, members):
    """An object of some members in any order."""
    made, space = draw(st.permutations(members)), draw(SPACES)
    return "{" + f",{space}".join(f'"{key}"{space}:{space}{value}' for key, value in made) + space + "}"


@st.composite
def messages(draw):
    """One message, most often of the usual kind."""
    usual, odd = ["user", "assistant", "system", "human", "gpt", "narrator"], ["caller", "tool", "who"]
    role = draw(st.sampled_from(usual * 4 + odd))
    members = [
        (draw(st.sampled_from(["role", "from"])), f'"{role}"'),
        (draw(st.sampled_from(["content", "value"])), draw(TEXTS if draw(st.integers(0, 9)) else VALUES)),
    ]
    more = st.sampled_from(
        ["name", "reasoning_content", "thinking", "tool_calls", "channel", "id", "content", "r\\u006fle"]
    )
    if draw(st.integers(0, 4)) == 0:
        members.append((draw(more), draw(st.just("null") | VALUES)))
    return draw(objects(members))


@st.composite
def rows(draw):
    """A line: a row, or something that is none."""
    said = draw(st.lists(messages(), max_size=3))
    members = [
        ("id", draw(st.just("7") | GOOD | TEXTS | NUMBERS)),
        ("messages", f"[{','.join(said)}]" if draw(st.integers(0, 9)) else draw(VALUES)),
        ("q", draw(TEXTS)),
        ("a", draw(TEXTS)),
        *draw(st.lists(st.tuples(st.sampled_from(["m", "n", "o", "by", "tools", "q", "z", "id"]), VALUES), max_size=1)),
    ]
    line = draw(objects(members))
    changed = [line + " \r", line[:-1], line + "x", "", "  ", "[1]", "\ufeff" + line]
    return draw(st.sampled_from([line] * 10 + changed))


@pytest.mark.parametrize("kind", SHAPES)
@settings(max_examples=40)
@given(lines=st.lists(rows(), max_size=6), ends=st.booleans())
@example(lines=['{"id":"1","q":"a","a":"b","messages":[]}'], ends=True)
def test_kernels_and_a_parser_give_the_same(tmp_path_factory, kind, lines, ends):
    path = tmp_path_factory.mktemp("rows") / "x.jsonl"
    path.write_bytes("\n".join(lines).encode() + b"\n" * ends)
    found = everything(path, SHAPES[kind])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl._Wanted, "scanner", lambda *_: None)
        assert everything(path, SHAPES[kind]) == found


def everything(path, shape):
    """The rows of a file and all that is known of the bad ones."""
    batches = [pair for split in batches_of(path, shape=shape) for pair in split]
    return [row for batch, _ in batches for row in batch.to_pylist()], [bad for _, bad in batches for bad in bad]


USUAL = [
    {"id": 7, "messages": [{"role": "user", "content": "é\n\"<b>"}, {"content": "", "role": "assistant", "name": "x"}]},
    {"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "thinking": "so", "value": "a"}], "id": "8"},
    {"id": "10", "messages": [{"role": "gpt", "content": "\n<think> é\n</think>\n\na "}]},
    {"id": "9", "by": "x", "m": [1, {"a": 0.5}], "n": 3, "z": {"deep": [True]}, "messages": [], "tools": None},
]  # fmt: skip


@pytest.mark.parametrize("ascii_only", [True, False])
def test_usual_rows_need_no_parser(tmp_path, monkeypatch, ascii_only):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in USUAL))
    monkeypatch.setattr(jsonl, "_batch", None)
    rows, bad = everything(path, CHAT)
    assert bad == []
    assert [row["source_example_id"] for row in rows] == ["7", "8", "10", "9"]
    said = [[(m["role"], m["channel"], m["content"]) for m in row["messages"]] for row in rows]
    assert said == [
        [("user", None, 'é\n"<b>'), ("assistant", "final", "")],
        [("user", None, "q"), ("assistant", "analysis", "so"), ("assistant", "final", "a")],
        [("assistant", "analysis", "é"), ("assistant", "final", "a")],
        [],
    ]
    assert [row["meta_json"] for row in rows] == ["{}", "{}", "{}", '{"m":[1,{"a":0.5}],"n":3}']


def test_row_groups_are_cut_where_a_parser_cuts_them(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"id": n, "q": "q" * (n % 7), "a": "a"}) + "\n" for n in range(400)))
    monkeypatch.setattr(raw, "ROW_GROUP_BYTES", 1000)
    cuts = [batch.num_rows for split in batches_of(path, shape=COLUMNS) for batch, _ in split]
    monkeypatch.setattr(jsonl._Wanted, "scanner", lambda *_: None)
    assert [batch.num_rows for split in batches_of(path, shape=COLUMNS) for batch, _ in split] == cuts
    assert len(cuts) > 10


def test_a_block_that_is_not_utf8_is_parsed(tmp_path):
    assert json_rows.is_utf8("é🙂".encode())
    assert not json_rows.is_utf8(b'{"a": "\xff"}')
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"id": 1, "q": "a", "a": "b"}\n{"id": 2, "q": "\xff", "a": "b"}\n')
    rows, bad = rows_of(path, COLUMNS)
    assert len(rows) == 1
    assert bad == [(30, "invalid_json")]
