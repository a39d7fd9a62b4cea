"""Every configuration that ships: it loads, a run accepts it, and what it names is there."""

import json
from pathlib import Path

import pytest
import yaml

from etl import conf
from etl.config import Config
from etl.errors import StillhouseError
from etl.harmony.step import HarmonyStep
from etl.mixture.cuts import Cut
from etl.run.recipe import DROPPED_FOLDER, Recipe
from etl.run.run import check
from etl.sources.files import list_files
from etl.sources.shapes.described import Described
from etl.sources.spec import Description
from etl.stages.ingest import TABLES
from etl.step import Step

FOLDER = Path(__file__).resolve().parents[2] / "conf"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))
KINDS = {"evaluate", "recipes", "rescore", "sources", "training"}


def named(folder: str) -> list[str]:
    return conf.shipped(folder)


NEEDED = {
    ("rescore", "topk"): ["corpus=c", "output=o", "teacher.model=m"],
    ("evaluate", "held_out"): ["model=m", "suites.held_out.corpus=c", "output=o"],
}
"""What a file's first lines ask a user for."""


def given(folder: str, name: str) -> list[str]:
    return NEEDED.get((folder, name), [])


def recipe(name: str) -> Recipe:
    tree = conf.parse_yaml(conf.find(name, "recipes"), name)
    absent = [f"sources.{source}.path=none" for source, given in tree["sources"].items() if "path" not in given]
    return conf.load(Recipe, name, "recipes", ["output=out", *absent])


def test_every_file_is_of_a_kind_that_is_tested_here():
    assert {name.split("/")[0] for name in FILES} <= KINDS
    assert sum(len(named(kind)) for kind in KINDS) == len(FILES)


@pytest.mark.parametrize("name", named("sources"))
def test_sources_load(name):
    shape = conf.read(Description, name, "sources").root
    assert set(shape.required) <= set(shape.columns)


@pytest.mark.parametrize("name", named("recipes"))
def test_recipes_load(name):
    read = recipe(name)
    assert read.name == name
    for source in read.sources.values():
        assert isinstance(source.shape(), Described)


@pytest.mark.parametrize("name", named("recipes"))
def test_a_run_accepts_a_recipe(name):
    check(recipe(name))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["stages=[semantic, tokenize, layout]"], "list 'tokenize' before it"),
        (["stages=[tokenize, semantic, layout]", "semantic.survivor.score=perplexity"], "no earlier stage adds"),
        (["stages=[filter, dedup, score, tokenize, layout]"], "'kenlm' before 'score'"),
        (["stages=[kenlm, score, tokenize, layout]"], "detected_language"),
    ],
    ids=["semantic before tokenize", "survivor of semantic", "kenlm not listed", "cut before its column"],
)
def test_a_run_refuses_a_shipped_recipe_with_a_wrong_section(changed, said):
    with pytest.raises(StillhouseError, match=said):
        check(conf.load(Recipe, "demo", "recipes", ["output=out", *changed]))


@pytest.mark.parametrize("name", named("recipes"))
def test_the_folders_of_a_recipe_differ(name):
    read = recipe(name)
    folders = [*TABLES, DROPPED_FOLDER, "rounds", *(folder for stage in read.stages for folder in stage.folders())]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("name", named("recipes"))
def test_the_embedded_sources_of_a_recipe_are_there(name):
    for source, given in recipe(name).sources.items():
        if isinstance(given.path, str) and given.path.startswith("sample:"):
            assert list_files(source, given, {})


@pytest.mark.parametrize("name", named("training"))
def test_training_configurations_load(name):
    train = pytest.importorskip("training.config", exc_type=ImportError)
    tree = conf.parse_yaml(conf.find(name, "training"), name)
    given = [] if "corpus" in tree.get("data", {}) else ["data.corpus=none"]
    read = conf.load(train.TrainConfig, name, "training", given)
    assert isinstance(json.loads(conf.find(read.deepspeed, "deepspeed")), dict)


@pytest.mark.parametrize("name", named("rescore"))
def test_rescoring_configurations_load(name):
    rescore = pytest.importorskip("training.teacher.rescore", exc_type=ImportError)
    assert conf.load(rescore.RescoreConfig, name, "rescore", given("rescore", name)).output


@pytest.mark.parametrize("name", named("evaluate"))
def test_evaluation_configurations_load(name):
    evaluate = pytest.importorskip("training.evaluate.report", exc_type=ImportError)
    assert conf.load(evaluate.EvaluateConfig, name, "evaluate", given("evaluate", name)).suites


@pytest.mark.parametrize("path", sorted((FOLDER / "deepspeed").glob("*.json")), ids=lambda path: path.name)
def test_deepspeed_configurations_are_json(path):
    assert isinstance(json.loads(path.read_text("utf-8")), dict)


@pytest.mark.parametrize("name", FILES)
def test_the_first_line_says_what_the_file_is(name):
    text = (FOLDER / name).read_text("utf-8")
    assert text.startswith("# ")
    assert isinstance(yaml.safe_load(text), dict)


def subclasses(base: type) -> list[type]:
    children: list[type] = base.__subclasses__()
    found = [below for child in children for below in (child, *subclasses(child))]
    return [cls for cls in found if cls.__module__.startswith(("etl.", "training."))]


def test_located_fields_exist():
    wrong = {model: model.located - set(model.model_fields) for model in subclasses(Config)}
    assert {model: fields for model, fields in wrong.items() if fields} == {}


def test_kinds_of_steps_and_cuts_differ():
    for base in (Step, Cut):
        fields = [cls.model_fields["kind"] for cls in subclasses(base)]
        kinds = [field.default for field in fields if not field.is_required()]
        assert len(set(kinds)) == len(kinds)
    assert HarmonyStep().kind == "harmony"
