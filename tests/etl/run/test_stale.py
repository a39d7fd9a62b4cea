"""A second recipe on the output of a first: run, plan and training say what the first one left."""

import shutil

import pytest

from etl.run.plan import describe, plan_recipe
from etl.run.record import record_of
from etl.run.run import run_recipe
from etl.storage.location import Location
from etl.storage.record import write_record
from etl.storage.stale import outdated, stale_folders
from tests.engines.inprocess import DyingEngine, InProcessEngine, KilledError
from tests.etl.stages.toys import FILTER, make_recipe, mixed_rows, run, write_jsonl

FIRST = ["filter", "dedup", "tokenize", "layout"]
SECOND = ["filter", "tokenize", "layout"]
OF_DEDUP = {
    "candidates", "clusters", "components", "edges", "exact", "exact_hits", "near", "near_hits", "pairs", "sets",
}  # fmt: skip


def recipe_of(output, stages, **sections):
    given = {"stages": stages, "filter": FILTER} | sections
    return make_recipe(output, {"a": output.parent / "a.jsonl"}, **given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Above DIR/out of the first recipe, and its input."""
    folder = tmp_path_factory.mktemp("first")
    write_jsonl(folder / "a.jsonl", mixed_rows(60))
    run(recipe_of(folder / "out", FIRST))
    return folder


@pytest.fixture
def output(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy" / "out"


def told(recipe, engine=None):
    lines = []
    run_recipe(recipe, engine or InProcessEngine(), lines.append)
    return [line for line in lines if "stale" in line]


def test_one_recipe_has_nothing_stale(output):
    recipe = recipe_of(output, FIRST)
    assert plan_recipe(recipe).stale == ()
    assert told(recipe) == []
    assert outdated(str(output / "corpus")) == ""


def test_rounds_above_the_pairs_of_one_task_are_the_runs_own(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", mixed_rows(60))
    recipe = recipe_of(tmp_path / "out", FIRST, run={"max_component_edges": 0})
    assert told(recipe) == []
    assert (tmp_path / "out/candidate_components").is_dir()


def test_what_the_first_recipe_left_is_told_by_plan_before_and_by_run_after(output):
    recipe = recipe_of(output, SECOND)
    planned = plan_recipe(recipe)
    assert {one.stage for one in planned.stale} == OF_DEDUP
    assert not OF_DEDUP & {one.stage for one in planned.stages}
    text = list(describe(planned))
    heading = text.index(f"from an earlier recipe; after the next run, {planned.remedy} removes it")
    assert [line.split() for line in text[heading + 1 :]] == [[folder, "stale"] for folder in sorted(OF_DEDUP)]
    named = [line.partition(":")[0] for line in told(recipe)]
    assert named == ["candidates", "clusters", "components", "stale"]
    assert f"and {len(OF_DEDUP) - 3} more; `stillhouse sweep {output} --stale --delete`" in told(recipe)[-1]
    assert outdated(str(output / "corpus")) == "", "it is the second recipe's"


def test_a_corpus_that_the_second_run_has_not_come_to_is_told(output):
    corpus = str(output / "corpus")
    write_record(Location.of(output), record_of(recipe_of(output, SECOND)))
    assert "has other steps before it (exact, near)" in outdated(corpus)
    shutil.rmtree(output / "dropped")
    assert "which no stage of the recipe that last ran in" in outdated(corpus)
    write_record(Location.of(output), record_of(recipe_of(output, FIRST[:-1])))
    assert "no stage of the recipe that last ran in" in outdated(corpus)


@pytest.mark.parametrize("tasks", [0, 9])
def test_a_killed_run_of_a_changed_recipe_leaves_no_corpus_that_is_silent(output, tasks):
    changed = {"steps": FILTER["steps"], "cuts": [{"kind": "share", "name": "english_share", "column": "language",
               "values": ["en"], "share": 0.9}]}  # fmt: skip
    recipe = recipe_of(output, FIRST, filter=changed)
    with pytest.raises(KilledError):
        run(recipe, DyingEngine(tasks))
    assert "run the recipe that last ran in" in outdated(str(output / "corpus"))
    assert stale_folders(Location.of(output), record_of(recipe)) == ()
    run(recipe)
    assert outdated(str(output / "corpus")) == ""


def test_what_was_deleted_to_save_space_says_nothing(output):
    for folder in ("near", "candidates", "dropped", "ingest"):
        shutil.rmtree(output / folder)
    assert outdated(str(output / "corpus")) == ""


def test_a_look_that_fails_does_not_undo_a_run(output):
    (output / "near/_manifest.json").write_bytes(b"{")
    (line,) = told(recipe_of(output, SECOND))
    assert "not looked for" in line
    assert (output / "corpus/_manifest.json").exists()
