"""A recipe with the same kinds before and after a dedup, and two dedups: tests/frozen/recipes/twice.yaml."""

import pytest

from etl.run.run import run_recipe
from etl.schema import CORPUS
from etl.storage.manifest import accounting_gaps
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.toys import read, stage
from tests.frozen import runs


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return runs.load("twice", tmp_path_factory.mktemp("twice"))


@pytest.fixture(scope="module")
def result(recipe):
    return run_recipe(recipe, InProcessEngine(), lambda line: None)


def test_the_accounts_close_and_each_step_gets_what_the_one_before_has_kept(recipe, result):
    steps = ["ingest", *(step for stage in recipe.stages for step in stage.step_labels())]
    assert accounting_gaps(result.accounting) == []
    for source, counts in result.accounting.items():
        kept = counts["ingest"]["kept"]
        for step in [step for step in steps[1:] if step in counts]:
            assert counts[step]["in"] == kept, (source, step)
            kept = counts[step]["kept"]
        assert kept == counts["layout"]["kept"]
    # kenlm drops nothing; `again` looks at only one source.
    assert set(steps) - set(result.accounting["a"]) == {"kenlm", "late-kenlm"}
    assert set(result.accounting["a"]) - set(result.accounting["b"]) == {"again"}


def test_what_both_of_a_kind_measured_stands_in_the_corpus(result):
    names = result.corpus.schema.names
    assert names[: len(CORPUS)] == CORPUS.names
    assert {
        "perplexity", "after_perplexity", "detected_language", "again_detected_language", "cluster_size",
        "late_cluster_id", "late_cluster_size", "short_input_ids", "short_ctx_bucket",
    } <= set(names)  # fmt: skip
    rows = read(result.corpus)
    assert all(item["after_perplexity"] is not None for item in rows)
    assert {item["source_dataset"] for item in rows if item["again_detected_language"] is None} == {"b"}
    assert {item["again_detected_language"] for item in rows if item["source_dataset"] == "a"} == {"en"}
    assert all(len(item["late_cluster_id"]) == 36 for item in rows)
    assert all(item["short_reasoning_effort"] == "low" for item in rows if item["short_reasoning_effort"])


def test_two_models_are_trained_on_two_samples(recipe, result):
    early, late = (stage(recipe.output, name).manifest for name in ("kenlm_sample", "late-kenlm_sample"))
    assert early.rows_out > late.rows_out > 0
    assert [stage(recipe.output, name).manifest.rows_out for name in ("score", "late-score")] == [
        result.rows.num_rows
    ] * 2


def test_dropped_rows_name_the_stage_and_the_step(result):
    found = {(item["stage"], item["step"]) for item in read(result.dropped)}
    assert {("late-score", "strange"), ("late-score", "again"), ("cuts-filter", "odd"), ("dedup", "exact")} <= found


def test_every_folder_that_is_promised_is_written(recipe, result):
    for one in recipe.stages:
        for folder, table in one.folders().items():
            assert stage(recipe.output, folder).manifest.table == table
