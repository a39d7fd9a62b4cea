"""Nearest centroids and comparisons inside clusters, against NumPy on all pairs."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.semantic import SemanticDedup
from etl.dedup.vectors import to_binary
from etl.schema import CTX_BUCKETS, SKILL_BUCKETS
from etl.stages.dedup import semantic_compare
from etl.stages.dedup.semantic_cells import cell_of_cluster, cluster_name, name_of
from etl.stages.dedup.semantic_centroids import CENTROID
from etl.stages.dedup.semantic_compare import (
    CLUSTER_MEMBER,
    COSINE_ONE,
    ClusterFile,
    CompareClusters,
    EmitClusterMembers,
)
from etl.storage.location import Location
from tests.etl.stages.toybatches import (
    ToyRows,
    cut_at,
    distributions_of,
    identity,
    ids,
    rows_in,
    rows_of,
    verdict_column,
    with_rest_of_id,
)
from tests.etl.storage.builds import commit

DIM = 8
CONFIG = SemanticDedup(embedder="lexical", dim=DIM, threshold=0.8)
CTX = tuple(CTX_BUCKETS)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_each_live_row_goes_with_the_nearest_centroid_of_its_cell(tmp_path):
    rng = np.random.default_rng(0)
    skills = [SKILL_BUCKETS[0]] * 12 + [SKILL_BUCKETS[3]] * 8
    vectors = rng.integers(-100, 100, (20, DIM)).astype(np.int8)
    centroids = {skill: rng.integers(-100, 100, (count, DIM)).astype(np.int8)
                 for skill, count in ((SKILL_BUCKETS[0], 3), (SKILL_BUCKETS[3], 2))}  # fmt: skip
    groups = [
        pa.record_batch(
            [
                pa.array([skill] * len(found)), pa.array([CTX[1]] * len(found)),
                pa.array(range(len(found)), pa.int32()), to_binary(found),
            ],
            schema=CENTROID,
        )
        for skill, found in centroids.items()
    ]  # fmt: skip
    stored = commit(Location.of(str(tmp_path / "centroids")), CENTROID, [groups[:1], groups[1:]], "centroids").ref
    names = ["id", "skill_bucket", "ctx_bucket", "embedding_int8", "source_dataset", "verdict"]
    bare = pa.record_batch(
        [
            ids(range(20)), pa.array(skills), pa.array([CTX[1]] * 20), to_binary(vectors), pa.array(["a"] * 20),
            verdict_column(20, dropped=[4]),
        ],
        names,
    )  # fmt: skip
    batch = with_rest_of_id(bare)
    found = [row for piece in EmitClusterMembers(ToyRows([batch]), stored, CONFIG, 3)(0) for row in piece.to_pylist()]
    assert [row["row"] for row in found] == [n for n in range(20) if n != 4]
    for row in found:
        cosines = unit(centroids[skills[row["row"]]].astype(float)) @ unit(vectors[row["row"]].astype(float))
        assert cluster_name(row["cluster"]) == f"{skills[row['row']]}-{CTX[1]}-{int(cosines.argmax()):05d}"
        assert row["cosine"] == pytest.approx(cosines.max() * COSINE_ONE, abs=1)
    assert len({(row["cluster"], row["bucket"]) for row in found}) == len({row["cluster"] for row in found})


clusters = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 100)), max_size=4)
"""Rows of each cluster and the seed of their vectors."""


def drawn(sizes):
    """Cluster numbers and vectors, few directions so that some rows are alike."""
    numbers, vectors = [], [np.empty((0, DIM), np.int8)]
    for place, (size, seed) in enumerate(sizes):
        rng = np.random.default_rng(seed)
        directions = rng.integers(-100, 100, (3, DIM))
        vectors.append((directions[rng.integers(0, 3, size)] + rng.integers(-15, 15, (size, DIM))).astype(np.int8))
        numbers += [(place % 3 << 32) + place] * size
    order = np.argsort(numbers, kind="stable")
    return np.array(numbers, np.int64)[order], np.concatenate(vectors)[order]


def expected_hits(numbers, vectors, threshold):
    """(cluster, kept, rank or None, survivor or None) of each row."""
    survivor = [None] * len(numbers)
    for n in range(len(numbers)):
        for m in range(n):
            alike = unit(vectors[n].astype(float)) @ unit(vectors[m].astype(float)) >= threshold - 1e-12
            if numbers[m] == numbers[n] and survivor[m] is None and alike:
                survivor[n] = m
                break
    hits = []
    for n, cluster in enumerate(numbers.tolist()):
        kept = [m for m in range(len(numbers)) if numbers[m] == cluster and survivor[m] is None]
        rank = kept.index(n) if survivor[n] is None else None
        hits.append((cluster, len(kept), rank, survivor[n]))
    return hits


def compared(numbers, vectors, config, cuts):
    columns = [
        pa.array([0] * len(numbers), pa.int32()), pa.array(numbers), pa.array(range(len(numbers))),
        ids(range(len(numbers))).cast(pa.binary()), pa.array(range(len(numbers))),
        pa.array(range(500, 500 + len(numbers))),
        pa.array([7] * len(numbers), pa.int32()), to_binary(vectors),
    ]  # fmt: skip
    return list(CompareClusters(config)(0, cut_at(pa.table(columns, schema=CLUSTER_MEMBER), cuts)))


@given(clusters, st.lists(st.integers(0, 50), max_size=5))
def test_a_row_goes_that_is_similar_to_a_better_row_that_stays(sizes, cuts):
    numbers, vectors = drawn(sizes)
    chunks = compared(numbers, vectors, CONFIG, cuts)
    found = rows_of(chunks)
    expected = expected_hits(numbers, vectors, 0.8)
    assert [tuple(row.values()) for row in found] == [
        (500 + n, identity(n), cluster, kept, rank, None if survivor is None else identity(survivor))
        for n, (cluster, kept, rank, survivor) in enumerate(expected)
    ]
    assert rows_in(chunks) == len(numbers)
    counts = distributions_of(chunks)
    for cell in {cell_of_cluster(cluster) for cluster in numbers.tolist()}:
        skill, ctx = name_of(cell)
        mine = [n for n in range(len(numbers)) if cell_of_cluster(int(numbers[n])) == cell]
        kept = {expected[n][0]: expected[n][1] for n in mine}
        assert counts["cells"][skill][ctx] == {
            "clusters": len(kept), "rows": len(mine), "removed": sum(expected[n][3] is not None for n in mine),
            "cosine_millionths": 7 * len(mine),
        }  # fmt: skip
        best = min(kept, key=lambda cluster: (-kept[cluster], cluster))
        assert counts["largest"][skill][ctx] == {cluster_name(best): kept[best]}


def test_without_a_threshold_every_row_stays():
    numbers, vectors = drawn([(6, 1), (3, 2)])
    found = rows_of(compared(numbers, vectors, SemanticDedup(embedder="lexical", threshold=None), [4]))
    assert [(row["size"], row["rank"], row["survivor"]) for row in found] == [
        (6, rank, None) for rank in range(6)
    ] + [(3, rank, None) for rank in range(3)]  # fmt: skip


def test_a_cluster_of_many_blocks_is_written_block_by_block(monkeypatch):
    numbers, vectors = drawn([(12, 5)])
    whole = rows_of(compared(numbers, vectors, CONFIG, []))
    monkeypatch.setattr(semantic_compare, "BLOCK_ROWS", 5)
    assert rows_of(compared(numbers, vectors, CONFIG, [])) == whole


def test_the_file_of_a_cluster_is_used_again_for_the_next():
    _, vectors = drawn([(5, 1)])
    columns = [pa.array(range(5)), ids(range(5)).cast(pa.binary()), to_binary(vectors)]
    batch = pa.record_batch(columns, ["row", "id", "vector"])
    with ClusterFile() as file:
        file.begin()
        file.add(batch)
        file.begin()
        file.add(batch.slice(3))
        file.add(batch.slice(0, 1))
        records = file.records()
        assert records["row"].tolist() == [3, 4, 0]
        assert np.array_equal(records["vector"], vectors[[3, 4, 0]])
        assert [bytes(value) for value in records["id"]] == [identity(n) for n in (3, 4, 0)]
