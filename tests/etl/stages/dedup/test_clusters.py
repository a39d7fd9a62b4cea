"""Clusters of near duplicates: ranks, similarity to the survivor, what is counted, and the table for people."""

import uuid
from itertools import groupby

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.canaries import Levels, canary_rows
from etl.dedup.near import NearDedup
from etl.stages.dedup.clusters import CLUSTER_ROW, EmitClusterRows, RankComponents, by_level, by_script
from etl.stages.dedup.stars import LABEL
from etl.stages.dedup.verify import SET
from etl.storage.location import Location
from tests.etl.stages.dedup.toys import NEAR, dedup, families, word_ngrams
from tests.etl.stages.toybatches import cut_at, distributions_of, identity, rows_in, rows_of
from tests.etl.stages.toys import make_recipe, read, run, stage, verdicts, write_parquet
from tests.etl.storage.builds import commit

SOURCES = ("one", "two")


def packed_set(values):
    return np.array(sorted(values), np.uint64).tobytes()


members = st.tuples(st.frozensets(st.integers(0, 5), min_size=1), st.integers(0, 1))
"""The set of a row and its source."""


@given(st.lists(st.lists(members, min_size=2, max_size=6), max_size=4), st.lists(st.integers(0, 30), max_size=6))
def test_rows_are_ranked_and_compared_with_the_first_of_their_component(components, cuts):
    flat = [(10 * number, *member) for number, group in enumerate(components) for member in group]
    lines = [
        (0, component, 3, identity(100 + n), 7, n, source, packed_set(values))
        for n, (component, values, source) in enumerate(flat)
    ]
    names = [dict(zip(CLUSTER_ROW.names, line, strict=True)) for line in lines]
    near = NearDedup(threshold=0.5)
    chunks = list(RankComponents(near, SOURCES)(0, cut_at(pa.Table.from_pylist(names, CLUSTER_ROW), cuts)))
    expected, removed, below = [], dict.fromkeys(SOURCES, 0), dict.fromkeys(SOURCES, 0)
    for _, group in groupby(range(len(flat)), key=lambda n: flat[n][0]):
        rows = list(group)
        for rank, n in enumerate(rows):
            one, other = flat[rows[0]][1], flat[n][1]
            jaccard = len(one & other) / len(one | other)
            expected.append((n, identity(100 + n), identity(100 + rows[0]), len(rows), rank, jaccard))
            removed[SOURCES[flat[n][2]]] += rank > 0
            below[SOURCES[flat[n][2]]] += rank > 0 and jaccard < 0.5
    assert [tuple(row.values()) for row in rows_of(chunks)] == expected
    assert rows_in(chunks) == len(flat)
    counts = distributions_of(chunks)
    assert {source: counts.get("removed", {}).get(source, 0) for source in SOURCES} == removed
    assert {source: counts.get("below_threshold", {}).get(source, 0) for source in SOURCES} == below
    sizes = [len(group) for group in components]
    by_power = {str(power): sum(power <= size < 2 * power for size in sizes) for power in (2, 4)}
    assert counts.get("cluster_sizes", {}) == {power: count for power, count in by_power.items() if count}
    assert counts.get("largest", {}) == {str(size): sizes.count(size) for size in set(sizes)}


def test_sets_of_labelled_rows_go_to_the_bucket_of_their_component_and_canaries_stay(tmp_path):
    """Splits 0 and 1 have rows in one table of labels; row 4 of split 0 is in no cluster."""
    far = 1 << 32
    canary = int(canary_rows(np.array([2]), np.array([1]))[0])
    keys = [[2, canary, 3, 4], [far, far + 7]]
    groups = [
        [
            pa.RecordBatch.from_pylist(
                [
                    {"row": key, "id": identity(key % 100), "source": 0, "example": "e", "preference": key % 5,
                     "digest": 7, "tokens": 1, "signs": 2, "blocks": [1], "shingles": packed_set([key % 100])}
                    for key in split
                ],
                SET,
            )
        ]
        for split in keys
    ]  # fmt: skip
    labelled = [(2, 2), (3, 2), (far, far), (far + 7, far)]
    labels = pa.RecordBatch.from_pylist([dict(zip(LABEL.names, label, strict=True)) for label in labelled], LABEL)
    emit = EmitClusterRows(
        commit(Location.of(str(tmp_path / "labels")), LABEL, [[labels.slice(0, 3), labels.slice(3)]], "labels").ref,
        commit(Location.of(str(tmp_path / "sets")), SET, groups, "sets").ref,
        4,
    )
    found = [[row for batch in emit(split) for row in batch.to_pylist()] for split in range(2)]
    assert [[(row["component"], row["row"]) for row in rows] for rows in found] == [
        [(2, 2), (2, 3)], [(far, far), (far, far + 7)],
    ]  # fmt: skip
    assert found[0][0]["bucket"] == found[0][1]["bucket"]
    assert [row["shingles"] for row in found[0]] == [packed_set([2]), packed_set([3])]
    assert [row["preference"] for row in found[1]] == [far % 5, (far + 7) % 5]


def test_recall_and_precision_by_level():
    """Levels 0 and 1 are below the threshold of 0.8: 1 of 3 canaries is reported there, and 8 of 10 above it."""
    levels = Levels(0.8)
    assert [levels.is_duplicate(level) for level in (1, 2)] == [False, True]
    found = by_level(levels, {"1": 3, "2": 10}, {"1": 1, "2": 8})
    assert (found["recall"], found["precision"]) == (0.8, round(8 / 9, 6))
    below, above = found["by_jaccard"][levels.name(1)], found["by_jaccard"][levels.name(2)]
    assert below == {"made": 3, "reported": 1, "recall": None, "precision": 0.0}
    assert above == {"made": 10, "reported": 8, "recall": 0.8, "precision": 1.0}
    nothing = by_level(levels, {}, {})
    assert (nothing["recall"], nothing["precision"]) == (None, None)


def test_recall_by_script_counts_what_is_to_be_found():
    made = {"1": {"latin": 5}, "2": {"latin": 3, "han": 4}, "3": {"latin": 3}}
    found = by_script(Levels(0.8), made, {"1": {"latin": 1}, "2": {"latin": 2, "han": 4}, "3": {"latin": 1}})
    assert list(found.items()) == [
        ("latin", {"made": 6, "reported": 3, "recall": 0.5}),
        ("han", {"made": 4, "reported": 4, "recall": 1.0}),
    ]


def word_jaccard(one, other):
    return len(word_ngrams(one) & word_ngrams(other)) / len(word_ngrams(one) | word_ngrams(other))


@pytest.mark.parametrize("clusters", ["components", "survivor"])
def test_similarity_to_the_survivor_decides_when_it_is_asked_to(tmp_path, clusters):
    dedup(tmp_path, families(9), near=NEAR | {"clusters": clusters})
    out = tmp_path / "out"
    text = {
        item["id"]: "\n".join(message["content"] for message in item["messages"]) for item in read(stage(out, "ingest"))
    }
    below = 0
    for item in read(stage(out, "near")):
        jaccard = word_jaccard(text[item["id"]], text[item["cluster_id"]])
        assert item["cluster_jaccard"] == pytest.approx(jaccard, abs=1e-12)
        far = jaccard < NEAR["threshold"]
        below += far
        stays = item["cluster_rank"] == 0 or (clusters == "survivor" and far)
        assert (item["verdict"] is None) == stays
    assert below > 3
    findings = stage(out, "near").manifest.findings["clusters"]
    assert findings["not_survivors_below_threshold"] == below
    sizes = [item["cluster_size"] for item in read(stage(out, "near")) if item["cluster_rank"] == 0]
    assert findings["largest"] == sorted((size for size in sizes if size > 1), reverse=True)[:10]


def test_the_best_score_survives(tmp_path):
    """The score comes before dedup: the row of the surest language of each cluster is kept."""
    write_parquet(tmp_path / "in.parquet", families(3))
    recipe = make_recipe(
        tmp_path / "out", {"toy": tmp_path / "in.parquet"}, stages=["filter", "dedup"],
        filter={"steps": [{"kind": "language"}]},
        dedup={"exact": None, "survivor": {"score": "language_score"}, "near": NEAR},
    )  # fmt: skip
    run(recipe)
    score = {item["id"]: item["language_score"] for item in read(stage(tmp_path / "out", "filter"))}
    clusters: dict[bytes, list[dict]] = {}
    for item in read(stage(tmp_path / "out", "near")):
        clusters.setdefault(item["cluster_id"], []).append(item)
    assert sum(len(items) > 2 for items in clusters.values()) > 5
    for survivor, items in clusters.items():
        ranked = sorted(items, key=lambda item: (-score[item["id"]], item["id"]))
        assert [item["cluster_rank"] for item in ranked] == list(range(len(items)))
        assert ranked[0]["id"] == survivor


def test_everything_that_near_dedup_saw_is_in_the_table_of_clusters(tmp_path):
    rows = [*families(7), *(item | {"synth_id": f"x{n}"} for n, item in enumerate(families(7)[:5]))]
    dedup(tmp_path, rows, exact={}, near=NEAR)
    out = tmp_path / "out"
    marked = {str(uuid.UUID(bytes=item["id"])): item for item in read(stage(out, "near"))}
    table = read(stage(out, "clusters"))
    gone_before = {str(uuid.UUID(bytes=key)) for key in verdicts(out, "exact")}
    assert {item["id"] for item in table} == marked.keys() - gone_before
    assert gone_before
    for item in table:
        mine = marked[item["id"]]
        assert item["cluster_id"] == str(uuid.UUID(bytes=mine["cluster_id"]))
        assert (item["cluster_size"], item["cluster_rank"]) == (mine["cluster_size"], mine["cluster_rank"])
        assert item["kept"] == (mine["verdict"] is None)
