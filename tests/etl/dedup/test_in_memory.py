"""Near duplicates in memory against brute force over Python sets, for words and characters."""

import itertools
import re

import numpy as np
import pyarrow as pa
import pytest

from etl.dedup.in_memory import near_duplicates
from etl.dedup.near import NearDedup
from etl.errors import SchemaError
from tests.etl.stages.dedup.toys import families


def texts_of(seed: int) -> list[str]:
    return [item["query"] for item in families(seed)]


def grams(text: str, near: NearDedup) -> set[object]:
    words = re.findall(r"\w+", text.lower())
    parts: list[str] = list(" ".join(words)) if near.unit == "char" else words
    return {tuple(parts[n : n + near.ngram]) for n in range(max(1, len(parts) - near.ngram + 1))}


@pytest.mark.parametrize(
    "near", [NearDedup(unit="word", threshold=0.6), NearDedup(threshold=0.7, unit="char", ngram=7)]
)
def test_pairs_and_clusters_are_those_of_the_sets(near: NearDedup) -> None:
    texts = texts_of(4)
    found = near_duplicates(pa.array(texts), near)
    sets = [grams(text, near) for text in texts]
    truth = {}
    for a, b in itertools.combinations(range(len(texts)), 2):
        jaccard = len(sets[a] & sets[b]) / len(sets[a] | sets[b])
        if jaccard >= near.threshold:
            truth[a, b] = jaccard
    pairs = list(zip(found.left.tolist(), found.right.tolist(), strict=True))
    assert set(pairs) <= set(truth)
    assert len(pairs) >= 0.98 * len(truth) > 30
    assert found.jaccard.tolist() == pytest.approx([truth[pair] for pair in pairs], abs=1e-12)
    label = list(range(len(texts)))
    for _ in texts:
        for a, b in pairs:
            label[a] = label[b] = min(label[a], label[b])
    assert found.label.tolist() == label


def test_estimates_lie_near_the_truth() -> None:
    texts = pa.array(texts_of(5))
    exact = near_duplicates(texts, NearDedup(unit="word", threshold=0.5))
    estimated = near_duplicates(texts, NearDedup(unit="word", threshold=0.5, verify="estimate"))
    truth = dict(zip(zip(exact.left, exact.right, strict=True), exact.jaccard, strict=True))
    pairs = zip(estimated.left, estimated.right, strict=True)
    errors = [j - truth[pair] for pair, j in zip(pairs, estimated.jaccard, strict=True) if pair in truth]
    assert len(errors) > 0.9 * len(truth)
    assert abs(np.mean(errors)) < 0.03
    assert np.max(np.abs(errors)) < 0.2


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int16(), pa.string())], ids=str)
def test_any_string_type_gives_the_same_duplicates(kind: pa.DataType) -> None:
    texts = texts_of(4)
    expected = near_duplicates(pa.array(texts), NearDedup(unit="word", threshold=0.6))
    assert len(expected.left) > 0
    halves = [pa.array(half, kind) for half in (texts[:50], texts[50:])]
    for typed in (pa.array(texts, kind), pa.chunked_array(halves)):
        assert near_duplicates(typed, NearDedup(unit="word", threshold=0.6)).left.tolist() == expected.left.tolist()


def test_what_is_no_text_is_named() -> None:
    with pytest.raises(SchemaError, match="the texts are int64, but strings are needed"):
        near_duplicates(pa.array([1, 2]), NearDedup())


def test_no_texts_have_no_duplicates() -> None:
    found = near_duplicates(pa.array([], pa.string()), NearDedup())
    assert (len(found.left), len(found.label)) == (0, 0)
