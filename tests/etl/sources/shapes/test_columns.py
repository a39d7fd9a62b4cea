"""Columns: a prompt from several columns, instructions, later exchanges, constants and names of rows."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from etl.sources.spec import Description
from tests.etl.sources.shapes.toyshapes import converse, spoken
from tests.etl.sources.toysources import rows_of

ALPACA = {"shape": "columns", "prompt": "{instruction}\n\n{input}", "final": "output"}


def test_a_paragraph_whose_columns_are_empty_is_left_out(tmp_path):
    good, bad = converse(
        tmp_path,
        ALPACA,
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Sing.", "input": " ", "output": "la"},
        {"instruction": "Sing.", "output": "la"},
        {"input": "1 2", "output": "la"},
    )
    assert good == [
        [("user", "Add.\n\n1 2"), ("assistant", "final", "3")],
        [("user", "Sing."), ("assistant", "final", "la")],
        [("user", "Sing."), ("assistant", "final", "la")],
    ]
    assert [reason for _, reason in bad] == ["missing_instruction"]


def test_an_answer_may_be_calls_of_the_tools(tmp_path):
    tool = {"name": "sky", "description": "d", "parameters": {"where": {"type": "str"}}}
    call = {"name": "sky", "arguments": {"where": "here"}}
    shape = {"shape": "columns", "user": "query", "final": "answers", "tools": "tools"}
    (calls, text), bad = converse(
        tmp_path,
        shape,
        {"query": "?", "tools": json.dumps([tool]), "answers": json.dumps([call, call])},
        {"query": "?", "answers": "[1]"},
        {"query": "?", "tools": "no JSON", "answers": "yes"},
        raw=True,
    )
    said = ("assistant", "commentary", "functions.sky", '{"where":"here"}')
    assert spoken(calls) == [("user", "?"), said, said]
    assert [message["call_id"] for message in calls["messages"]] == [None, "call_1", "call_2"]
    assert json.loads(calls["tools"])[0]["parameters"]["properties"] == {"where": {"type": "string"}}
    assert (spoken(text), text["tools"]) == ([("user", "?"), ("assistant", "final", "[1]")], None)
    assert [reason for _, reason in bad] == ["invalid_json"]


def test_reasoning_in_tags_is_a_message_of_its_own(tmp_path):
    shape = {"shape": "columns", "user": "q", "analysis": "why", "final": "a", "then": [{"user": "q", "final": "b"}]}
    good, bad = converse(
        tmp_path,
        shape,
        {"q": "?", "a": "<think>\nhm\n</think>\n\nyes"},
        {"q": "?", "a": "<think>hm"},
        {"q": "?", "why": "so", "a": "I do not think>x", "b": "<|begin_of_thought|>hm<|end_of_thought|>no"},
    )
    analysis = ("assistant", "analysis", "hm")
    asked = ("user", "?")
    assert good == [
        [asked, analysis, ("assistant", "final", "yes"), asked, ("assistant", "final", "")],
        [asked, ("assistant", "analysis", "so"), ("assistant", "final", "I do not think>x"), asked, analysis,
         ("assistant", "final", "no")],
    ]  # fmt: skip
    assert [reason for _, reason in bad] == ["unclosed_thinking"]


@pytest.mark.parametrize("prompt", ["{instruction}\n\n{input}", "{instruction}", "{instruction}{input}"])
def test_a_row_without_any_text_for_a_template_stays_in_its_place(tmp_path, prompt):
    texts = ["a", "", "b", " \n"]
    records = [{"instruction": text, "input": "", "output": f"{number}"} for number, text in enumerate(texts)]
    rows, bad = converse(tmp_path, ALPACA | {"prompt": prompt}, *records)
    blank = [[("user", text if text.strip() else ""), ("assistant", "final", f"{n}")] for n, text in enumerate(texts)]
    assert (rows, bad) == (blank, [])


def test_a_template_writes_numbers_braces_and_constant_paragraphs(tmp_path):
    template = "Solve {{this}}:\n\n{n}. {task}\n\nLevel {level}, {kind}"
    record = {"n": 7, "task": "1+1", "kind": "sum", "output": "2"}
    good, bad = converse(tmp_path, ALPACA | {"prompt": template}, record, {**record, "n": None})
    assert good == [[("user", "Solve {this}:\n\n7. 1+1\n\nLevel , sum"), ("assistant", "final", "2")]]
    assert [reason for _, reason in bad] == ["missing_n"]


@pytest.mark.parametrize("prompt", ["no column", "{}", "{a!r}", "{a:>3}", "{a"])
def test_what_is_no_template_is_refused(prompt):
    with pytest.raises(ValidationError, match="prompt"):
        Description.model_validate({**ALPACA, "skill_bucket": "chat", "prompt": prompt})


def test_instructions_and_later_exchanges(tmp_path):
    shape = {
        "shape": "columns", "system": "sys", "user": "q", "analysis": "why", "final": "a",
        "then": [{"user": "q2", "final": "a2"}],
    }  # fmt: skip
    good, _ = converse(
        tmp_path,
        shape,
        {"sys": "Be brief.", "q": "1", "why": "x", "a": "2", "q2": "3", "a2": "4"},
        {"sys": "", "q": "1", "a": "2", "q2": "", "a2": None},
    )
    assert good == [
        [
            ("system", "Be brief."), ("user", "1"), ("assistant", "analysis", "x"), ("assistant", "final", "2"),
            ("user", "3"), ("assistant", "final", "4"),
        ],
        [("user", "1"), ("assistant", "final", "2")],
    ]  # fmt: skip


def test_constants_aliases_and_rows_named_by_position(tmp_path):
    shape = ALPACA | {"license": {"constant": "MIT"}, "language": {"constant": "en"}, "skill_bucket": "code"}
    record = {"instruction": "a", "output": "b"}
    (first, second), _ = converse(tmp_path, shape, record, record, raw=True)
    assert (first["license"], first["language"], first["skill_bucket"]) == ("MIT", "en", "B3")
    assert first["source_example_id"] == "x.jsonl:0"
    assert second["source_example_id"] == f"x.jsonl:{len(json.dumps(record)) + 1}"


def test_rows_named_by_content_have_the_same_name_anywhere(tmp_path):
    shape = ALPACA | {"row_name": "content"}
    record, other = {"instruction": "a", "output": "b"}, {"instruction": "a", "output": "c"}
    rows, _ = converse(tmp_path, shape, record, other, record, raw=True)
    names = [row["source_example_id"] for row in rows]
    assert names[0] == names[2] != names[1]


def test_paths_go_through_objects_lists_and_json(tmp_path):
    shape = {
        "shape": "columns", "example_id": "info.index", "user": "tasks.0.input", "final": "extra.answer",
        "meta": ["meta.url", "all.*.n", "dotted.name"],
    }  # fmt: skip
    record = {
        "info": {"index": 5}, "tasks": [{"input": "q"}], "extra": '{"answer": "a"}', "meta": {"url": "http://x"},
        "all": [{"n": 1}, {"n": 2}], "dotted.name": "as it is", "dotted": {"name": "another"},
    }  # fmt: skip
    (row,), _ = converse(tmp_path, shape, record, raw=True)
    assert row["source_example_id"] == "5"
    assert spoken(row) == [("user", "q"), ("assistant", "final", "a")]
    assert json.loads(row["meta_json"]) == {"meta.url": "http://x", "all.*.n": [1, 2], "dotted.name": "as it is"}
    assert converse(tmp_path, shape, {**record, "tasks": []})[1] == [(0, "missing_tasks.0.input")]
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "x.parquet")
    described = Description.model_validate({"skill_bucket": "chat", **shape}).root
    (same,), _ = rows_of(tmp_path / "x.parquet", described)
    assert {**same, "file": "x.jsonl"} == row
