"""Near dedup from rows to verified pairs, against brute force over Python sets, and what canaries report."""

import itertools
import random
import uuid

import numpy as np
import pyarrow as pa
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from etl.dedup.minhash import band_hashes, signatures
from etl.engine import nothing
from etl.stages.run import run_recipe
from etl.text import shingles
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.dedup.toys import NEAR, dedup, digests, families, long_rows, word_ngrams
from tests.etl.stages.toys import ENGLISH, make_recipe, read, row, sentence, stage, verdicts, write_jsonl

WRITTEN = ("pairs", "near", "clusters", "near_hits", "dropped")


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


def test_hot_band_is_capped_and_counted(tmp_path):
    """Sixty equal texts share every band: each meets at most three earlier ones, and still all are one cluster."""
    rows = [row(n, "the same question for everybody in this room", "and one answer") for n in range(60)]
    near = {"unit": "word", "threshold": 0.8, "max_partners": 3, "num_canaries": 0}
    dedup(tmp_path, rows, InProcessEngine(batch_rows=5), near=near)
    manifest = stage(tmp_path / "out", "candidates").manifest
    made, possible = 3 * 60 - (1 + 2 + 3), 60 * 59 // 2
    assert manifest.distributions["pairs_left_out"] == 21 * (possible - made)
    assert len({(item["a"], item["b"]) for item in read(stage(tmp_path / "out", "edges"))}) == made
    assert stage(tmp_path / "out", "pairs").manifest.rows_in == made
    assert sum(item["verdict"] is None for item in read(stage(tmp_path / "out", "near"))) == 1


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
        dedup(folder, rows, near={"unit": "word", "threshold": threshold, "bands": 128, "rows": 1})
        assert len(verdicts(folder / "out", "near")) == lost, threshold


@pytest.mark.parametrize("block_bytes", [64, 1500, 6000])
def test_pairs_do_not_depend_on_the_blocks(tmp_path, monkeypatch, block_bytes):
    """Families of edits and, joining them into one component, a long sentence that half of the rows share."""
    rng = random.Random(block_bytes)
    shared = sentence(rng, ENGLISH, 30)
    rows = [item | {"query": f"{item['query']} {shared}"} if n % 2 else item for n, item in enumerate(families(5, 30))]
    near = {"unit": "word", "threshold": 0.6, "bands": 40, "rows": 3, "max_partners": 5}
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


def test_canaries_measure_the_run_and_change_nothing(tmp_path):
    rows = [*families(11), *long_rows(200)]
    found = {}
    for number in (0, 1000):
        folder = tmp_path / str(number)
        folder.mkdir()
        dedup(folder, rows, InProcessEngine(batch_rows=5), near={"num_canaries": number, "max_partners": 4})
        found[number] = stage(folder / "out", "near").manifest.findings["canaries"]
    assert digests(tmp_path / "0" / "out", WRITTEN) == digests(tmp_path / "1000" / "out", WRITTEN)
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


def test_pairs_that_differ_in_signs_alone_are_counted_and_said(tmp_path):
    """C++ and C#, + and −: one text without signs, as prose; none with them."""
    texts = ["write it in C++ or leave", "write it in C# or leave", "what is 3 + 4 of these", "what is 3 − 4 of these"]
    rows = [row(n, text, "a short answer") for n, text in enumerate(texts)]
    sources = {"toy": write_jsonl(tmp_path / "in.jsonl", rows)}
    found = {}
    for unit in ("auto", "word", "token"):
        lines = []
        out = tmp_path / unit
        section = {"exact": None, "near": {"unit": unit, "num_canaries": 0}}
        run_recipe(make_recipe(out, sources, stages=["dedup"], dedup=section), InProcessEngine(), lines.append)
        found[unit] = stage(out, "near").manifest.findings["pairs"]["differ_in_signs_alone"]
        assert any("2 of the pairs differ in signs alone" in line for line in lines) == (unit != "token")
    assert found == {"auto": 2, "word": 2, "token": 0}


class Crossing(InProcessEngine):
    """Never does both sides of a shuffle in one task."""

    def gather(self, job, exchange, fn, then=nothing):
        dataset = self.shuffle(job, exchange, fn)
        then(dataset)
        return dataset


def test_one_task_writes_what_shuffles_write(tmp_path, monkeypatch):
    """Pairs that fit one task take one job up to their clusters, and give the same files as shuffles do."""
    names = ("edges", "sets", "pairs", "components", "near_hits", "near", "clusters", "dropped")
    rows = [*families(3), *long_rows(30)]
    engines = {"gathered": InProcessEngine(seed=1), "crossed": Crossing(seed=2), "small": InProcessEngine(seed=3)}
    made = {}
    for name, engine in engines.items():
        cut = {"split_bytes": 8192, "bucket_bytes": 4096 if name == "small" else 1 << 28}
        (tmp_path / name).mkdir()
        with monkeypatch.context() as patch:
            if name == "crossed":
                patch.setattr("etl.stages.dedup.near.fits_one_task", lambda *_: False)
            dedup(tmp_path / name, rows, engine, near=NEAR, run=cut)
        made[name] = {folder: stage(tmp_path / name / "out", folder).manifest for folder in names}
    assert made["gathered"]["pairs"].rows_out > 30
    assert made["gathered"] == made["crossed"]
    found = {name: digests(tmp_path / name / "out", names) for name in engines}
    assert found["gathered"] == found["small"]
    jobs = {name: list(dict.fromkeys(title for title, _ in engine.ran)) for name, engine in engines.items()}
    assert jobs["gathered"][-3:] == ["sets", "pairs+components+near_hits", "near+clusters+dropped"]
    assert "pairs" in jobs["crossed"]
    assert "pairs" in jobs["small"]
