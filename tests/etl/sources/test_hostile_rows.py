"""Rows that libraries stumble over are bad rows with a reason; the rows beside them are read."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.errors import SourceError
from etl.sources.spec import Description
from tests.etl.sources.shapes.toyshapes import converse
from tests.etl.sources.toysources import rows_of

CHAT = {"shape": "messages"}
PLAIN = {"messages": [{"role": "user", "content": "hi"}]}


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def schema(depth):
    found = {"type": "string"}
    for _ in range(depth):
        found = {"properties": {"a": found}}
    return found


def calling(**call):
    function = {"name": "get", "arguments": {}, **call}
    return {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": [calling(arguments={"x": nested(400)})]}, "too_deep"),
        ({"messages": [calling(), {"role": "tool", "content": {"x": nested(400)}}]}, "too_deep"),
        ({**PLAIN, "tools": [{"name": "get", "parameters": schema(250)}]}, "too_deep"),
        ({**PLAIN, "tools": [{"name": "get", "parameters": schema(450)}]}, "too_deep"),
        ({"messages": '[{"role": "user", "content": "\\ud800"}]'}, "invalid_json"),
        ({"messages": "{'a', 'b'}"}, "invalid_json"),
        ({"messages": [{"role": ["user"], "content": "hi"}]}, "unknown_role"),
        ({"messages": [{"role": "assistant", "content": "hi", "channel": 7}]}, "wrong_type"),
        ({"messages": [{"role": "assistant", "content": "hi", "recipient": ["a"]}]}, "wrong_type"),
    ],
)
def test_a_record_that_cannot_be_said(tmp_path, record, reason):
    good, bad = converse(tmp_path, CHAT, PLAIN, record, PLAIN)
    assert good == [[("user", "hi")]] * 2
    assert [why for _, why in bad] == [reason]


def test_the_checks_of_an_item_that_are_nested_too_deep(tmp_path):
    shape = {"shape": "verifiable", "user": "q", "tests": "t"}
    good, bad = converse(tmp_path, shape, {"q": "a", "t": nested(200)}, {"q": "a", "t": nested(400)})
    assert (len(good), [why for _, why in bad]) == (1, ["too_deep"])


def test_ids_of_calls_may_be_numbers(tmp_path):
    call = calling()
    call["tool_calls"][0]["id"] = 7
    answer = {"role": "tool", "content": "sun", "tool_call_id": 7}
    (row,), bad = converse(tmp_path, CHAT, {"messages": [call, answer]}, raw=True)
    assert ([said["call_id"] for said in row["messages"]], bad) == (["7", "7"], [])


def test_nested_text_that_is_not_utf8(tmp_path):
    texts = pa.array([b"ok", b"\xff"], pa.binary()).view(pa.string())
    said = pa.StructArray.from_arrays([pa.array(["user", "user"]), texts], names=["role", "content"])
    pq.write_table(pa.table({"messages": pa.ListArray.from_arrays([0, 1, 2], said)}), tmp_path / "x.parquet")
    good, bad = rows_of(tmp_path / "x.parquet", described(CHAT))
    assert (len(good), bad) == (1, [(1, "invalid_utf8")])


def test_what_lies_too_deep_in_a_column_of_json(tmp_path):
    texts = [json.dumps({"a": nested(depth), "b": PLAIN["messages"]}) for depth in (5, 400)]
    pq.write_table(pa.table({"u": ["q", "q"], "f": ["a", "a"], "j": texts}), tmp_path / "x.parquet")
    columns = described({"shape": "columns", "user": "u", "final": "f", "meta": ["j.a"]})
    good, bad = rows_of(tmp_path / "x.parquet", columns)
    assert (len(good), bad) == (1, [(1, "too_deep")])
    deep = described(CHAT | {"messages": "j.a"})
    assert [why for _, why in rows_of(tmp_path / "x.parquet", deep)[1]] == ["not_messages"] * 2


def test_a_bad_row_beside_text_that_is_not_utf8_keeps_what_can_be_read(tmp_path):
    texts = pa.array([b"\xff", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"u": ["q", "q"], "x": ['{"a": 1}', '{"a": "f"}'], "o": texts}), tmp_path / "x.parquet")
    shape = described({"shape": "columns", "user": "u", "final": "x.a", "license": "o"})
    assert rows_of(tmp_path / "x.parquet", shape) == ([], [(0, "wrong_type"), (1, "invalid_utf8")])


def test_a_header_that_is_not_utf8(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"u,f,\xff\n1,2,3\n")
    with pytest.raises(SourceError, match="the header is not UTF-8"):
        rows_of(tmp_path / "x.csv", described({"shape": "columns", "user": "u", "final": "f"}))


def described(tree):
    return Description.model_validate({"skill_bucket": "chat", **tree}).root
