"""How many rows each step drops, predicted from a third of the input: every dropper by its own law.

If copies grew as rows do, the input would yield twice as many rows that are copies of others as the sample.
"""

import numpy as np
import pytest

from etl.run.estimate import estimate
from etl.storage.dataset import Dataset
from tests.etl.stages.toys import make_recipe, plain_rows, run, text_recipe, write_parquet

ROWS, COPIES = 1500, 400


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr("etl.run.sample.MIN_PIECE_BYTES", 1 << 10)


def with_copies(rows, change):
    """The rows in a random order, among them changed copies of some."""
    rng = np.random.default_rng(3)
    copies = [
        change(rows[origin], number) for number, origin in enumerate(rng.choice(len(rows), COPIES, replace=False))
    ]
    rows = [*rows, *copies]
    return [rows[place] for place in rng.permutation(len(rows))]


def predicted(recipe, size):
    """Dropped rows, and live rows at the end, from a third of the input."""
    found = estimate(recipe, size // 3, seed=1)
    assert found.sample_bytes < size / 2
    (dropped,) = (cost.rows for cost in found.stages if "dropped" in cost.stage.split("+"))
    return dropped


def really_dropped(recipe):
    run(recipe)
    return Dataset.open(f"{recipe.output}/dropped").manifest.rows_out


def test_documents_whose_only_unit_stands_elsewhere(tmp_path):
    rows = [{"id": item["synth_id"], "text": item["synthetic_answer"]} for item in plain_rows(ROWS)]
    rows = with_copies(rows, lambda item, number: item | {"id": f"copy{number}"})
    recipe = text_recipe(
        tmp_path / "out",
        {"toy": rows},
        stages=["dedup"],
        dedup={"exact": None, "near": None, "units": [{"unit": "line"}]},
    )
    size = (tmp_path / "out-in" / "toy.jsonl").stat().st_size
    assert predicted(recipe, size) == pytest.approx(COPIES, rel=0.3)
    assert really_dropped(recipe) == COPIES


def test_validation_rows_whose_prompt_stands_in_train(tmp_path):
    rows = with_copies(
        plain_rows(ROWS),
        lambda item, number: item | {"synth_id": f"copy{number}", "synthetic_answer": f"another {number}"},
    )
    path = write_parquet(tmp_path / "in.parquet", rows, row_group_size=200)
    recipe = make_recipe(
        tmp_path / "out", {"toy": path}, stages=["tokenize", "split"], layout={"validation_fraction": 0.4}
    )
    assert predicted(recipe, path.stat().st_size) == pytest.approx(really_dropped(recipe), rel=0.4)


def test_rows_that_mean_the_same(tmp_path):
    rows = with_copies(
        plain_rows(ROWS),
        lambda item, number: item | {"synth_id": f"copy{number}", "synthetic_answer": item["synthetic_answer"] + " so"},
    )
    path = write_parquet(tmp_path / "in.parquet", rows, row_group_size=200)
    recipe = make_recipe(
        tmp_path / "out", {"toy": path}, stages=["tokenize", "semantic"],
        semantic={"embedder": "lexical", "dim": 64, "threshold": 0.95},
    )  # fmt: skip
    assert predicted(recipe, path.stat().st_size) == pytest.approx(really_dropped(recipe), rel=0.4)
