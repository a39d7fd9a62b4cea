"""Stages one by one, as a scheduler starts them: the same files as one run, a clear refusal out of order."""

from pathlib import Path

import pytest

from etl.errors import ConfigError, DataError
from etl.run.recipe import STAGES as STAGES_OF_PACKAGE
from etl.run.run import run_stage
from tests.engines.inprocess import IdleEngine, InProcessEngine
from tests.etl.stages.toys import FILTER, files, make_recipe, mixed_rows, run, write_parquet

STAGES = ("filter", "dedup", "tokenize", "split", "layout")
JOBS = Path(__file__).resolve().parents[3] / "jobs"


def silent(line):
    """No report."""


@pytest.fixture
def recipe(tmp_path):
    source = write_parquet(tmp_path / "a.parquet", mixed_rows(40))
    return lambda name: make_recipe(tmp_path / name, {"a": source}, stages=STAGES, filter=FILTER)


def test_one_by_one_gives_the_files_of_one_run(recipe, tmp_path):
    run(recipe("whole"))
    for stage in ("ingest", *STAGES):
        run_stage(recipe("single"), InProcessEngine(), silent, stage)
    assert manifests_of(tmp_path / "single") == manifests_of(tmp_path / "whole")


def manifests_of(output):
    return {path: data for path, data in files(output).items() if path.endswith("_manifest.json")}


def test_a_stage_does_its_own_work_only(recipe, tmp_path):
    run_stage(recipe("out"), InProcessEngine(), silent, "ingest")
    engine = InProcessEngine()
    run_stage(recipe("out"), engine, silent, "filter")
    assert {folder.name for folder in (tmp_path / "out").iterdir() if not folder.name.startswith("_")} == {
        "ingest", "quarantine", "filter", "english_share", "rounds",
    }  # fmt: skip
    run_stage(recipe("out"), IdleEngine(), silent, "filter")


def test_what_is_not_committed_is_named(recipe, tmp_path):
    run_stage(recipe("out"), InProcessEngine(), silent, "ingest")
    expected = (
        r"'tokenize' needs the stage 'filter', and .*/out/filter is not committed .*; run jobs/stage_filter.py first"
    )
    engine = IdleEngine()
    with pytest.raises(DataError, match=expected):
        run_stage(recipe("out"), engine, silent, "tokenize")
    assert not (tmp_path / "out" / "filter").exists()
    with pytest.raises(DataError, match=r"needs the stage 'ingest'"):
        run_stage(recipe("other"), IdleEngine(), silent, "layout")


def test_a_stage_that_the_recipe_does_not_list(recipe):
    with pytest.raises(ConfigError, match=r"has no stage 'score'; it has ingest, filter, dedup"):
        run_stage(recipe("out"), IdleEngine(), silent, "score")


def test_every_stage_has_its_entry():
    entries = {path.stem.removeprefix("stage_") for path in JOBS.glob("stage_*.py")}
    assert entries == {"ingest", *(kind.model_fields["kind"].default for kind in STAGES_OF_PACKAGE)}
    for entry in entries:
        assert f'main_of_stage("{entry}", ' in (JOBS / f"stage_{entry}.py").read_text()
