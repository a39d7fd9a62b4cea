"""The record that a run leaves: the same bytes wherever things are, nothing that must be private, never in the way."""

import json
from collections.abc import Mapping
from typing import ClassVar

import pytest

from etl.errors import DataError, SourceError
from etl.run.recipe import Recipe
from etl.run.record import record_of, stage_records
from etl.run.run import run_stage
from etl.stages.dedup.conversations import FOLDERS
from etl.stages.stage import Stage
from etl.storage.location import Location
from etl.storage.manifest import to_json
from etl.storage.opened import Run
from etl.storage.record import RECORD, write_record
from tests.engines.inprocess import DyingEngine, IdleEngine, InProcessEngine, KilledError
from tests.etl.stages.toys import FILTER, files, make_recipe, mixed_rows, plain_rows, run, write_jsonl
from tests.frozen import runs, tables


def recipe_of(output, source, **sections):
    given = {"stages": ["filter", "tokenize", "layout"], "filter": FILTER} | sections
    return make_recipe(output, {"a": source}, **given)


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "in" / "a.jsonl", mixed_rows(40))


@pytest.mark.parametrize("name", list(tables.stored("runs")))
def test_a_record_tells_no_place(tmp_path, name):
    here, there = (runs.load(name, tmp_path / place) for place in ("here", "there"))
    data = to_json(record_of(here))
    assert data == to_json(record_of(there))
    assert b"/" not in data.replace(b"rounds/", b""), "a path"
    assert len(record_of(here).stages) == len(here.stages) + 2


def test_what_must_not_be_told_is_left_out(tmp_path, source):
    spec = tmp_path / "my.yaml"
    spec.write_text("shape: messages\nskill_bucket: chat\n")
    recipe = Recipe.model_validate(
        {
            "name": "toy",
            "output": str(tmp_path / "out"),
            "sources": {"a": {"spec": str(spec), "path": str(source), "options": {"key": "SECRET"}}},
            "storage": {"s3": {"secret": "SECRET"}},
            "harmony": {"developer": "Read https://example.org/a and answer."},
            "stages": ["tokenize"],
            "run": {"split_bytes": 4096},
        }
    )
    tree = json.loads(to_json(record_of(recipe)))
    assert tree["recipe"] == {
        "name": "toy",
        "sources": {"a": {"spec": "my.yaml"}},
        "stages": [
            {
                "kind": "tokenize",
                "harmony": {"kind": "harmony", "developer": "Read https://example.org/a and answer."},
            }
        ],
    }
    assert str(tmp_path).encode() not in to_json(record_of(recipe))


def test_a_table_of_a_catalog_has_a_folder(tmp_path):
    sources = {"a": {"spec": "synth", "table": "toys.rows"}}
    recipe = Recipe.model_validate({"name": "toy", "output": str(tmp_path), "sources": sources, "stages": []})
    ingest, dropped = stage_records(recipe)
    assert list(ingest.folders) == ["tables/a", "ingest", "quarantine"]
    assert list(dropped.folders) == ["dropped"]


def test_a_run_leaves_it_before_its_first_task_and_writes_it_once(tmp_path, source, monkeypatch):
    recipe = recipe_of(tmp_path / "out", source)
    with pytest.raises(KilledError):
        run(recipe, DyingEngine(0))
    assert Run.open(tmp_path / "out").record == record_of(recipe)
    run(recipe)
    before = (tmp_path / "out" / RECORD).stat().st_mtime_ns
    run(recipe, IdleEngine())
    assert (tmp_path / "out" / RECORD).stat().st_mtime_ns == before
    left = Run.open(tmp_path / "out")
    assert [stage.label for stage in left.stages] == ["ingest", "filter", "tokenize", "dropped", "layout"]
    assert list(left.accounts["a"]) == [
        "ingest", "answer", "language", "english_share", "harmony", "ctx_bucket", "layout",
    ]  # fmt: skip
    assert left.own.keys() == left.datasets.keys()


def test_another_recipe_replaces_it_and_what_it_leaves_out_is_not_the_runs(tmp_path, source):
    run(recipe_of(tmp_path / "out", source))
    fewer = recipe_of(tmp_path / "out", source, stages=["filter"], filter={"steps": FILTER["steps"]})
    run(fewer)
    left = Run.open(tmp_path / "out")
    assert left.record == record_of(fewer)
    assert {"english_share", "tokenize", "corpus"} <= left.datasets.keys()
    assert set(left.own) == {"ingest", "quarantine", "filter", "dropped"}
    assert list(left.accounts["a"]) == ["ingest", "answer", "language"]
    assert left.corpus is None


def test_a_stage_alone_leaves_it_too(tmp_path, source):
    recipe = recipe_of(tmp_path / "out", source)
    run_stage(recipe, InProcessEngine(), lambda line: None, "ingest")
    assert Run.open(tmp_path / "out").record == record_of(recipe)


def test_a_run_that_fails_before_it_has_written_anything_leaves_all_as_it_was(tmp_path, source):
    without_input = recipe_of(tmp_path / "out", tmp_path / "none.jsonl", name="other")
    with pytest.raises(SourceError, match="no file of"):
        run(without_input)
    assert list((tmp_path / "out").iterdir()) == []
    run(recipe_of(tmp_path / "out", source))
    before = files(tmp_path / "out")
    with pytest.raises(SourceError, match="no file of"):
        run(without_input)
    changed = recipe_of(tmp_path / "out", source, filter={"steps": FILTER["steps"][1:]})
    with pytest.raises(DataError, match="is not committed for this recipe and input"):
        run_stage(changed, InProcessEngine(), lambda line: None, "tokenize")
    assert files(tmp_path / "out") == before


def test_it_does_not_decide_what_runs(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", plain_rows(5))
    recipe = make_recipe(tmp_path / "out", {"a": source})
    run(recipe)
    (tmp_path / "out" / RECORD).unlink()
    run(recipe, IdleEngine())
    (tmp_path / "out" / RECORD).write_bytes(b"{")
    run(recipe, IdleEngine())
    write_record(Location.of(tmp_path / "out"), record_of(recipe).model_copy(update={"name": "other"}))
    run(recipe, IdleEngine())
    assert Run.open(tmp_path / "out").record == record_of(recipe)


def test_folders_that_hang_on_the_rows_are_in_it_apart(tmp_path):
    """Those of stages that know them: a folder that a configuration never writes is in neither list."""
    stages = ["filter", "dedup", {"kind": "dedup", "name": "late", "near": None}, "tokenize"]
    filtered = {"steps": [], "cuts": FILTER["cuts"]}
    recipe = make_recipe(tmp_path, {"a": tmp_path / "a.jsonl"}, stages=stages, filter=filtered)
    record = record_of(recipe)
    by_label = {stage.label: stage for stage in record.stages}
    assert by_label["dedup"].folders_by_rows == {"candidate_components": "LABEL", **FOLDERS}
    assert by_label["late-dedup"].folders_by_rows == {f"late-{folder}": table for folder, table in FOLDERS.items()}
    assert {stage.label for stage in record.stages if stage.folders_by_rows} == {"dedup", "late-dedup"}
    assert not any(map(record.owns, ("filter", "late-near", "late-candidate_components", "paragraph")))
    assert all(map(record.owns, ("rounds/candidate_components-3", "rounds/edges-ends", "rounds/english_share-9")))


class Sometimes(Stage):
    """A stage from outside that is not sure of one of its folders."""

    kind: str = "toys:Sometimes"
    tables: ClassVar[Mapping[str, str]] = {"always": "A", "at_times": "B", "rounds/always": "C"}

    def folders(self) -> dict[str, str]:
        return {self.named("always"): "A"}


def test_a_stage_from_outside_may_be_unsure_of_a_folder():
    assert Sometimes(name="late").folders_by_rows() == {"late-at_times": "B"}
