"""Texts to verified pairs, in memory, against exact truth: licences, articles, a slice of a corpus."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.dedup.candidates import CandidateStream, Rows
from etl.dedup.minhash import (
    band_hashes,
    candidate_probability,
    choose_bands,
    most_disagreement,
    signatures,
    sketches,
)
from etl.dedup.verify import jaccard_pairs
from etl.text import char_shingles, shingles

THRESHOLD = 0.8
Pairs = dict[tuple[int, int], float]


def read_jsonl(path: Path) -> list[Any]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def verified_pairs(offsets: np.ndarray, hashes: np.ndarray, seed: int = 1) -> Pairs:
    signed = signatures(offsets, hashes, seed=seed)
    bands = band_hashes(signed, *choose_bands(THRESHOLD, 128, 0.998))
    row = np.repeat(np.arange(len(bands)), bands.shape[1])
    order = np.lexsort((row, bands.ravel()))
    stream = CandidateStream(64, most_disagreement(THRESHOLD, 128), 0, 2)
    met = stream.push(Rows(bands.ravel()[order], row[order], row[order], sketches(signed, 1)[row[order]]))
    pairs = np.unique(met[:, :2].T, axis=1)
    jaccard = jaccard_pairs(offsets, hashes, pairs[0], pairs[1])
    kept = jaccard >= THRESHOLD - 1e-12
    return dict(zip(zip(*pairs[:, kept].tolist(), strict=True), jaccard[kept].tolist(), strict=True))


@pytest.fixture(scope="module")
def licences(shared_data: Path) -> tuple[np.ndarray, np.ndarray, Pairs]:
    rows = read_jsonl(shared_data / "dedup_licences" / "spdx_licences.jsonl.gz")
    number = {row["id"]: i for i, row in enumerate(rows)}
    truth = read_jsonl(shared_data / "dedup_licences" / "pairs_jaccard_ge_0.5.jsonl.gz")
    pairs = {
        (min(number[p["a"]], number[p["b"]]), max(number[p["a"]], number[p["b"]])): p["jaccard_word5"] for p in truth
    }
    return *shingles(pa.array([row["text"] for row in rows]), 5), pairs


@pytest.mark.shared
def test_jaccard_of_licences_equals_the_truth(licences: tuple[np.ndarray, np.ndarray, Pairs]) -> None:
    offsets, hashes, truth = licences
    left, right = np.indices((len(offsets) - 1, len(offsets) - 1)).reshape(2, -1)
    jaccard = jaccard_pairs(offsets, hashes, left[left < right], right[left < right])
    found = np.flatnonzero(jaccard >= 0.5)
    pairs = list(zip(left[left < right][found].tolist(), right[left < right][found].tolist(), strict=True))
    assert set(pairs) == set(truth)
    assert [truth[pair] for pair in pairs] == pytest.approx(jaccard[found], abs=0.5e-4 + 1e-9)


@pytest.mark.shared
def test_similar_licences_are_found_and_no_others(licences: tuple[np.ndarray, np.ndarray, Pairs]) -> None:
    offsets, hashes, truth = licences
    similar = {pair for pair, jaccard in truth.items() if jaccard >= THRESHOLD}
    recalls = []
    for seed in range(1, 21):
        found = set(verified_pairs(offsets, hashes, seed))
        assert found <= similar
        recalls.append(len(found) / len(similar))
    assert recalls[0] >= 0.99
    assert np.mean(recalls) >= 0.998


@pytest.mark.shared
def test_recall_over_many_seeds_is_the_s_curve(licences: tuple[np.ndarray, np.ndarray, Pairs]) -> None:
    """A seed may find all pairs or miss a family of licences at once, as its pairs share their shingles."""
    offsets, hashes, truth = licences
    left, right = np.array([pair for pair, jaccard in truth.items() if jaccard >= THRESHOLD]).T
    jaccard = jaccard_pairs(offsets, hashes, left, right)
    expected = np.mean([candidate_probability(j, 14, 8) for j in jaccard])
    recalls = []
    for seed in range(100):
        bands = band_hashes(signatures(offsets, hashes, seed=seed), 14, 8)
        recalls.append((bands[left] == bands[right]).any(axis=1).mean())
    assert np.mean(recalls) == pytest.approx(expected, abs=4 * np.std(recalls) / np.sqrt(len(recalls)))


@pytest.mark.shared
def test_slice_of_the_benchmark_corpus(shared_data: Path) -> None:
    corpus = pq.ParquetFile(shared_data / "bench_corpus" / "corpus.parquet").read_row_group(0, columns=["text"])
    pairs = pq.read_table(shared_data / "bench_corpus" / "exact_pairs.parquet")
    listed = zip(*(pairs[name].to_pylist() for name in ("a", "b", "j")), strict=True)
    truth = {(a, b): j for a, b, j in listed if b < corpus.num_rows}
    found = verified_pairs(*shingles(corpus["text"], 5))
    assert set(found) <= set(truth)
    assert len(found) >= 0.99 * len(truth)
    assert {pair: truth[pair] for pair in found} == pytest.approx(found, abs=0.5e-6 + 1e-12)


@pytest.mark.shared
def test_planted_articles_are_found(shared_data: Path) -> None:
    rows = read_jsonl(shared_data / "dedup_articles" / "articles_1000.jsonl.gz")
    truth = read_jsonl(shared_data / "dedup_articles" / "articles_1000_truth.jsonl.gz")
    found = verified_pairs(*shingles(pa.array([row["text"] for row in rows]), 5))
    names = {frozenset((rows[a]["id"], rows[b]["id"])) for a, b in found}
    assert names == {frozenset((pair["a"], pair["b"])) for pair in truth}


@pytest.mark.shared
def test_character_ngrams_give_the_listed_similarity_of_edited_texts(shared_data: Path) -> None:
    folder = shared_data / "bench_corpus"
    pairs = pq.read_table(folder / "injected_pairs.parquet").slice(0, 400)
    corpus = pq.read_table(folder / "corpus.parquet", columns=["text"])["text"]
    base, copy = (corpus.take(pairs[name]) for name in ("base_id", "dup_id"))
    texts = pa.chunked_array([*base.chunks, *copy.chunks]).combine_chunks()
    left = np.arange(len(pairs), dtype=np.int64)
    found = jaccard_pairs(*char_shingles(texts, 5), left, left + len(pairs))
    assert found.tolist() == pytest.approx(pairs["j_c5"].to_pylist(), abs=1e-6)
