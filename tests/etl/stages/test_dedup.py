"""Exact and near duplicates from rows to verdicts, against brute force over Python sets."""

import itertools
import random
import re
import unicodedata
import uuid

import numpy as np
import pyarrow as pa
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from etl.dedup.minhash import band_hashes, signatures
from etl.hashing import hash_columns, signed
from etl.schema import PROMPT
from etl.recipe import NearDedup
from etl.stages.hits import first_of_groups, recut
from etl.stages.near import PairUp
from etl.text import shingles
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.toys import (
    ENGLISH,
    make_recipe,
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

NEAR = {"threshold": 0.7, "bands": 20, "rows": 5}


def dedup(tmp_path, rows, engine=None, **section):
    write_parquet(tmp_path / "in.parquet", rows, row_group_size=17)
    recipe = make_recipe(
        tmp_path / "out",
        {"toy": tmp_path / "in.parquet"},
        stages=["dedup"],
        dedup={"exact": None, "near": None} | section,
    )
    return run(recipe, engine)


# --- exact ---------------------------------------------------------------------------------------------------------


def row_digests(dataset):
    """Row digest by id, as a signed integer."""
    table = pa.Table.from_batches(dataset.read()).combine_chunks()
    digests = signed(hash_columns([table[name].combine_chunks() for name in PROMPT.names]))
    return dict(zip(table["id"].to_pylist(), digests.to_pylist(), strict=True))


def test_exact_duplicates_leave_the_smallest_row_digest(tmp_path):
    rows = [item | {"synth_id": f"{item['synth_id']}-{copy}"} for item in plain_rows(30) for copy in range(1, 4)]
    random.Random(0).shuffle(rows)
    dedup(tmp_path, rows, exact={})
    base = stage(tmp_path / "out", "ingest")
    digests = row_digests(base)
    content = {item["id"]: item["messages"][0]["content"] for item in read(base)}
    expected = {}
    for text in set(content.values()):
        group = sorted((digests[key], key) for key in content if content[key] == text)
        survivor = group[0][1]
        for _, key in group[1:]:
            expected[key] = ("exact", "exact_duplicate", str(uuid.UUID(bytes=survivor)))
    assert len(expected) == 60
    assert verdicts(tmp_path / "out", "exact") == expected


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("a  b", "a\n b ", True),
        (unicodedata.normalize("NFC", "café é"), unicodedata.normalize("NFD", "café é"), True),
        ("a b", "a\u00a0b", True),
        ("a b", "A b", False),
        ("x²", "x2", False),
        ("a b", "ab", False),
    ],
)
def test_what_counts_as_equal(tmp_path, first, second, same):
    dedup(tmp_path, [row(1, first, "yes"), row(2, second, "yes"), row(3, "yes", first)], exact={})
    assert len(verdicts(tmp_path / "out", "exact")) == int(same)


def test_prompt_and_answer_are_kept_apart(tmp_path):
    dedup(tmp_path, [row(1, "a b", "c"), row(2, "a", "b c"), row(3, "a b", "c", "why")], exact={})
    assert verdicts(tmp_path / "out", "exact") == {}


def test_same_row_twice_leaves_one(tmp_path):
    """Copies that are equal in everything have one id; still only one of them stays."""
    dedup(tmp_path, [row(1, "q", "a")] * 5 + [row(2, "q2", "a")], exact={})
    rows = read(stage(tmp_path / "out", "exact"))
    assert sum(item["verdict"] is None for item in rows) == 2


def test_a_dropped_row_is_no_survivor(tmp_path):
    """A duplicate of a row that an earlier stage dropped has to stay."""
    rows = [row(n, "what is it", "failed after maximum attempts") for n in range(3)] + [row(9, "what is it", "fine")]
    write_jsonl(tmp_path / "in.jsonl", rows)
    run(make_recipe(
        tmp_path / "out", {"toy": tmp_path / "in.jsonl"}, stages=["filter", "dedup"],
        filter={"steps": [{"kind": "answer"}]}, dedup={"near": {"threshold": 0.1, "bands": 64, "rows": 1}},
    ))  # fmt: skip
    final = verdicts(tmp_path / "out", "near")
    assert {verdict[0] for verdict in final.values()} == {"answer"}
    assert len(final) == 3


# --- near ----------------------------------------------------------------------------------------------------------


def edited(rng, text):
    """The text with a few words replaced, taken out or added."""
    words = text.split()
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(len(words))
        words[place : place + rng.randrange(2)] = rng.choices(ENGLISH, k=rng.randrange(2))
        words = words or ["x"]
    return " ".join(words)


def families(seed, count=70):
    """Texts with chains of edits, so that clusters are more than pairs."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        text = sentence(rng, ENGLISH, rng.randrange(20, 80))
        for _ in range(rng.choice([1, 1, 2, 3, 5])):
            texts.append(text)
            text = edited(rng, rng.choice([text, *texts[-2:]]))
    rng.shuffle(texts)
    return [row(n, text, "the answer") for n, text in enumerate(texts)]


def word_ngrams(text, n=5):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[at : at + n]) for at in range(max(1, len(words) - n + 1))}


def brute_force(base, threshold, bands, rows):
    """{(one example id, the other): Jaccard} of all pairs at or above the threshold that share a band, over Python sets."""
    texts = ["\n".join(message["content"] for message in item["messages"]) for item in base]
    banded = band_hashes(signatures(*shingles(pa.array(texts), 5)), bands, rows)
    sets = [word_ngrams(text) for text in texts]
    names = [item["source_example_id"] for item in base]
    truth = {}
    for a, b in itertools.combinations(range(len(base)), 2):
        jaccard = len(sets[a] & sets[b]) / len(sets[a] | sets[b])
        if jaccard >= threshold and (banded[a] == banded[b]).any():
            first, second = sorted((a, b), key=lambda n: (len(names[n]), names[n]))
            truth[names[first], names[second]] = jaccard
    return truth


@pytest.mark.parametrize("seed", range(3))
def test_pairs_and_clusters_equal_brute_force(tmp_path, seed):
    dedup(tmp_path, families(seed), InProcessEngine(batch_rows=3, seed=seed), near=NEAR)
    out = tmp_path / "out"
    base = read(stage(out, "ingest"))
    truth = brute_force(base, NEAR["threshold"], NEAR["bands"], NEAR["rows"])
    assert len(truth) > 30
    pairs = read(stage(out, "pairs"))
    assert {(item["a"], item["b"]): item["jaccard"] for item in pairs} == truth
    assert len(pairs) == len(truth)

    ids = sorted(item["id"] for item in base)
    number = {key: place for place, key in enumerate(ids)}
    named = {item["source_example_id"]: number[item["id"]] for item in base}
    ends = np.array([[named[a], named[b]] for a, b in truth]).T
    graph = coo_array((np.ones(len(truth)), ends), shape=(len(ids), len(ids)))
    _, labels = connected_components(graph, directed=False)
    for item in read(stage(out, "near")):
        members = [ids[place] for place in np.flatnonzero(labels == labels[number[item["id"]]])]
        if len(members) == 1:
            alone = {"cluster_id": item["id"], "cluster_size": 1, "cluster_rank": 0, "cluster_jaccard": 1.0}
            assert item == {"id": item["id"], "verdict": None} | alone
            continue
        assert item["cluster_id"] == members[0]
        assert (item["cluster_size"], item["cluster_rank"]) == (len(members), members.index(item["id"]))
        survivor = str(uuid.UUID(bytes=members[0]))
        lost = {"step": "near", "reason": "near_duplicate", "value": survivor}
        assert item["verdict"] == (None if item["id"] == members[0] else lost)


def test_threshold_counts_as_reached(tmp_path):
    """Texts of 8, 10 and 11 words, each the start of the next, have 4, 6 and 7 5-grams: J is 4/6, 6/7 and 4/7."""
    words = [f"w{n}" for n in range(10)]
    rows = [
        row(1, " ".join(words[:9]), words[9]),
        row(2, " ".join(words), "w10"),
        row(3, words[0], " ".join(words[1:8])),
    ]
    for threshold, lost in ((6 / 7, 1), (6 / 7 + 1e-9, 0), (4 / 6, 2), (4 / 7, 2)):
        folder = tmp_path / str(threshold)
        folder.mkdir()
        dedup(folder, rows, near={"threshold": threshold, "bands": 128, "rows": 1})
        assert len(verdicts(folder / "out", "near")) == lost, threshold


def test_hot_band_is_capped_and_counted(tmp_path):
    """Sixty equal texts share every band: each meets at most three earlier ones, and all are one cluster still."""
    rows = [row(n, "the same question for everybody in this room", "and one answer") for n in range(60)]
    near = {"threshold": 0.8, "max_partners": 3, "num_canaries": 0}
    dedup(tmp_path, rows, InProcessEngine(batch_rows=5), near=near)
    manifest = stage(tmp_path / "out", "candidates").manifest
    made, possible = 3 * 60 - (1 + 2 + 3), 60 * 59 // 2
    assert manifest.distributions["pairs_left_out"] == 21 * (possible - made)
    assert len({(item["a"], item["b"]) for item in read(stage(tmp_path / "out", "edges"))}) == made
    assert stage(tmp_path / "out", "pairs").manifest.rows_in == made
    assert sum(item["verdict"] is None for item in read(stage(tmp_path / "out", "near"))) == 1


@pytest.mark.parametrize("block_bytes", [64, 1500, 6000])
def test_pairs_do_not_depend_on_the_blocks(tmp_path, monkeypatch, block_bytes):
    """Families of edits and, joining them into one component, a long sentence that half of the rows share."""
    rng = random.Random(block_bytes)
    shared = sentence(rng, ENGLISH, 30)
    rows = [item | {"query": f"{item['query']} {shared}"} if n % 2 else item for n, item in enumerate(families(5, 30))]
    near = {"threshold": 0.6, "bands": 40, "rows": 3, "max_partners": 5}
    found = {}
    for size in (1 << 20, block_bytes):
        monkeypatch.setattr("etl.stages.near.BLOCK_BYTES", size)
        folder = tmp_path / str(size)
        folder.mkdir()
        dedup(folder, rows, InProcessEngine(batch_rows=4), near=near)
        found[size] = stage(folder / "out", "pairs").manifest
        blocks = {item["block"] for item in read(stage(folder / "out", "edges"))}
        assert any(block < 0 for block in blocks) == (size == block_bytes)
    assert found[1 << 20].rows_out > 20
    assert found[1 << 20].content_digest == found[block_bytes].content_digest
    assert found[1 << 20].rows_in == found[block_bytes].rows_in


def test_rows_that_exact_dedup_dropped_are_no_candidates(tmp_path):
    rows = [item | {"synth_id": f"{item['synth_id']}-{copy}"} for item in plain_rows(10) for copy in range(3)]
    dedup(tmp_path, rows, exact={}, near={"threshold": 0.8, "num_canaries": 0})
    assert stage(tmp_path / "out", "candidates").manifest.rows_out == 0
    assert stage(tmp_path / "out", "pairs").manifest.rows_out == 0
    assert set(verdicts(tmp_path / "out", "near")) == set(verdicts(tmp_path / "out", "exact"))


def test_survivors_do_not_depend_on_the_cut_or_the_order(tmp_path):
    rows = mixed_rows(120)
    found = []
    for number, (batch_rows, buckets, mine) in enumerate([(3, 1 << 10, rows), (1000, 1 << 30, rows[::-1])]):
        folder = tmp_path / str(number)
        write_jsonl(folder / "in.jsonl", mine)
        recipe = make_recipe(
            folder / "out", {"toy": folder / "in.jsonl"}, stages=["dedup"],
            run={"split_bytes": 4096 << 10 * number, "bucket_bytes": buckets},
        )  # fmt: skip
        run(recipe, InProcessEngine(batch_rows=batch_rows, seed=number))
        found.append(verdicts(folder / "out", "near"))
    assert found[0] == found[1]
    assert {verdict[0] for verdict in found[0].values()} == {"exact", "near"}


@pytest.mark.parametrize("batch_rows", [1, 2, 3, 7, 100])
def test_rows_know_the_first_of_their_group_however_the_stream_is_cut(batch_rows):
    keys = [b"a"] * 5 + [b"b"] + [b"c"] * 9 + [b"d", b"e"] + [b"f"] * 4
    table = pa.table({"key": keys, "n": range(len(keys))})
    found = {}
    for piece, first in first_of_groups(table.to_batches(max_chunksize=batch_rows), "key"):
        assert len(piece) <= batch_rows + 1
        numbers = piece["n"].to_pylist()
        found |= {number: numbers[place] for number, place in zip(numbers, first, strict=True)}
    assert found == {number: keys.index(key) for number, key in enumerate(keys)}


@pytest.mark.parametrize("batch_rows", [1, 3, 10, 16, 100])
def test_row_groups_do_not_depend_on_the_batches_that_arrive(batch_rows):
    table = pa.table({"n": range(33)})
    chunks = [chunk.batch for chunk in recut(table.to_batches(max_chunksize=batch_rows), rows=8)]
    assert [batch.num_rows for batch in chunks] == [8, 8, 8, 8, 1]
    assert [n for batch in chunks for n in batch.column("n").to_pylist()] == list(range(33))


@pytest.mark.parametrize("batch_rows", [1, 4, 7, 1000])
def test_candidate_blocks_do_not_depend_on_the_batches_that_arrive(monkeypatch, batch_rows):
    """Five rows in each of 20 bands are 10 pairs a band, 200 in all; a block of 64 holds each pair once."""
    monkeypatch.setattr("etl.stages.near.PAIR_BLOCK", 64)
    band = np.repeat(np.arange(20), 5)
    table = pa.table({"band": band, "row": np.tile(np.arange(5), 20), "key": np.tile(np.arange(5), 20)})
    table = table.append_column("sketch", pa.array([bytes(16)] * 100))
    chunks = list(PairUp(NearDedup(max_partners=8))(0, iter(table.to_batches(max_chunksize=batch_rows))))
    assert [chunk.batch.num_rows for chunk in chunks if chunk.batch] == [10, 10, 10, 8]
    assert sum(chunk.rows_in for chunk in chunks) == 100
