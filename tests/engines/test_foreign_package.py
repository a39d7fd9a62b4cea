"""The recipe of docs/how-to/extending.md on every engine; its filter, cut and stage are from a package of its own."""

import contextlib

import pytest

from etl import conf
from etl.engines.local import LocalEngine
from etl.errors import DataError
from etl.run.recipe import Recipe
from etl.run.run import run_stage
from etl.storage.location import Location
from etl.storage.verify import verify
from tests.acme import FILES, importable, write_package
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.toys import mixed_rows, run, stage, write_parquet

DATASETS = ("ingest", "filter", "longest", "languages", "tokenize", "dropped", "corpus")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Importable only in this process: no environment variable says where it is."""
    folder = write_package(tmp_path_factory.mktemp("outside"))
    with importable(folder, "acme_filters"):
        yield folder


@pytest.fixture(scope="module")
def recipe(package):
    """Makes the recipe of the page, over toy rows and with bounds for their lengths."""
    source = write_parquet(package / "in.parquet", mixed_rows(120))
    path = package / "recipe.yaml"
    path.write_text(FILES["recipe.yaml"])
    bounds = ["filter.steps.2.max_chars=250", "filter.steps.3.max_chars=200", "filter.cuts.0.most=40"]

    def load(output):
        places = [f"output={output}", f"sources.stdlib.path={source}", "run.split_bytes=8192"]
        return conf.load(Recipe, str(path), "recipes", [*places, *bounds])

    return load


def made(output):
    assert list(verify(Location.of(output))) == []
    return {name: stage(output, name).manifest.content_digest for name in DATASETS}


@pytest.fixture(scope="module")
def expected(recipe, tmp_path_factory):
    output = tmp_path_factory.mktemp("expected") / "out"
    result = run(recipe(output), InProcessEngine())
    lost = result.accounting["stdlib"]
    assert {lost[step]["too_long"] > 0 for step in ("LongAnswers", "code")} == {True}
    assert lost["longest"]["kept"] == 40
    columns = stage(output, "filter").schema.names
    assert [name for name in columns if "answer_chars" in name] == ["answer_chars", "code_answer_chars"]
    return made(output)


def test_worker_processes_import_what_their_parent_can(recipe, tmp_path, expected):
    with contextlib.closing(LocalEngine(processes=2)) as engine:
        run(recipe(tmp_path / "out"), engine)
    assert made(tmp_path / "out") == expected


@pytest.mark.slow
def test_a_job_service_of_beam(recipe, tmp_path, expected, portable_flags):
    from etl.engines.beam import BeamEngine

    run(recipe(tmp_path / "out"), BeamEngine(portable_flags, report=lambda line: None))
    assert made(tmp_path / "out") == expected


def test_a_stage_from_outside_runs_alone_by_its_label(tmp_path, recipe, expected):
    def run_alone(label):
        run_stage(recipe(tmp_path / "out"), InProcessEngine(), lambda line: None, label)

    run_alone("ingest")
    run_alone("filter")
    with pytest.raises(DataError, match=r"run jobs/run_recipe\.py --stage Languages first"):
        run_alone("tokenize")
    run_alone("Languages")
    run_alone("tokenize")
    assert stage(tmp_path / "out", "languages").manifest.content_digest == expected["languages"]


def test_another_source_runs_the_stage_again_and_a_comment_alone_gives_the_same_rows(tmp_path, recipe, expected):
    def manifests():
        run(recipe(tmp_path / "out"))
        return [stage(tmp_path / "out", name).manifest for name in ("filter", "longest", "languages", "tokenize")]

    before = manifests()
    changed = write_package(tmp_path / "changed", answers="# another byte\n")
    with importable(changed, "acme_filters"):
        after = manifests()
    assert [old.fingerprint == new.fingerprint for old, new in zip(before, after, strict=True)] == [*3 * [False], True]
    assert [old.content_digest for old in before] == [new.content_digest for new in after]
