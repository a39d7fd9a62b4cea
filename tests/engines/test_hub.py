"""Files of the Hugging Face hub, read by the workers of every engine: the same rows as from the disk."""

import pytest

from etl.storage.dataset import Dataset
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.toys import make_recipe, mixed_rows, run, write_parquet
from tests.services.hub import TOKEN, hub_server

NAME = "team/toys"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    for number in range(4):
        write_parquet(folder / "data" / f"train-{number}.parquet", mixed_rows(80)[number::4])
    return folder


@pytest.fixture
def hub(data, monkeypatch):
    """A gated data set with the files, behind pages of two entries."""
    # Whoever reads the variable, and whoever has read it before the tests turned the network off.
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with hub_server() as server:
        server.page = 2
        server.put(NAME, data)
        server.datasets[NAME].gated = True
        yield server


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory):
    recipe = make_recipe(tmp_path_factory.mktemp("disk"), {"a": data / "data"})
    return digest(recipe, InProcessEngine())


def digest(recipe, engine):
    run(recipe, engine)
    return [Dataset.open(f"{recipe.output}/{name}").manifest.content_digest for name in ("ingest", "dropped")]


def recipe_of(tmp_path, hub):
    storage = {"hf": {**hub.options, "token": TOKEN}}
    path = f"hf://datasets/{NAME}/data/*.parquet"
    return make_recipe(tmp_path, {"a": path}, storage=storage, run={"split_bytes": 4096})


def test_local(tmp_path, hub, expected):
    from etl.engines.local import LocalEngine

    assert digest(recipe_of(tmp_path, hub), LocalEngine()) == expected


def test_beam_direct(tmp_path, hub, expected):
    from etl.engines.beam import BeamEngine

    assert digest(recipe_of(tmp_path, hub), BeamEngine([], report=lambda line: None)) == expected


def test_spark_local(tmp_path, hub, expected, spark, monkeypatch):
    from etl.engines.spark import SparkEngine

    # Its workers are forked from a process that the session has started, with the variables of that time.
    monkeypatch.setitem(spark.sparkContext.environment, "HF_HUB_OFFLINE", "0")
    assert digest(recipe_of(tmp_path, hub), SparkEngine(session=spark)) == expected
