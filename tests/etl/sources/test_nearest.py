"""What a glance at a file sees, and which description is found for its rows."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.sources.glance import Glance, glance
from etl.sources.nearest import nearest
from etl.storage.location import Location
from tests.etl.sources.public_rows import PUBLIC_ROWS, TALK


def best(*rows):
    """The description found for some rows, without the skill bucket."""
    fit = nearest(Glance("jsonl", list(rows)))[0]
    assert fit.share == 1
    return {key: value for key, value in fit.tree.items() if key != "skill_bucket"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "a?", "input": "b", "output": "c"},
         {"shape": "columns", "prompt": "{instruction}\n\n{input}", "final": "output"}),
        ({"Question": "a?", "Final_Answer": "because"},
         {"shape": "columns", "user": "Question", "final": "Final_Answer"}),
        ({"问题": "一？", "回答": "二。"}, {"shape": "columns", "user": "问题", "final": "回答"}),
        ({"q": {"text": "a?"}, "response": "c"}, {"shape": "columns", "user": "q.text", "final": "response"}),
        ({"system": "s", "query": "a?", "cot": "hm", "response": "c"},
         {"shape": "columns", "user": "query", "analysis": "cot", "final": "response", "system": "system"}),
        ({"dialog": TALK}, {"shape": "messages", "messages": "dialog"}),
        ({"dialog": json.dumps(TALK)}, {"shape": "messages", "messages": "dialog"}),
        ({"d": [{"who": "用户", "says": "一？"}, {"who": "助手", "says": "二。"}]},
         {"shape": "messages", "messages": "d", "roles": {"用户": "user", "助手": "assistant"}, "role_keys": ["who"],
          "content_keys": ["says"]}),
        ({"c": [{"human": "a?", "assistant": "b"}]}, {"shape": "pairs", "pairs": "c"}),
        ({"c": [{"input": "a?", "output": "b"}]},
         {"shape": "pairs", "pairs": "c", "user_key": "input", "assistant_key": "output"}),
        ({"instruction": "a?", "output": "b", "history": [["c?", "d"]]},
         {"shape": "pairs", "pairs": "history", "last": {"user": "instruction", "final": "output"}}),
        ({"t": "Human: a?\n\nAssistant: b"},
         {"shape": "transcript", "text": "t", "between": "\n\n",
          "marks": {"Human:": "user", "Assistant:": "assistant", "System:": "system"}}),
        ({"prompt": "a?", "chosen": "b", "rejected": "c"},
         {"shape": "preference", "prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}),
        ({"prompt": "a?", "completion": "b", "label": True},
         {"shape": "preference", "prompt": "prompt", "completion": "completion", "label": "label"}),
        ({"instruction": "a?", "responses": ["b", "c"], "rewards": [1.0, 0.5]},
         {"shape": "preference", "prompt": "instruction", "responses": "responses", "rewards": "rewards"}),
        ({"problem": "1+1?", "answer": "2"}, {"shape": "verifiable", "answer": "answer", "user": "problem"}),
        ({"verification_question": "1+1?", "expected_verification": "2"},
         {"shape": "verifiable", "answer": "expected_verification", "user": "verification_question"}),
        ({"prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"ground_truth": "2"}},
         {"shape": "verifiable", "answer": "reward_model.ground_truth", "user": "prompt"}),
        ({"turn_question_1": "a?", "question_1": "a?", "answer_1": "b", "question_2": "c?", "answer_2": "d"},
         {"shape": "columns", "user": "question_1", "final": "answer_1",
          "then": [{"user": "question_2", "final": "answer_2"}], "meta": ["turn_question_1"]}),
        ({"userQuestion": "a?", "gpt4_response": "b"},
         {"shape": "columns", "user": "userQuestion", "final": "gpt4_response"}),
        ({"d": [{"speaker": "A", "says": "a?"}, {"speaker": "B", "says": "b"}]},
         {"shape": "messages", "messages": "d", "roles": {"A": "user", "B": "assistant"}, "role_keys": ["speaker"],
          "content_keys": ["says"]}),
        ({"contents": [{"role": "user", "parts": [{"text": "a?"}]}, {"role": "model", "parts": [{"text": "b"}]}]},
         {"shape": "messages", "messages": "contents", "content_keys": ["parts"]}),
        ({"title": "How?", "body": "So and so.", "answer": "Like this."},
         {"shape": "columns", "prompt": "{title}\n\n{body}", "final": "answer"}),
        ({"prompt": "a?"}, {"shape": "prompts", "user": "prompt"}),
        ({"content": "A long page.", "url": "http://a"}, {"shape": "text", "text": "content", "meta": ["url"]}),
    ],
)  # fmt: skip
def test_rows_get_the_description_that_fits_them(row, expected):
    assert best(row, row) == expected


@pytest.mark.parametrize("name", PUBLIC_ROWS)
def test_rows_of_public_data_sets_are_their_shape(name):
    shape, row = PUBLIC_ROWS[name]
    assert best(row, row)["shape"] == shape


@pytest.mark.parametrize("spell", [str.upper, str.title, lambda name: name.replace("_", ""), lambda name: f" {name} "])
def test_names_may_be_spelled_otherwise(spell):
    for name in ("openorca", "evol_instruct", "thinking_column", "openmathinstruct", "orca_dpo", "kto", "moss_history"):
        shape, row = PUBLIC_ROWS[name]
        assert best({spell(key): value for key, value in row.items()})["shape"] == shape, name


@settings(max_examples=15)
@given(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8), st.booleans())
def test_lists_of_messages_are_found_under_any_name(name, as_json):
    talk = json.dumps(TALK) if as_json else TALK
    found = best({name: talk, f"{name}_": {"inner": [{"human": "a?", "assistant": "b"}]}})
    assert (found["shape"], found["messages"]) == ("messages", name)


def test_ids_licences_languages_and_the_rest_are_named():
    rows = [
        {
            "prompt_id": n,
            "prompt": f"{n}?",
            "response": "b",
            "lang": "en",
            "licence": "MIT",
            "info": {"src": "x", "n": n},
        }
        for n in range(3)
    ]
    assert best(*rows) == {
        "shape": "columns", "user": "prompt", "final": "response", "example_id": "prompt_id", "license": "licence",
        "language": "lang", "meta": ["info"],
    }  # fmt: skip


def test_what_a_program_is_written_in_is_no_language():
    assert "language" not in best({"question": "a?", "answer": "b", "language": "python"})


def test_nothing_fits_rows_without_text():
    assert nearest(Glance("jsonl", [{"a": 1, "b": 2.5}])) == []


def test_a_glance_names_the_columns_and_their_types(tmp_path):
    rows = [
        {"a": 1, "b": "x", "c": [1, 2.5], "d": {"e": None}, "f": '[{"g": 1}]', "h": True},
        {"a": None, "b": "y", "c": [], "d": None, "f": "[]", "h": False},
    ]
    (tmp_path / "x.jsonl").write_text("\n".join([json.dumps(rows[0]), "{not json", "[1]", json.dumps(rows[1])]))
    found = glance(Location.of(tmp_path / "x.jsonl"), "jsonl")
    assert found.rows == rows
    assert [reason.partition(":")[0] for reason in found.unread] == ["invalid_json", "not_an_object"]
    assert {column.name: column.kind for column in found.columns} == {
        "a": "int", "b": "string", "c": "list<double>", "d": "object {e}",
        "f": "JSON text of list<object {g}>", "h": "bool",
    }  # fmt: skip


def test_a_glance_is_the_same_of_every_format(tmp_path):
    table = pa.table({"id": ["1", "2"], "text": ["a", "b"]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "x.csv").write_text("id,text\n1,a\n2,b\n")
    (tmp_path / "x.tsv").write_text("id\ttext\n1\ta\n2\tb\n")
    (tmp_path / "x.jsonl").write_text(json.dumps(table.to_pylist(), indent=2))
    for ending in ("parquet", "arrow", "csv", "tsv", "jsonl"):
        found = glance(Location.of(tmp_path / f"x.{ending}"), ending)
        assert (found.rows, found.damage) == (table.to_pylist(), None), ending


def test_a_column_without_a_form_as_json_is_noted(tmp_path):
    table = pa.table({"text": ["a"], "when": pa.array([None], pa.timestamp("s", "No/Where"))})
    pq.write_table(table, tmp_path / "x.parquet")
    found = glance(Location.of(tmp_path / "x.parquet"), "parquet")
    assert found.rows == [{"text": "a"}]
    assert list(found.without_json) == ["when"]


def test_of_a_damaged_file_the_rows_before_the_damage_are_seen(tmp_path):
    (tmp_path / "x.jsonl").write_text('[{"text": "a"}, {"text": "b"}, {"te')
    found = glance(Location.of(tmp_path / "x.jsonl"), "jsonl")
    assert "is truncated" in found.damage
    assert found.rows == [{"text": "a"}, {"text": "b"}]


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfA long page.\n")
    found = glance(Location.of(str(tmp_path / "a.txt")), "text")
    assert found.rows == [{"id": "a.txt:0", "text": "A long page.\n", "path": "a.txt"}]
    assert nearest(found)[0].tree["text"] == "text"


def test_columns_whose_names_say_nothing_are_taken_by_their_order():
    rows = [
        {"nr": n, "code": "x1", "Frage": f"Was ist {n}?", "Antwort": f"Die Zahl nach {n - 1}."} for n in range(1, 4)
    ]
    assert best(*rows) == {"shape": "columns", "user": "Frage", "final": "Antwort", "meta": ["nr", "code"]}
    assert nearest(Glance("jsonl", rows))[0].reason == "columns from Frage, Antwort, by their order: 3 of 3 rows"


def test_a_lone_column_of_running_text_is_documents():
    assert best({"Satz": "Ein kurzer Satz."}, {"Satz": "Noch einer."}) == {"shape": "text", "text": "Satz"}


def test_codes_and_numbers_are_no_conversation():
    assert nearest(Glance("jsonl", [{"sku": "a1", "price": 3}, {"sku": "b2", "price": 4}])) == []
