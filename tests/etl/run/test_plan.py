"""What a run would do: named field by field before it runs, and what can be adopted instead."""

import json
import re
import shutil

import pytest

from etl.errors import DataError, SchemaError
from etl.run.plan import adopt, describe, differences, plan_recipe
from etl.storage.opened import Run
from etl.storage.progress import Counts
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
from tests.frozen import runs, tables


def actions(recipe):
    return {stage.stage: stage.action for stage in plan_recipe(recipe).stages}


def reasons(recipe, name):
    (found,) = (stage.reasons for stage in plan_recipe(recipe).stages if stage.stage == name)
    return found


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "a.jsonl", mixed_rows(60))


def recipe_of(tmp_path, source, **sections):
    given = {"stages": ["filter", "tokenize", "layout"], "filter": FILTER} | sections
    return make_recipe(tmp_path / "out", {"a": source}, **given)


def test_nothing_is_there_yet(tmp_path, source):
    """Every stage is listed with its folders; those that depend on the rows are not."""
    recipe = recipe_of(tmp_path, source)
    planned = plan_recipe(recipe)
    assert [(stage.label, stage.stage) for stage in planned.stages] == [
        ("ingest", "ingest"),
        ("ingest", "quarantine"),
        ("filter", "filter"),
        ("filter", "rounds/english_share-2"),
        ("filter", "english_share"),
        ("tokenize", "tokenize"),
        ("dropped", "dropped"),
        ("layout", "cells"),
        ("layout", "corpus"),
    ]
    assert {(stage.action, stage.reasons) for stage in planned.stages} == {("run", ("not written yet",))}
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
    assert "will re-run only if tokenize changes" in " ".join(describe(plan_recipe(changed)))
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
    told, *after = plan_recipe(recipe).stages
    assert (told.stage, told.action) == ("ingest", "resume")
    assert [(stage.stage, stage.action) for stage in after] == [
        ("quarantine", "run"),
        ("tokenize", "resume"),
        ("dropped", "resume"),
    ]
    done, _, splits = told.reasons[0].removesuffix(" splits are done").split()
    assert (int(done), int(splits)) == (2, len(json.loads((tmp_path / "out/ingest/_plan.json").read_text())["splits"]))


def test_an_interrupted_run_in_an_object_store(folder, source):
    recipe = make_recipe(folder.url, {"a": source}, stages=["filter", "split"], filter={"steps": FILTER["steps"]})
    with pytest.raises(KilledError):
        run(recipe, DyingInJob("split_hits"))
    found = {stage.stage: (stage.action, stage.reasons) for stage in plan_recipe(recipe).stages}
    assert found["filter"] == ("keep", ())
    action, (told,) = found["split_hits"]
    assert action == "resume"
    assert re.fullmatch(r"[01] of \d+ splits are done", told)
    assert found["split"] == found["dropped"] == ("run", ("not written yet",))


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


class DyingInJob(InProcessEngine):
    """Dies in the second task of a job, or in its only one."""

    def __init__(self, title):
        super().__init__()
        self.title = title

    def run_splits(self, work, items, task):
        self.alone = len(items) == 1
        super().run_splits(work, items, task)

    def run_buckets(self, work, buckets, exchange, reduce):
        self.alone = len(buckets) == 1
        super().run_buckets(work, buckets, exchange, reduce)

    def start(self, title, number):
        if title == self.title and (self.alone or title in [done for done, _ in self.ran]):
            raise KilledError(title, number)
        super().start(title, number)


def test_after_a_kill_in_any_job_the_plan_is_what_the_next_run_does(tmp_path, source):
    """What is done is kept, the job that was hit is resumed where it was, and everything after it is listed."""
    sections = {"stages": ["filter", "dedup", "tokenize", "split", "layout"], "dedup": {"near": {"num_canaries": 5}}}
    engine = InProcessEngine()
    run(recipe_of(tmp_path / "whole", source, **sections), engine)
    jobs = list(dict.fromkeys(title for title, _ in engine.ran))
    recipe = recipe_of(tmp_path, source, **sections)
    written = set(actions(recipe_of(tmp_path / "whole", source, **sections)))
    for title in jobs[::2]:
        with pytest.raises(KilledError):
            run(recipe, DyingInJob(title))
        planned = {stage.stage: stage for stage in plan_recipe(recipe).stages}
        hit = set(title.split("+"))
        committed = set(Run.open(tmp_path / "out").committed)
        assert {name for name, stage in planned.items() if stage.action == "keep"} == committed
        assert {planned[name].action for name in hit} == {"resume"}
        assert {planned[name].action for name in planned.keys() - committed - hit} <= {"run", "resume"}
        assert planned.keys() <= written
        assert all(name.startswith("rounds/") for name in written - planned.keys())
    left = {name: splits_left(planned[name]) for name in hit}
    engine = InProcessEngine()
    run(recipe, engine)
    assert {name: sum(name in title.split("+") for title, _ in engine.ran) for name in hit} == left
    assert set(actions(recipe).values()) == {"keep"}


def splits_left(stage):
    """Splits that a resumed stage has yet to do."""
    done, _, splits = stage.reasons[0].removesuffix(" splits are done").split()
    return int(splits) - int(done)


def test_what_an_interrupted_build_is_made_from_decides_whether_it_is_resumed(tmp_path, source):
    def of(steps, cuts=()):
        return recipe_of(
            tmp_path, source, stages=["filter", "split"], filter={"steps": steps, "cuts": cuts},
            run={"bucket_bytes": 1024},
        )  # fmt: skip

    with pytest.raises(KilledError):
        run(of(FILTER["steps"]), DyingInBuckets("split_hits"))
    assert actions(of(FILTER["steps"]))["split_hits"] == "resume"
    assert reasons(of([{"kind": "answer"}]), "split_hits") == ("starts over, because filter will re-run",)
    with pytest.raises(KilledError):
        run(of(FILTER["steps"], FILTER["cuts"]), DyingInBuckets("split_hits"))
    other = [FILTER["steps"][0], FILTER["steps"][1] | {"min_score": 0.1}]
    assert reasons(of(other, FILTER["cuts"]), "split_hits") == (
        "2 of 4 splits are done; starts over if english_share changes",
    )
    assert actions(of(other, FILTER["cuts"]))["split_hits"] == "check"


def test_what_stands_behind_a_gap_is_looked_at_when_the_gap_is_filled(tmp_path, source):
    recipe = recipe_of(tmp_path, source, stages=["tokenize", "split", "layout"])
    run(recipe)
    shutil.rmtree(tmp_path / "out" / "split_hits")
    planned = {stage.stage: stage for stage in plan_recipe(recipe).stages}
    assert (planned["tokenize"].action, planned["split_hits"].action) == ("keep", "run")
    assert [planned[name].action for name in ("split", "dropped", "cells", "corpus")] == ["check"] * 4
    assert planned["corpus"].reasons == ("will re-run only if an earlier stage changes",)
    run(recipe, IdleEngineBut({"split_hits"}))
    shutil.rmtree(tmp_path / "out" / "split_hits")
    with pytest.raises(DataError, match="there is no stage 'corpus' to adopt; the stages so far: ingest"):
        adopt(recipe, "corpus")


@pytest.mark.parametrize("name", list(tables.stored("runs")))
def test_a_shipped_recipe_is_planned_with_the_folders_that_it_writes(tmp_path, name):
    recipe = runs.load(name, tmp_path / "out")
    planned = plan_recipe(recipe)
    written = tables.stored("runs")[name].keys()
    listed = [stage.stage for stage in planned.stages]
    assert len(listed) == len(set(listed))
    assert set(listed) <= written
    assert all(item.startswith(("rounds/", "candidate_components")) for item in written - set(listed))
    assert {stage.action for stage in planned.stages} == {"run"}
    assert [size.source for size in planned.inputs] == list(recipe.sources)
    assert list(tmp_path.iterdir()) == []


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
        ("filter", "is current already"),
        ("nothing", "there is no stage 'nothing' to adopt; the stages so far: ingest"),
        ("corpus", "is current already"),
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
    with pytest.raises(DataError, match="split in another way"):
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
