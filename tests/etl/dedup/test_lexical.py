import itertools
import math

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.lexical import NUM_SLOTS, SLOT_BITS, count_terms, embed, rarity
from etl.text import ngram_hashes

TEXTS = [
    "the cat sat on the mat and the dog sat too",
    "the cat sat on the mat and the dog stood up",
    "prove that the square root of two is irrational",
    "show that the square root of 2 is not rational",
    "write a function that reverses a list",
    "",
]


def terms(text):
    words = text.split()
    return [*words, *itertools.pairwise(words)] if len(words) > 1 else None


def counted(texts):
    counts = np.zeros(NUM_SLOTS, np.int64)
    count_terms(pa.array(texts, pa.string()), counts)
    return counts


def test_counts_are_of_rows_and_add_up_over_batches():
    counts = counted(TEXTS)
    _, hashes = ngram_hashes(pa.array(["the", "cat", "zebra"]), 1)
    assert counts[(hashes >> np.uint64(64 - SLOT_BITS)).astype(int)].tolist() == [4, 2, 0]
    assert np.array_equal(counts, counted(TEXTS[:2]) + counted(TEXTS[2:]))


def test_rarity_is_the_smoothed_idf():
    found = rarity(np.array([0, 3, 9]), 9)
    assert np.allclose(found / 65536, [1 + math.log(10), 1 + math.log(10 / 4), 1], atol=1e-5)


def cosines(vectors):
    floats = vectors.astype(float)
    floats /= np.maximum(np.linalg.norm(floats, axis=1, keepdims=True), 1e-9)
    return floats @ floats.T


def test_cosines_are_those_of_plain_tf_idf():
    """Against dictionaries of words and pairs; the projection adds an error of (1 - c^2) / sqrt(dim)."""
    texts = [*TEXTS[:5], "list list list list list two", "list two"]
    documents = [terms(text) for text in texts]
    of_rows = {term: sum(term in document for document in documents) for document in documents for term in document}
    plain = np.zeros((len(texts), len(of_rows)))
    for row, document in enumerate(documents):
        for place, term in enumerate(of_rows):
            if term in document:
                plain[row, place] = (1 + math.log(document.count(term))) * (1 + math.log(8 / (1 + of_rows[term])))
    vectors = embed(pa.array(texts), rarity(counted(texts), 7), 4096, 0)
    assert np.abs(cosines(vectors) - cosines(plain)).max() < 0.05


@given(st.permutations(range(len(TEXTS))), st.integers(0, 6))
def test_a_vector_is_its_texts_own(order, cut):
    rare = rarity(counted(TEXTS), len(TEXTS))
    whole = embed(pa.array(TEXTS), rare, 64, 7)
    shuffled = [TEXTS[place] for place in order]
    pieces = [embed(pa.array(piece, pa.string()), rare, 64, 7) for piece in (shuffled[:cut], shuffled[cut:])]
    assert np.array_equal(np.concatenate(pieces), whole[list(order)])


def test_the_seed_draws_another_projection():
    rare = rarity(counted(TEXTS), len(TEXTS))
    one, other = (embed(pa.array(TEXTS), rare, 64, seed) for seed in (0, 1))
    assert not np.array_equal(one, other)


def test_a_word_adds_to_one_component_of_each_quarter():
    rare = rarity(counted(["word"]), 1)
    vectors = embed(pa.array([f"word{n}" for n in range(50)]), rare, 64, 0).reshape(50, 4, 16)
    # A single word comes with one pair, of it and nothing.
    assert set((vectors != 0).sum(axis=2).ravel().tolist()) <= {0, 1, 2}
    assert ((vectors != 0).sum(axis=(1, 2)) > 4).all()
    assert vectors.min() == -127
