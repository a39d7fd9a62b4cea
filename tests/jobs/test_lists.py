"""`stillhouse recipes|sources|stages|steps|cuts|describe`: complete, and with examples that are valid."""

import json
from typing import get_args

import pytest
import yaml
from pydantic import TypeAdapter
from typer.testing import CliRunner

from etl import conf
from etl.config import FROM_YAML
from etl.pipeline import AnyCut, AnyStep
from etl.run.recipe import STAGES, AnyStage, Recipe
from jobs.cli import app
from jobs.lists import GROUPS, listed, named

UNIONS = {"stages": AnyStage, "steps": AnyStep, "cuts": AnyCut}
EVERYTHING = [(group, item) for group in GROUPS for item in listed(group)]


def call(*words):
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize(("group", "union"), UNIONS.items())
def test_a_list_has_every_kind_of_its_union(group, union):
    kinds = [model.model_fields["kind"].default for model in get_args(get_args(union)[0])]
    assert [item.name for item in listed(group)] == kinds


def test_lists_have_every_shipped_file():
    assert [item.name for item in listed("recipes")] == conf.shipped("recipes")
    assert [item.name for item in listed("sources")] == conf.shipped("sources")
    assert {item.model for item in listed("stages")} == set(STAGES)


@pytest.mark.parametrize(("group", "item"), EVERYTHING, ids=[f"{group}-{item.name}" for group, item in EVERYTHING])
def test_everything_says_what_it_is_for_and_has_an_example_that_is_valid(group, item):
    assert item.purpose.endswith(".")
    assert "\n" not in item.purpose
    if group in UNIONS:
        tree = yaml.safe_load(item.example)
        found = TypeAdapter(UNIONS[group]).validate_python(tree, context={FROM_YAML: True})
        assert isinstance(found, item.model)
        assert found.kind == item.name
    elif group == "recipes":
        missing = {"sources": {"toy": {"spec": "text", "path": "toy.jsonl"}}, "output": "out"}
        assert Recipe.model_validate({**missing, **yaml.safe_load(item.example), "sources": missing["sources"]})


@pytest.mark.parametrize("group", GROUPS)
def test_a_list_is_one_line_each(group):
    result = call(group)
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == [item.name for item in listed(group)]
    assert [item["name"] for item in json.loads(call(group, "--json").stdout)] == [item.name for item in listed(group)]


def test_describe_shows_keys_defaults_and_an_example():
    lines = call("describe", "language").stdout.splitlines()
    assert lines[0].startswith("language (step): ")
    assert "    characters: whole number, at least 1 or null; default null" in lines
    assert lines[-2:] == ["  example", "    {kind: language, keep: [en, German]}"]


def test_describe_shows_everything_of_a_name():
    assert set(named("synth")) == {"recipes", "sources"}
    found = json.loads(call("describe", "synth", "--json").stdout)
    assert set(found) == {"recipes", "sources"}
    assert "skill_bucket" in {key["name"] for key in found["sources"]["keys"]}
    assert {key["name"] for key in found["sources"]["models"]["SkillRule"]} == {"column", "by_value", "default"}


def test_describe_of_nothing_names_the_nearest():
    result = call("describe", "langage")
    assert result.exit_code == 2
    assert "there is no 'langage'; did you mean 'language'?" in result.output
