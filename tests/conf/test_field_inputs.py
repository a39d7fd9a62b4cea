"""Inputs of public bug reports, through a shipped recipe and `--set` as a user writes it: files that were not read."""

import pytest

from etl import conf
from etl.run.recipe import Recipe
from etl.run.run import run_stage
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.toys import read, stage


def ingested(output, path):
    """The rows' own names, and what was left out of the source."""
    recipe = conf.load(Recipe, "dedup_text", "recipes", [f"output={output}", f"sources.text.path={path}"])
    run_stage(recipe, InProcessEngine(), lambda line: None, "ingest")
    made = stage(output, "ingest")
    return sorted(row["source_example_id"] for row in read(made)), made.manifest.findings["inputs"]["text"]["left_out"]


@pytest.mark.shared
def test_a_number_sign_in_a_path_is_no_comment(shared_data, tmp_path):
    names, left_out = ingested(tmp_path / "out #1", shared_data / "field_cases/hash/set #1")
    assert names == [f"right{number}" for number in range(5)]
    assert left_out == {}
    assert not (tmp_path / "out").exists()


@pytest.mark.shared
def test_every_known_ending_is_read_and_the_rest_is_named(shared_data, tmp_path):
    names, left_out = ingested(tmp_path / "out", shared_data / "field_cases/skip")
    assert sorted(names) == sorted([*(f"d{number}" for number in range(20)), "q"])
    assert left_out == {}
