"""Predictions from a sample against what a run of the whole input does."""

import numpy as np
import pytest

from etl.run.estimate import estimate
from tests.etl.stages.toys import FILTER, make_recipe, mixed_rows, plain_rows, run, stage, write_parquet

STAGES = ["filter", "dedup", "tokenize", "split", "layout"]


def test_a_sample_of_everything_predicts_what_a_run_does(tmp_path):
    """Without scaling up, rows, bytes and shuffled bytes are those of a run."""
    write_parquet(tmp_path / "in.parquet", mixed_rows(120))
    recipe = make_recipe(tmp_path / "out", {"toy": tmp_path / "in.parquet"}, stages=STAGES, filter=FILTER)
    found = estimate(recipe, 1 << 30)
    assert found.sample_bytes == found.input_bytes == (tmp_path / "in.parquet").stat().st_size
    costs = {cost.stage: cost for cost in found.stages}
    assert not (tmp_path / "out").exists()
    run(recipe)
    for name in ("candidates", "edges", "sets", "pairs", "near_hits", "exact_hits", "corpus"):
        made = stage(tmp_path / "out", name).manifest.rows_out
        # In how many of its buckets a candidate pair meets is predicted as of balls thrown into bins.
        assert costs[name].rows == (pytest.approx(made, rel=0.02) if name in ("candidates", "edges") else made), name
    assert costs["exact_hits"].shuffle_bytes > 80 * 56
    assert costs["corpus"].written_bytes > 0
    assert found.total("cpu_s") > 0
    assert found.folder_cpu_s.keys() == {name for job in costs for name in job.split("+")}
    for job, cost in costs.items():
        shares = [found.folder_cpu_s[name] for name in job.split("+")]
        assert sum(shares) == pytest.approx(cost.cpu_s)
        assert all(shares) or cost.cpu_s == 0
    table = list(found.lines())[1:-1]
    assert {cost.stage for cost in found.stages} <= {line.split()[0] for line in table}, "no name is cut"
    assert len({len(line) for line in table if line.split()[0] in costs}) == 1


def test_rows_and_duplicates_of_a_third_predict_the_whole(tmp_path, monkeypatch):
    """2,000 plain rows and, anywhere among them, 300 pairs of near duplicates."""
    monkeypatch.setattr("etl.run.sample.MIN_PIECE_BYTES", 1 << 10)
    rng = np.random.default_rng(0)
    rows = plain_rows(2000)
    for n, origin in enumerate(rng.choice(2000, 300, replace=False)):
        copy = rows[origin] | {"synth_id": f"copy{n}"}
        rows.append(copy | {"synthetic_answer": copy["synthetic_answer"] + " indeed"})
    order = rng.permutation(len(rows))
    write_parquet(tmp_path / "in.parquet", [rows[n] for n in order], row_group_size=200)
    recipe = make_recipe(
        tmp_path / "out", {"toy": tmp_path / "in.parquet"}, stages=STAGES[1:],
        dedup={"near": {"threshold": 0.7, "bands": 20, "rows": 5}},
    )  # fmt: skip
    size = (tmp_path / "in.parquet").stat().st_size
    found = estimate(recipe, size // 3, seed=1)
    costs = {cost.stage: cost for cost in found.stages}
    assert found.sample_bytes < size / 2
    assert costs["near"].rows == pytest.approx(2300, rel=0.1)
    assert costs["pairs"].rows == pytest.approx(300, rel=0.4)
    assert costs["near_hits"].rows == pytest.approx(600, rel=0.4)
    assert costs["corpus"].rows == pytest.approx(2000, rel=0.1)
