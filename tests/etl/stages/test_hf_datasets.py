"""Hugging Face datasets give exactly the manifest's rows of every table, after a kill and a second run too."""

import os

import pytest

from etl.storage.opened import Run
from tests.engines.inprocess import DyingEngine, KilledError
from tests.etl.stages.toys import mixed_rows, run, whole_recipe, write_parquet


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """load_dataset over the Parquet files below a folder, as docs/reference/contract.md shows it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    cache = str(tmp_path_factory.mktemp("hf"))

    def load(folder):
        return datasets.load_dataset("parquet", data_files=f"{folder}/**/*.parquet", split="train", cache_dir=cache)

    return load


@pytest.mark.parametrize("kills", [(), (2, 9, 15)])
def test_every_table_reads_as_its_manifest_says(tmp_path, ngram_model, load, kills):
    source = write_parquet(tmp_path / "a.parquet", mixed_rows(60))
    recipe = whole_recipe(tmp_path / "out", {"a": source}, ngram_model)
    for tasks in kills:
        with pytest.raises(KilledError):
            run(recipe, DyingEngine(tasks))
    run(recipe)
    left = Run.open(tmp_path / "out")
    assert not left.started
    read = 0
    for folder, dataset in left.datasets.items():
        if dataset.manifest.parts:
            found = load(dataset.folder.path)
            assert found.num_rows == dataset.manifest.rows_out, folder
            assert set(dataset.schema.names) <= set(found.column_names)
            read += 1
    assert read >= 12
