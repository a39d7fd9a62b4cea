"""What a source and the description of a data set refuse, and which columns they name."""

import pytest
import yaml
from pydantic import ValidationError

from etl.errors import ConfigError
from etl.sources.shapes.columns import ColumnsShape
from etl.sources.shapes.text import TextShape
from etl.sources.spec import Description, Source

COLUMNS = {
    "shape": "columns",
    "example_id": "id",
    "user": "question",
    "final": "answer",
    "skill_bucket": {"default": "B1"},
}
TEXT = {"shape": "text", "example_id": "id", "text": "body", "skill_bucket": {"default": "B5"}}


def described(tree):
    return Description.model_validate(tree).root


def test_a_description_is_of_the_shape_that_it_names():
    assert isinstance(described(COLUMNS), ColumnsShape)
    assert isinstance(described(TEXT), TextShape)
    with pytest.raises(ValidationError, match="tree"):
        described(COLUMNS | {"shape": "tree"})


def test_required_columns_are_the_name_and_what_every_row_says():
    assert described(COLUMNS | {"analysis": "thought"}).required == ("id", "question", "answer")
    assert described(TEXT).required == ("id", "body")


def test_said_is_what_is_said():
    assert described(COLUMNS).said == ("question", "answer")
    assert described(COLUMNS | {"analysis": "thought"}).said == ("question", "thought", "answer")
    assert described(TEXT).said == ("body",)


def test_text_columns_are_all_that_are_named_each_once():
    more = {"language": "lang", "split_key": "id", "skill_bucket": {"column": "kind", "default": "B1"}}
    assert described(COLUMNS | more).text_columns == ("id", "question", "answer", "lang", "kind")


@pytest.mark.parametrize("rule", [{"default": "B9"}, {"default": "B1", "column": "kind", "by_value": {"x": "C1"}}])
def test_a_skill_bucket_that_does_not_exist_is_refused(rule):
    with pytest.raises(ValidationError, match="skill_bucket"):
        described(COLUMNS | {"skill_bucket": rule})


def test_an_unknown_key_of_a_description_is_refused():
    with pytest.raises(ValidationError, match="licence"):
        described(TEXT | {"licence": "x"})


def test_a_source_is_in_one_place():
    with pytest.raises(ValidationError, match=r"give either `path` .* or `table`"):
        Source.model_validate({"spec": "synth", "path": "a.jsonl", "table": "db.rows"})


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"table": "db.rows", "shards": "list.txt"}, "`shards` is for files"),
        ({"table": "db.rows", "shuffle": 3}, "`shuffle` is for files"),
        ({"path": "hf://datasets/a/b/*.parquet", "revision": "v1"}, "`revision` is of the files"),
        ({"path": ["a", "b"], "shards": "list.txt"}, "`path` is the one folder"),
    ],
)
def test_what_says_which_files_is_for_files(source, told):
    with pytest.raises(ValidationError, match=told):
        Source.model_validate({"spec": "synth", **source})


def test_a_table_takes_no_options():
    with pytest.raises(ValidationError, match="`options` are for the files of a `path`"):
        Source(spec="synth", table="db.rows", options={"anon": True})


def test_patterns_are_the_paths():
    assert Source(spec="synth", path="a.jsonl").patterns == ("a.jsonl",)
    assert Source(spec="synth", path=("a.jsonl", "b/*.parquet")).patterns == ("a.jsonl", "b/*.parquet")
    assert Source(spec="synth", table="db.rows").patterns == ()


@pytest.mark.parametrize("path", ["s3://name:secret@bucket/in", ("a.jsonl", "s3://name:secret@bucket/in")])
def test_credentials_in_a_path_are_refused_and_not_repeated(path):
    with pytest.raises(ValidationError) as caught:
        Source(spec="synth", path=path)
    assert "secret@" not in str(caught.value).split("input_value")[0]


def test_options_do_not_show_when_a_source_is_printed():
    assert "secret" not in repr(Source(spec="synth", path="s3://b/in", options={"key": "secret"}))


def test_columns_of_a_recipe_take_the_place_of_those_of_the_description(tmp_path):
    spec = tmp_path / "mine.yaml"
    spec.write_text(yaml.safe_dump(TEXT))
    plain = Source(spec=str(spec), path="a.jsonl").shape()
    named = Source(spec=str(spec), path="a.jsonl", id_column="number", text_column="page").shape()
    assert (plain.required, named.required) == (("id", "body"), ("number", "page"))


def test_a_text_column_is_for_raw_text(tmp_path):
    spec = tmp_path / "mine.yaml"
    spec.write_text(yaml.safe_dump(COLUMNS))
    with pytest.raises(
        ConfigError, match=r"text_column: 'page' is for raw text.*has the shape 'columns'.*use spec: text"
    ):
        Source(spec=str(spec), path="a.jsonl", text_column="page").shape()


def test_a_description_that_is_absent_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        Source(spec=str(tmp_path / "nowhere.yaml"), path="a.jsonl").shape()
