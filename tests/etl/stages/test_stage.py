"""A stage of one's own: one file (toystage.py), one line in the union; the run, its plan and its accounts know it."""

from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from etl.engine import nothing
from etl.errors import ConfigError, DataError
from etl.run.plan import plan_recipe
from etl.run.recipe import STAGES, AnyStage, Recipe
from etl.run.run import check, label_of, run_stage
from etl.stages.context import named_folder
from etl.stages.stage import Stage
from etl.storage.dataset import Dataset
from tests.engines.inprocess import IdleEngine, InProcessEngine
from tests.etl.stages.toys import plain_rows, read, row, run, stage, write_jsonl
from tests.etl.stages.toystage import Toy

AnyToyStage = Annotated[AnyStage | Toy, Field(union_mode="left_to_right")]


class ToyRecipe(Recipe):
    """A recipe with one more kind."""

    stages: tuple[AnyToyStage, ...]  # type: ignore[assignment]  # what the union itself would say with one more line


def toy_recipe(tmp_path, *stages):
    rows = [*plain_rows(6), row(7, "q", "a", reasoning="because")]
    source = {"spec": "synth", "path": str(write_jsonl(tmp_path / "a.jsonl", rows))}
    tree = {"name": "toy", "output": str(tmp_path / "out"), "sources": {"a": source}, "stages": list(stages)}
    return ToyRecipe.model_validate(tree)


def test_a_stage_in_one_file_runs_in_a_recipe(tmp_path):
    recipe = toy_recipe(tmp_path, "toy", {"kind": "toy", "name": "late", "most": 1}, "tokenize", "layout")
    check(recipe)
    result = run(recipe)
    counts = result.accounting["a"]
    assert counts["toy"] == {"in": 7, "made": 0, "kept": 6, "too_many_messages": 1}
    assert counts["late-toy"] == {"in": 6, "made": 0, "kept": 0, "too_many_messages": 6}
    assert [(item["stage"], item["step"]) for item in read(result.dropped)].count(("late-toy", "late-toy")) == 6
    assert stage(tmp_path / "out", "late-toy").schema.names == ["id", "late_num_messages", "verdict"]
    assert result.corpus.manifest.rows_out == 0
    assert {planned.action for planned in plan_recipe(recipe).stages} == {"keep"}
    run(recipe, IdleEngine())


def test_its_columns_stand_in_the_corpus(tmp_path):
    recipe = toy_recipe(tmp_path, "toy", {"kind": "toy", "name": "more", "most": 3}, "tokenize", "layout")
    corpus = run(recipe).corpus
    assert corpus.schema.names[-2:] == ["num_messages", "more_num_messages"]
    assert {item["more_num_messages"] for item in read(corpus)} == {2}


def test_it_runs_alone_by_its_label(tmp_path):
    recipe = toy_recipe(tmp_path, "toy", {"kind": "toy", "name": "late"})
    late = label_of(recipe, "toy", "late")
    with pytest.raises(DataError, match=r"'late-toy' needs the stage 'ingest'"):
        run_stage(recipe, InProcessEngine(), nothing, late)
    run_stage(recipe, InProcessEngine(), nothing, "ingest")
    with pytest.raises(DataError, match=r"'late-toy' needs the stage 'toy', .*run jobs/stage_toy.py first"):
        run_stage(recipe, InProcessEngine(), nothing, late)
    for name in ("toy", late):
        run_stage(recipe, InProcessEngine(), nothing, name)
    assert Dataset.open(f"{recipe.output}/late-toy").manifest.rows_out == 7


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (
            "toy",
            "lat",
            "--stage lat: the recipe 'toy' has no such .* 'toy'; give no --stage, --stage late",
        ),
        ("dedup", None, "has no stage of the kind 'dedup'; it has ingest, toy, late-toy"),
        ("ingest", "late", "no such stage of the kind 'ingest'; give no --stage"),
    ],
)
def test_a_stage_that_is_not_there_is_told_what_is(tmp_path, kind, name, message):
    recipe = toy_recipe(tmp_path, "toy", {"kind": "toy", "name": "late"})
    with pytest.raises(ConfigError, match=message):
        label_of(recipe, kind, name)


def test_stages_of_one_kind_need_names(tmp_path):
    with pytest.raises(ValidationError, match=r"stages lists \['toy'\] more than once; give all but one .* a `name`"):
        toy_recipe(tmp_path, "toy", "toy")


@pytest.mark.parametrize(
    ("name", "base", "folder"),
    [(None, "near", "near"), ("late", "near", "late-near"), ("late", "rounds/edges-ends", "rounds/late-edges-ends")],
)
def test_a_name_comes_before_the_folder(name, base, folder):
    assert named_folder(name, base) == folder


@pytest.mark.parametrize("kind", STAGES, ids=lambda kind: kind.__name__)
def test_every_kind_says_what_it_writes(kind):
    assert kind.tables
    assert kind.run is not Stage.run
    assert named_folder(None, kind.model_fields["kind"].default) in {"dedup", "layout", *kind.tables}
