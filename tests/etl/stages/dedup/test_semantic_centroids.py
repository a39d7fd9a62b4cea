"""The sample of a cell by the hash of the id, and k-means on the first of it."""

import numpy as np
import pyarrow as pa

from etl.dedup.kmeans import kmeans
from etl.dedup.semantic import SemanticDedup
from etl.dedup.vectors import from_binary, to_binary
from etl.schema import CTX_BUCKETS, SKILL_BUCKETS
from etl.stages.dedup.semantic_cells import Cells, cell_of, name_of
from etl.stages.dedup.semantic_centroids import SAMPLED, EmitSample, FindCentroids
from tests.etl.stages.toybatches import ToyRows, ids, rows_in, verdict_column

DIM = 8
ONE, OTHER = (SKILL_BUCKETS[0], next(iter(CTX_BUCKETS))), (SKILL_BUCKETS[2], list(CTX_BUCKETS)[-1])


def vectors(count, seed=0):
    return np.random.default_rng(seed).integers(-100, 100, (count, DIM)).astype(np.int8)


def rows_of_cells(names, dropped=()):
    skill, ctx = zip(*names, strict=True)
    columns = [
        ids(range(len(names))), pa.array(skill), pa.array(ctx), to_binary(vectors(len(names))),
        verdict_column(len(names), dropped),
    ]  # fmt: skip
    return pa.record_batch(columns, ["id", "skill_bucket", "ctx_bucket", "embedding_int8", "verdict"])


def sampled(sample_rows, names, dropped=()):
    batch = rows_of_cells(names, dropped)
    numbers = cell_of(batch)
    live = [n for n in range(len(names)) if n not in dropped]
    cells = Cells({cell: sum(numbers[n] == cell for n in live) for cell in sorted(set(numbers[live].tolist()))})
    emit = EmitSample(ToyRows([batch]), cells, SemanticDedup(embedder="lexical", sample_rows=sample_rows))
    return cells, pa.Table.from_batches(emit(0), SAMPLED)


def test_all_live_rows_of_a_small_cell_are_sampled_and_its_bucket_is_its_place():
    names = [OTHER, ONE, ONE, OTHER, ONE]
    cells, table = sampled(100, names, dropped=[2])
    places = [[name_of(cell) for cell in cells.rows].index(name) for name in names]
    expected = [places[n] for n in (0, 1, 3, 4)]
    assert table["bucket"].to_pylist() == expected
    assert np.array_equal(from_binary(table["vector"].combine_chunks()), vectors(5)[[0, 1, 3, 4]])


def test_about_the_share_of_a_large_cell_is_sampled_by_the_hash_of_the_id():
    """110 of 1,000 on average, of which the reducer takes 100: the binomial's deviation is 10."""
    _, table = sampled(100, [ONE] * 1000)
    assert 80 < len(table) < 140
    assert sampled(100, [ONE] * 1000)[1].equals(table)


def chunks_of(config, sample, cell_rows, cuts):
    columns = [
        pa.array([0] * len(sample), pa.int32()), pa.array(range(len(sample))),
        ids(range(len(sample))).cast(pa.binary()), to_binary(sample),
    ]  # fmt: skip
    table = pa.table(columns, schema=SAMPLED)
    return list(FindCentroids(Cells({5: cell_rows}), config)(0, iter(table.to_batches(max_chunksize=cuts))))


def test_centroids_are_those_of_the_first_sampled_rows_however_they_arrive():
    config = SemanticDedup(embedder="lexical", dim=8, sample_rows=40, rows_per_cluster=20)
    expected = kmeans(vectors(40, 3), config.num_clusters(60), config.iterations, config.seed)
    assert len(expected) == 3
    for cuts in (1, 7, 100):
        (chunk,) = chunks_of(config, np.concatenate([vectors(40, 3), vectors(5, 4)]), 60, cuts)
        assert np.array_equal(from_binary(chunk.batch.column("centroid")), expected)
        assert chunk.batch.column("place").to_pylist() == [0, 1, 2]
        assert set(
            zip(chunk.batch["skill_bucket"].to_pylist(), chunk.batch["ctx_bucket"].to_pylist(), strict=True)
        ) == {name_of(5)}
        assert chunk.rows_in == 45


def test_a_bucket_without_rows_has_no_centroid():
    config = SemanticDedup(embedder="lexical", dim=8)
    chunks = chunks_of(config, np.empty((0, DIM), np.int8), 60, 1)
    assert [(chunk.batch, chunk.rows_in) for chunk in chunks] == [(None, 0)]
    assert rows_in(chunks) == 0
