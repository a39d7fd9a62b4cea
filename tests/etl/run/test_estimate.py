"""Predictions from a sample against what a run of the whole input does, and the laws behind them against simulation."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.errors import ConfigError
from etl.recipe import Recipe
from etl.run.estimate import Met, estimate, grow, pair_weights, partners_of, write_sample
from tests.etl.stages.toys import FILTER, make_recipe, mixed_rows, plain_rows, run, stage, write_jsonl, write_parquet

STAGES = ["filter", "dedup", "tokenize", "split", "layout"]


def sampled_ids(folder):
    return [
        line["synth_id"]
        for path in sorted(folder.rglob("*.parquet"))
        for line in pq.read_table(path, columns=["synth_id"]).to_pylist()
    ]


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
    assert any("corpus" in line for line in found.lines())


def test_rows_and_duplicates_of_a_third_predict_the_whole(tmp_path, monkeypatch):
    """2,000 plain rows and, among them, 300 pairs of near duplicates that lie anywhere."""
    monkeypatch.setattr("etl.run.estimate._LEAST_PIECE", 1 << 10)
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


@pytest.mark.parametrize("size", [2, 5, 40])
@pytest.mark.parametrize("scale", [3.0, 10.0])
def test_families_are_found_again_from_a_sample(size, scale):
    """Families of `size` rows, each row in the sample by chance; every row of the sample is a piece of its own."""
    rng = np.random.default_rng(size)
    count = 40_000 // size
    family = np.repeat(np.arange(count), size)
    chosen = np.flatnonzero(rng.random(len(family)) < 1 / scale)
    left, right = [], []
    for member in np.split(chosen, np.flatnonzero(np.diff(family[chosen])) + 1):
        one, other = np.triu_indices(len(member), 1)
        left += member[one].tolist()
        right += member[other].tolist()
    a, b = np.array(left, np.int64) << 32, np.array(right, np.int64) << 32
    grown = grow(a, b, pair_weights(a, b, scale), scale, 1e9)
    assert grown.pairs == pytest.approx(count * size * (size - 1) / 2, rel=0.15)
    assert grown.rows == pytest.approx(count * size, rel=0.4)
    assert grown.removed == pytest.approx(count * (size - 1), rel=0.4)


def test_two_rows_of_a_piece_stand_for_fewer_pairs():
    piece, other = np.array([1 << 32, (1 << 32) + 1]), np.array([(1 << 32) + 5, 2 << 32])
    assert pair_weights(piece, other, 10.0).tolist() == [10.0, 100.0]


def test_a_whole_sample_has_the_partners_that_it_shows():
    numbers, shares = partners_of(np.array([0, 0, 2, 0]), 1.0)
    assert numbers.tolist() == [1.0, 3.0]
    assert shares.tolist() == [0.75, 0.25]


def test_a_hot_band_grows_as_rows_do():
    """100 rows of one band with at most 4 partners: ten times the rows have about ten times the pairs."""
    bands = pa.table({"band": np.zeros(100, np.int64), "key": np.arange(100), "row": np.arange(100) << 32})
    left = np.concatenate([np.arange(100 - apart) for apart in range(1, 5)]) << 32
    right = np.concatenate([np.arange(apart, 100) for apart in range(1, 5)]) << 32
    met = Met.of(bands, (left, right), 4, 10.0)
    assert len(met.left) == 4 * 100 - 10
    assert met.weights.sum() == pytest.approx(4 * 1000 - 10)
    assert len(Met.of(bands, (left[:7], right[:7]), 4, 10.0).left) == 7


def test_pieces_do_not_overlap_and_name_their_share(tmp_path):
    rows = plain_rows(3000)
    write_parquet(tmp_path / "in.parquet", rows, row_group_size=500)
    recipe = make_recipe(tmp_path / "out", {"toy": tmp_path / "in.parquet"})
    size = (tmp_path / "in.parquet").stat().st_size
    sample = write_sample(recipe, tmp_path / "sample", size // 2, 3)
    ids = sampled_ids(tmp_path / "sample")
    assert len(ids) == len(set(ids))
    assert len(ids) / 3000 == pytest.approx(1 / sample.scale, rel=0.1)


def test_lines_are_whole_and_come_once(tmp_path):
    rows = plain_rows(2000)
    path = write_jsonl(tmp_path / "in.jsonl", rows)
    recipe = make_recipe(tmp_path / "out", {"toy": path})
    sample = write_sample(recipe, tmp_path / "sample", path.stat().st_size // 2, 5)
    lines = [
        line for piece in sorted((tmp_path / "sample").rglob("*.jsonl")) for line in piece.read_text().splitlines()
    ]
    assert len(lines) == len(set(lines))
    assert set(lines) <= set(path.read_text().splitlines())
    assert sample.sample_bytes == sum(len(line) + 1 for line in lines)


def test_the_start_of_a_compressed_file_is_sampled(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", plain_rows(4000))
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    recipe = make_recipe(tmp_path / "out", {"toy": packed})
    sample = write_sample(recipe, tmp_path / "sample", 1 << 14, 0)
    lines = [line for piece in (tmp_path / "sample").rglob("*.jsonl") for line in piece.read_text().splitlines()]
    assert lines == path.read_text().splitlines()[: len(lines)]
    assert 0 < sample.sample_bytes <= packed.stat().st_size


def test_tables_of_a_catalog_are_refused(tmp_path):
    tree = {"name": "toy", "output": str(tmp_path / "out"), "stages": []}
    recipe = Recipe.model_validate(tree | {"sources": {"toy": {"spec": "synth", "table": "catalog.db.t"}}})
    with pytest.raises(ConfigError, match="a sample can only be taken of files"):
        write_sample(recipe, tmp_path / "sample", 1 << 20, 0)
