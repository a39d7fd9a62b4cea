"""Samples of a recipe's input: pieces that do not overlap, whole rows, and their share of the input."""

import bz2
import gzip
import json
import lzma

import numpy as np
import pyarrow.parquet as pq
import pytest
from backports import zstd

from etl.errors import ConfigError
from etl.run.recipe import Recipe
from etl.run.sample import write_sample
from tests.etl.stages.toys import make_recipe, plain_rows, write_jsonl, write_parquet


def sampled_ids(folder):
    return [
        line["synth_id"]
        for path in sorted(folder.rglob("*.parquet"))
        for line in pq.read_table(path, columns=["synth_id"]).to_pylist()
    ]


def test_pieces_do_not_overlap_and_name_their_share(tmp_path):
    rows = plain_rows(3000)
    write_parquet(tmp_path / "in.parquet", rows, row_group_size=500)
    recipe = make_recipe(tmp_path / "out", {"toy": tmp_path / "in.parquet"})
    size = (tmp_path / "in.parquet").stat().st_size
    sample = write_sample(recipe, tmp_path / "sample", size // 2, 3)
    ids = sampled_ids(tmp_path / "sample")
    assert len(ids) == len(set(ids))
    assert len(ids) / 3000 == pytest.approx(1 / sample.scale, rel=0.1)


def test_pieces_of_a_file_that_is_half_footer_do_not_overlap(tmp_path, monkeypatch):
    monkeypatch.setattr("etl.run.sample.MIN_PIECE_BYTES", 1 << 10)
    write_parquet(tmp_path / "in.parquet", plain_rows(1000), row_group_size=50)
    recipe = make_recipe(tmp_path / "out", {"toy": tmp_path / "in.parquet"})
    sample = write_sample(recipe, tmp_path / "sample", (tmp_path / "in.parquet").stat().st_size // 2, 3)
    ids = sampled_ids(tmp_path / "sample")
    assert len(ids) == len(set(ids))
    assert len(ids) / 1000 == pytest.approx(1 / sample.scale, rel=0.1)


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


PACK = {"gz": gzip.compress, "zst": zstd.compress, "bz2": bz2.compress, "xz": lzma.compress}


def sampled_lines(folder):
    return [line for piece in sorted(folder.rglob("*.jsonl")) for line in piece.read_text().splitlines()]


@pytest.mark.parametrize("suffix", PACK)
def test_the_start_of_a_compressed_file_is_sampled_once_and_names_its_share(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("etl.run.sample.MIN_PIECE_BYTES", 1 << 12)
    path = write_jsonl(tmp_path / "in.jsonl", plain_rows(5000))
    packed = tmp_path / f"in.jsonl.{suffix}"
    packed.write_bytes(PACK[suffix](path.read_bytes()))
    recipe = make_recipe(tmp_path / "out", {"toy": packed})
    sample = write_sample(recipe, tmp_path / "sample", packed.stat().st_size // 4, 0)
    lines = sampled_lines(tmp_path / "sample")
    assert lines == path.read_text().splitlines()[: len(lines)]
    assert len(lines) < 5000 / 2
    assert len(lines) / 5000 == pytest.approx(1 / sample.scale, rel=0.1)
    if suffix != "bz2":  # one block is more than a quarter
        assert len(list((tmp_path / "sample").rglob("*.jsonl"))) > 2, "cut into pieces"


@pytest.mark.parametrize("suffix", PACK)
def test_of_compressed_files_that_are_smaller_than_a_piece_many_are_sampled_whole(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("etl.run.sample.MIN_PIECE_BYTES", 1 << 12)
    for number in range(40):
        path = write_jsonl(tmp_path / "in.jsonl", plain_rows(50, number, 50 * number))
        (tmp_path / f"part-{number:02d}.jsonl.{suffix}").write_bytes(PACK[suffix](path.read_bytes()))
    recipe = make_recipe(tmp_path / "out", {"toy": tmp_path / f"*.{suffix}"})
    stored = [path.stat().st_size for path in tmp_path.glob(f"*.{suffix}")]
    sample = write_sample(recipe, tmp_path / "sample", sum(stored) // 2, 1)
    lines = sampled_lines(tmp_path / "sample")
    assert len(lines) == len(set(lines))
    assert len(lines) / 2000 == pytest.approx(1 / sample.scale, rel=0.1)


def test_a_row_that_is_longer_than_its_piece_is_whole(tmp_path, monkeypatch):
    """So is the last line of a file that does not end in a line feed."""
    monkeypatch.setattr("etl.run.sample.MIN_PIECE_BYTES", 1 << 10)
    rows = ['{"text": "' + np.random.default_rng(seed).bytes(6000).hex() + '"}' for seed in range(3)]
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    recipe = make_recipe(tmp_path / "out", {"toy": tmp_path / "in.jsonl.gz"})
    size = (tmp_path / "in.jsonl.gz").stat().st_size
    sample = write_sample(recipe, tmp_path / "few", 1 << 10, 0)
    assert [rows.index(line) for line in sampled_lines(tmp_path / "few")] == [0]
    assert sample.scale == pytest.approx(3, rel=0.1)
    sample = write_sample(recipe, tmp_path / "most", size - 1, 0)
    assert [rows.index(line) for line in sampled_lines(tmp_path / "most")] == [0, 1, 2]
    assert sample.sample_bytes == size


@pytest.mark.parametrize("name", ["in.json", "in.json.gz"])
def test_an_array_is_taken_whole(tmp_path, name):
    text = json.dumps(plain_rows(2000)).encode()
    data = gzip.compress(text) if name.endswith("gz") else text
    (tmp_path / name).write_bytes(data)
    recipe = make_recipe(tmp_path / "out", {"toy": tmp_path / name})
    write_sample(recipe, tmp_path / "sample", 1 << 12, 0)
    (copy,) = (tmp_path / "sample" / "toy").iterdir()
    assert copy.read_bytes() == data
    assert copy.name.endswith(name)


def test_tables_of_a_catalog_are_refused(tmp_path):
    tree = {"name": "toy", "output": str(tmp_path / "out"), "stages": []}
    recipe = Recipe.model_validate(tree | {"sources": {"toy": {"spec": "synth", "table": "catalog.db.t"}}})
    with pytest.raises(ConfigError, match="only files can be sampled"):
        write_sample(recipe, tmp_path / "sample", 1 << 20, 0)


def test_stages_are_those_of_a_share_and_the_cutting_is_the_recipes(tmp_path):
    """A sample's canaries, scaled up, are as many as the whole has."""
    path = write_jsonl(tmp_path / "in.jsonl", plain_rows(2000))
    cutting = {"bucket_bytes": 8192, "max_component_edges": 7}
    dedups = [{"kind": "dedup"}, {"kind": "dedup", "name": "late", "near": None}]
    recipe = make_recipe(tmp_path / "out", {"toy": path}, stages=dedups, run=cutting)
    sample = write_sample(recipe, tmp_path / "sample", path.stat().st_size // 4, 5)
    first, late = sample.recipe.stages
    assert first.near.num_canaries * sample.scale == pytest.approx(recipe.stages[0].near.num_canaries, rel=0.01)
    assert late == recipe.stages[1]
    assert sample.recipe.run.model_dump(include=set(cutting)) == cutting
