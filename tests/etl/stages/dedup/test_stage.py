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
from etl.dedup.near import NearDedup
from etl.errors import SchemaError
from etl.hashing import hash_columns, signed
from etl.run.run import run_recipe
from etl.schema import PROMPT
from etl.stages.dedup.bands import PairUp, band_schema
from etl.stages.keyed import first_of_groups, recut
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


def test_by_row_only_messages_that_are_the_same_are_equal(tmp_path):
    rows = [row(1, "a  b", "c"), row(2, "a b", "c"), row(3, "a b", "c"), row(4, "a b", "c", "why")]
    dedup(tmp_path, rows, exact={"by": "row"})
    lost = verdicts(tmp_path / "out", "exact")
    names = {item["id"]: item["source_example_id"] for item in read(stage(tmp_path / "out", "ingest"))}
    assert {names[key] for key in lost} in ({"r2"}, {"r3"})


def two_sources(tmp_path, rows, others, **section):
    """A run over sources `a` and `b`."""
    sources = {"a": write_jsonl(tmp_path / "a.jsonl", rows), "b": write_jsonl(tmp_path / "b.jsonl", others)}
    return run(make_recipe(tmp_path / "out", sources, stages=["dedup"], dedup={"near": None} | section))


@pytest.mark.parametrize(("priority", "left"), [(["a", "b"], "a"), (["b", "a"], "b"), (["b"], "b")])
def test_the_source_of_highest_priority_keeps_its_copy(tmp_path, priority, left):
    shared = families(2, 8)
    near = {"threshold": 0.6, "num_canaries": 0}
    two_sources(tmp_path, shared, shared, survivor={"sources": priority}, near=near)
    kept = [item for item in read(stage(tmp_path / "out", "near")) if item["verdict"] is None]
    source = {item["id"]: item["source_dataset"] for item in read(stage(tmp_path / "out", "ingest"))}
    assert {source[item["id"]] for item in kept} == {left}
    assert {source[key] for key in verdicts(tmp_path / "out", "exact")} == {"a", "b"} - {left} | (
        {left} if len({item["query"] for item in shared}) < len(shared) else set()
    )


def test_sources_tell_what_they_have_in_common(tmp_path):
    """40 rows of `a`; `b` has 10 of them and nothing else, `a` three rows twice."""
    rows = plain_rows(40)
    lines = []
    sources = {
        "a": write_jsonl(tmp_path / "a.jsonl", rows + [rows[n] | {"synth_id": f"again-{n}"} for n in range(3)]),
        "b": write_jsonl(tmp_path / "b.jsonl", rows[20:30]),
    }
    recipe = make_recipe(
        tmp_path / "out", sources, stages=["dedup"], dedup={"survivor": {"sources": ["a"]}, "near": {"num_canaries": 0}}
    )
    run_recipe(recipe, InProcessEngine(), lines.append)
    found = stage(tmp_path / "out", "clusters").manifest.findings["sources"]
    assert found["a"]["removed"] == {"exact": 3, "near": 0}
    assert found["a"]["over_select"] == round(43 / 40, 6)
    assert found["a"]["in_others"] == {"b": {"exact": 10, "near": 0, "share": round(10 / 43, 6)}}
    assert found["b"]["removed_share"] == 1.0
    assert found["b"]["in_others"]["a"]["share"] == 1.0
    assert any("warning: 100.0% of b stands in a" in line for line in lines)


def test_a_priority_of_an_unknown_source_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"dedup.survivor.sources names \['c'\]; the recipe's sources are \['a', 'b'\]"
    ):
        two_sources(tmp_path, plain_rows(1), plain_rows(1), survivor={"sources": ["a", "c"]})


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
    """{(example id, example id): Jaccard} of all pairs that reach the threshold and share a band, over Python sets."""
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
        monkeypatch.setattr("etl.stages.dedup.near.BLOCK_BYTES", size)
        folder = tmp_path / str(size)
        folder.mkdir()
        dedup(folder, rows, InProcessEngine(batch_rows=4), near=near)
        found[size] = stage(folder / "out", "pairs").manifest
        blocks = {item["block"] for item in read(stage(folder / "out", "edges"))}
        assert any(block < 0 for block in blocks) == (size == block_bytes)
    assert found[1 << 20].rows_out > 20
    assert found[1 << 20].content_digest == found[block_bytes].content_digest
    assert found[1 << 20].rows_in == found[block_bytes].rows_in


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
    """The score stands before dedup: the row of the surest language of each cluster stays."""
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


def test_a_score_that_nothing_adds_is_refused_before_a_row_is_read(tmp_path):
    write_parquet(tmp_path / "in.parquet", plain_rows(3))
    recipe = make_recipe(
        tmp_path / "out", {"toy": tmp_path / "in.parquet"}, stages=["dedup"], dedup={"survivor": {"score": "composite"}}
    )
    with pytest.raises(SchemaError, match="no earlier stage adds the column 'composite'"):
        run(recipe)
    assert not (tmp_path / "out").exists()


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


def test_star_contraction_gives_the_clusters_of_one_task(tmp_path):
    """With no room for edges in one task, labels and blocks come from rounds of shuffles."""
    rows = [*families(12), *long_rows(30)]
    found = {}
    for edges in (0, 1 << 20):
        write_jsonl(tmp_path / f"{edges}.jsonl", rows)
        out = tmp_path / str(edges)
        recipe = make_recipe(
            out, {"toy": tmp_path / f"{edges}.jsonl"}, stages=["dedup"], dedup={"exact": None, "near": NEAR},
            run={"split_bytes": 8192, "bucket_bytes": 8192, "max_component_edges": edges},
        )  # fmt: skip
        run(recipe, InProcessEngine(batch_rows=6))
        found[edges] = without_canaries(out, ("pairs", "components", "near_hits", "near", "clusters"))
        assert (out / "rounds").exists() == (edges == 0)
        told = stage(out, "near").manifest.findings["canaries"]
        assert sum(level["made"] for level in told["by_jaccard"].values()) > 20
        assert told["recall"] == 1.0
    assert found[0] == found[1 << 20]


def long_rows(count, seed=0):
    rng = random.Random(seed)
    return [row(n, sentence(rng, ENGLISH, 60), sentence(rng, ENGLISH, 60)) for n in range(count)]


def without_canaries(output, names=("pairs", "near", "clusters", "near_hits", "dropped")):
    return {name: stage(output, name).manifest.content_digest for name in names}


def test_canaries_measure_the_run_and_change_nothing(tmp_path):
    rows = [*families(11), *long_rows(200)]
    found = {}
    for number in (0, 1000):
        folder = tmp_path / str(number)
        folder.mkdir()
        dedup(folder, rows, InProcessEngine(batch_rows=5), near={"num_canaries": number, "max_partners": 4})
        found[number] = stage(folder / "out", "near").manifest.findings["canaries"]
    assert without_canaries(tmp_path / "0" / "out") == without_canaries(tmp_path / "1000" / "out")
    assert found[0]["recall"] is None
    made = sum(level["made"] for level in found[1000]["by_jaccard"].values())
    assert 200 < made <= len(rows)
    assert found[1000]["recall"] > 0.98
    assert found[1000]["precision"] == 1.0
    for name, level in found[1000]["by_jaccard"].items():
        below = name in ("0.7-0.75", "0.75-0.8")
        assert level["reported"] == 0 if below else level["recall"] > 0.9


def test_canaries_tell_of_bands_that_meet_too_few(tmp_path):
    dedup(tmp_path, long_rows(600), near={"bands": 2, "rows": 20})
    found = stage(tmp_path / "out", "near").manifest.findings["canaries"]["by_jaccard"]
    expected = 1 - (1 - 0.825**20) ** 2
    assert found["0.8-0.85"]["recall"] == pytest.approx(expected, abs=0.08)
    assert found["1"]["recall"] == 1.0


def test_canaries_tell_what_an_estimate_gets_wrong(tmp_path):
    dedup(tmp_path, long_rows(600), near={"verify": "estimate"})
    found = stage(tmp_path / "out", "near").manifest.findings["canaries"]
    assert 0.5 < found["precision"] < 0.99
    assert 0.8 < found["recall"] < 1.0
    assert 0 < found["by_jaccard"]["0.75-0.8"]["reported"] < found["by_jaccard"]["0.75-0.8"]["made"]


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
    monkeypatch.setattr("etl.stages.dedup.bands.PAIR_BLOCK", 64)
    band = np.repeat(np.arange(20), 5)
    numbers, none = np.tile(np.arange(5), 20), np.zeros(100, np.int64)
    columns = [none.astype(np.int32), band, numbers, numbers, none, none]
    table = pa.Table.from_arrays([pa.array(column) for column in columns], schema=band_schema(2))
    chunks = list(PairUp(NearDedup(max_partners=8))(0, iter(table.to_batches(max_chunksize=batch_rows))))
    assert [chunk.batch.num_rows for chunk in chunks if chunk.batch] == [10, 10, 10, 8]
    assert sum(chunk.rows_in for chunk in chunks) == 100
