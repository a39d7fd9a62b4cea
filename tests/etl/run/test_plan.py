"""What a run would do: named field by field before it runs, and what can be adopted instead."""

import json
import shutil

import pytest

from etl.engine import Counts
from etl.errors import DataError, SchemaError
from etl.run.plan import adopt, describe, differences, plan_recipe
from tests.engines.inprocess import DyingEngine, IdleEngine, InProcessEngine, KilledError
from tests.etl.stages.toys import (
    FILTER,
    files,
    make_recipe,
    mixed_rows,
    plain_rows,
    run,
    stage,
    write_jsonl,
)


def actions(recipe):
    return {stage.stage: stage.action for stage in plan_recipe(recipe)}


def reasons(recipe, name):
    (found,) = (stage.reasons for stage in plan_recipe(recipe) if stage.stage == name)
    return found


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "a.jsonl", mixed_rows(60))


def recipe_of(tmp_path, source, **sections):
    given = {"stages": ["filter", "tokenize", "layout"], "filter": FILTER} | sections
    return make_recipe(tmp_path / "out", {"a": source}, **given)


def test_nothing_is_there_yet(tmp_path, source):
    recipe = recipe_of(tmp_path, source)
    assert [(stage.stage, stage.action, stage.reasons) for stage in plan_recipe(recipe)] == [
        ("ingest", "run", ("nothing is there yet",))
    ]
    assert not (tmp_path / "out").exists()


def test_everything_is_there(tmp_path, source):
    recipe = recipe_of(tmp_path, source)
    run(recipe)
    before = files(tmp_path / "out")
    assert set(actions(recipe).values()) == {"keep"}
    assert set(actions(recipe)) >= {"ingest", "quarantine", "filter", "english_share", "tokenize", "corpus"}
    assert files(tmp_path / "out") == before


def test_a_threshold_that_took_several_rounds_is_there(tmp_path, source):
    cut = {"kind": "percentile", "name": "sure", "column": "language_score", "keep": 0.5, "order": "highest"}
    recipe = recipe_of(tmp_path, source, filter={"steps": FILTER["steps"], "cuts": [cut]})
    run(recipe)
    found = actions(recipe)
    assert "rounds/sure-1" in found, "one round was enough"
    assert set(found.values()) == {"keep"}


def test_the_field_that_differs_is_named_and_what_depends_on_it_is_marked(tmp_path, source):
    run(recipe_of(tmp_path, source))
    changed = recipe_of(tmp_path, source, harmony={"reasoning_effort": "low"})
    assert reasons(changed, "tokenize") == ("steps[0].reasoning_effort: absent -> 'low'",)
    plan = actions(changed)
    assert (plan["ingest"], plan["filter"], plan["tokenize"]) == ("keep", "keep", "run")
    assert plan["corpus"] == "check"
    assert "runs again if tokenize gives other rows" in " ".join(describe(plan_recipe(changed)))
    result = run(changed, IdleEngineBut({"tokenize", "dropped", "cells", "corpus"}))
    assert result.corpus is not None


class IdleEngineBut(IdleEngine):
    """Refuses the tasks of all stages but some."""

    def __init__(self, stages):
        super().__init__()
        self.stages = stages

    def start(self, title, number):
        if not set(title.split("+")) <= self.stages:
            super().start(title, number)


def test_changed_input_is_named(tmp_path, source):
    recipe = recipe_of(tmp_path, source)
    run(recipe)
    write_jsonl(source, plain_rows(5))
    told = reasons(recipe, "ingest")
    assert any(line.startswith("sources.a.bytes: ") for line in told)
    assert actions(recipe)["filter"] == "check"


def test_an_interrupted_build_says_how_far_it_came(tmp_path, source):
    recipe = recipe_of(tmp_path, source, stages=["tokenize"])
    with pytest.raises(KilledError):
        run(recipe, DyingEngine(2))
    (told,) = plan_recipe(recipe)
    assert (told.stage, told.action) == ("ingest", "resume")
    done, _, splits = told.reasons[0].removesuffix(" splits are done").split()
    assert (int(done), int(splits)) == (2, len(json.loads((tmp_path / "out/ingest/_plan.json").read_text())["splits"]))


class DyingInBuckets(InProcessEngine):
    """Dies after two buckets of a stage."""

    def __init__(self, stage):
        super().__init__()
        self.stage = stage

    def start(self, title, number):
        if [done for done, _ in self.ran].count(self.stage) == 2:
            raise KilledError(title, number)
        super().start(title, number)


def test_a_shuffle_into_another_number_of_buckets_is_not_resumed(tmp_path, source):
    def in_buckets_of(bucket_bytes):
        return recipe_of(tmp_path, source, stages=["split"], run={"bucket_bytes": bucket_bytes})

    with pytest.raises(KilledError):
        run(in_buckets_of(1024), DyingInBuckets("split_hits"))
    assert reasons(in_buckets_of(1024), "split_hits") == ("2 of 4 splits are done",)
    assert actions(in_buckets_of(2048))["split_hits"] == "run"
    assert actions(in_buckets_of(1024))["split_hits"] == "resume"


def test_a_wrong_recipe_fails_as_the_run_would(tmp_path, source):
    cut = {"kind": "share", "name": "x", "column": "nothing", "values": ["en"], "share": 0.5}
    with pytest.raises(SchemaError, match="nothing"):
        plan_recipe(recipe_of(tmp_path, source, filter=FILTER | {"cuts": [cut]}))


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, ["a: 1 -> 2"]),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, ["a.b[1]: 2 -> 3"]),
        ({"a": [1]}, {"a": [1, 2]}, ["a: [1] -> [1, 2]"]),
        ({"a": 1}, {"b": "x"}, ["a: 1 -> absent", "b: absent -> 'x'"]),
    ],
)
def test_differences(old, new, lines):
    assert differences(old, new) == lines


# --- adopt -----------------------------------------------------------------------------------------------------------


def test_an_adopted_stage_is_kept_and_its_manifest_says_so(tmp_path, source):
    run(recipe_of(tmp_path, source))
    changed = recipe_of(tmp_path, source, harmony={"reasoning_effort": "low"})
    old = stage(tmp_path / "out", "tokenize").manifest
    assert adopt(changed, "tokenize") == ["steps[0].reasoning_effort: absent -> 'low'"]
    manifest = stage(tmp_path / "out", "tokenize").manifest
    assert manifest.adopted == (
        {"fingerprint": old.fingerprint, "differs": ["steps[0].reasoning_effort: absent -> 'low'"]},
    )
    assert (manifest.content_digest, manifest.parts) == (old.content_digest, old.parts)
    assert set(actions(changed).values()) == {"keep"}
    run(changed, IdleEngine())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("filter", "is what this recipe makes already"),
        ("nothing", "there is no stage 'nothing' to adopt; so far there are: ingest"),
        ("corpus", "is what this recipe makes already"),
    ],
)
def test_what_cannot_be_adopted_is_refused(tmp_path, source, name, message):
    run(recipe_of(tmp_path, source))
    before = files(tmp_path / "out")
    with pytest.raises(DataError, match=message):
        adopt(recipe_of(tmp_path, source, harmony={"reasoning_effort": "low"}), name)
    assert files(tmp_path / "out") == before


def test_other_columns_are_not_adopted(tmp_path, source):
    run(recipe_of(tmp_path, source))
    fewer = recipe_of(tmp_path, source, filter={"steps": [{"kind": "answer"}]})
    with pytest.raises(DataError, match="has the columns"):
        adopt(fewer, "filter")


def test_rows_of_another_cut_are_not_adopted(tmp_path, source):
    run(recipe_of(tmp_path, source))
    shutil.rmtree(tmp_path / "out" / "ingest")
    finer = recipe_of(tmp_path, source, stages=[], run={"split_bytes": 1 << 12})
    run(finer)
    changed = recipe_of(tmp_path, source, filter=FILTER | {"steps": [{"kind": "answer"}, *FILTER["steps"][1:]]})
    with pytest.raises(DataError, match="cut in another way"):
        adopt(changed, "filter")


# --- maps that run together ------------------------------------------------------------------------------------------


def test_maps_without_a_barrier_run_as_one_job(tmp_path, source):
    engine = InProcessEngine()
    run(recipe_of(tmp_path, source, stages=["filter", "tokenize", "layout"], filter={"steps": FILTER["steps"]}), engine)
    assert {name for name, _ in engine.ran} == {"ingest+filter+tokenize+dropped+cells", "corpus"}


def test_together_or_apart_gives_the_same_datasets(tmp_path, source):
    steps = {"filter": {"steps": FILTER["steps"]}}
    run(recipe_of(tmp_path / "one", source, **steps))
    for stages in ([], ["filter"], ["filter", "tokenize"], ["filter", "tokenize", "layout"]):
        run(recipe_of(tmp_path / "two", source, stages=stages, **steps))
    for name in ("ingest", "filter", "tokenize", "dropped", "cells", "corpus"):
        one, two = (stage(tmp_path / place / "out", name).manifest for place in ("one", "two"))
        assert one == two


def test_counts_add_up():
    assert Counts(1, 2, 3, 4) + Counts(10, 20, 30, 40) == Counts(11, 22, 33, 44)


def test_an_old_result_is_not_lost_when_its_input_runs_again_to_the_same_rows(tmp_path, source):
    """A dataset is only built anew when its input's rows have changed."""
    recipe = recipe_of(tmp_path, source, filter={"steps": FILTER["steps"]})
    run(recipe)
    (tmp_path / "out" / "ingest" / "_manifest.json").unlink()
    run(recipe, IdleEngine())
