"""Every notebook runs from top to bottom on the output of a small run, and is committed without outputs."""

import json
import os
from pathlib import Path

import pytest

from tests.etl.stages.toys import FILTER, make_recipe, mixed_rows, run, write_parquet

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_parquet(folder / "in.parquet", mixed_rows(120))
    stages = ["filter", "dedup", "tokenize", "split", "layout"]
    run(make_recipe(folder / "out", {"toy": folder / "in.parquet"}, stages=stages, filter=FILTER))
    return folder / "out"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, output, monkeypatch):
    monkeypatch.setitem(os.environ, "STILLHOUSE_RUN", str(output))
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    names: dict = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    assert names["manifest"]["rows_out"] == len(names["corpus"]) > 0
    assert names["example"][2] > 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_without_outputs(path):
    cells = json.loads(path.read_text())["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
