"""conf/recipes/dedup_text.yaml as people call it: raw text in, DIR/pairs and DIR/clusters out."""

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl import conf
from etl.run.recipe import Recipe
from etl.run.run import run_recipe
from etl.storage.dataset import Dataset
from tests.engines.inprocess import InProcessEngine


def dedup_text(output, path, *more):
    """A run of the recipe, and DuckDB's own reads of its two tables."""
    overrides = [f"output={output}", f"sources.text.path={path}", *more]
    run_recipe(
        conf.load(Recipe, "dedup_text", "recipes", overrides), InProcessEngine(batch_rows=5000), lambda line: None
    )
    return (duckdb.read_parquet(f"{output}/{name}/*.parquet") for name in ("pairs", "clusters"))


def test_pairs_and_clusters_name_rows_by_their_own_ids(tmp_path):
    text = " ".join(f"word{n}" for n in range(60))
    texts = [text, "something else entirely, in a few words", text + " more", "", text.upper()]
    table = pa.table({"number": pa.array([10, 11, 12, 13, 14], pa.int64()), "body": texts})
    pq.write_table(table, tmp_path / "in.parquet")
    columns = ("sources.text.id_column=number", "sources.text.text_column=body", "dedup.near.threshold=0.9",
               "dedup.near.unit=word")  # fmt: skip
    pairs, clusters = dedup_text(tmp_path / "out", tmp_path / "in.parquet", *columns)
    assert sorted(pairs.project("a, b, round(jaccard, 9)").fetchall()) == [
        ("10", "12", round(56 / 57, 9)), ("10", "14", 1.0), ("12", "14", round(56 / 57, 9)),
    ]  # fmt: skip
    found = clusters.project("source_example_id, cluster_size, cluster_rank, kept").fetchall()
    assert sorted(name for name, size, _, _ in found if size == 3) == ["10", "12", "14"]
    assert sorted((rank, kept) for _, size, rank, kept in found if size == 3) == [(0, True), (1, False), (2, False)]
    assert sorted(row for row in found if row[1] == 1) == [("11", 1, 0, True), ("13", 1, 0, True)]


@pytest.mark.shared
def test_slice_of_the_benchmark_corpus(shared_data, tmp_path):
    folder = shared_data / "bench_corpus"
    corpus = pq.ParquetFile(folder / "corpus.parquet").read_row_group(3)
    pq.write_table(corpus, tmp_path / "in.parquet", row_group_size=500)
    ids = set(corpus["id"].to_pylist())
    truth = {
        (row["a"], row["b"]): row["j"]
        for row in pq.read_table(folder / "exact_pairs.parquet").to_pylist()
        if row["a"] in ids and row["b"] in ids
    }
    columns = ("sources.text.id_column=id", "sources.text.text_column=text", "dedup.near.threshold=0.8",
               "dedup.near.unit=word")  # fmt: skip
    pairs, clusters = dedup_text(tmp_path / "out", tmp_path / "in.parquet", *columns)
    found = {(int(a), int(b)): round(j, 6) for a, b, j in pairs.project("a, b, jaccard").fetchall()}
    assert found.items() <= truth.items()
    cluster = {int(name): label for name, label in clusters.project("source_example_id, cluster_id").fetchall()}
    assert cluster.keys() == ids
    together = sum(cluster[a] == cluster[b] for a, b in truth)
    assert len(truth) > 200
    assert together >= 0.999 * len(truth)
    assert Dataset.open(tmp_path / "out" / "near").manifest.findings["canaries"]["recall"] > 0.99


def test_a_text_column_needs_raw_text(tmp_path):
    table = pa.table({"synth_id": ["a"], "query": ["b"], "synthetic_answer": ["c"]})
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(Exception, match="text_column: 'query' is for raw text"):
        list(
            dedup_text(
                tmp_path / "out", tmp_path / "in.parquet", "sources.text.spec=synth", "sources.text.text_column=query"
            )
        )
