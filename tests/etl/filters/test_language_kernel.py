"""Our kernel beside fasttext-predict: the same labels, and scores that differ only by the order of additions."""

import gzip
import json
import threading

import fasttext
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.artefacts import fetch
from etl.filters.language import MODEL_SHA256, MODEL_URI, classifier
from etl.filters.language_kernel import NOTHING, Classifier
from etl.filters.language_text import judged_texts
from etl.models.fasttext_model import read_fasttext
from tests.etl.models.fasttext_files import fasttext_bytes

TOLERANCE = 1e-4
"""Largest difference of two scores: what is stored is rounded to as much."""

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "äöüßéèçñąłø", "абвгдежзийклмн", "αβγδεζηθικλ", "ابتثجحخدذرز", "אבגדהוזחט",
    "कखगघचछजझ\u093e\u093f\u094d", "กขคงจฉชเแ\u0e31\u0e34", "的一是不了人我在有他", "あいうえお", "가나다라", "አሁን",
    "0123456789.,!?-'\"<>_/", "\U0001f600\U0001f680𐐷",
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return fasttext.load_model(str(fetch(MODEL_URI, MODEL_SHA256)))


@pytest.fixture(scope="module")
def judge():
    return classifier()


def predicted(judge, words):
    """Label and score of texts that are cleaned already."""
    labels, scores = judge.predict(pa.array(words, pa.string()), np.ones(len(words), np.bool_))
    return [
        (judge.labels[label] if label != NOTHING else None, score) for label, score in zip(labels, scores, strict=True)
    ]


def asked(model, words):
    """What fasttext-predict says: None where that is what it says to an empty text."""
    nothing = model.predict("")
    answers = [model.predict(text) for text in words]
    return [(None, 0.0) if answer == nothing else (answer[0][0], answer[1][0]) for answer in answers]


def agreeing(ours, theirs):
    """Share of rows with one label and scores that differ by TOLERANCE at most."""
    same = [one[0] == other[0] and abs(one[1] - other[1]) <= TOLERANCE for one, other in zip(ours, theirs, strict=True)]
    return sum(same) / len(same)


def words_of(alphabet):
    return st.text(alphabet, min_size=1, max_size=40)


@given(
    st.lists(
        st.one_of(*map(words_of, ALPHABETS), words_of("".join(ALPHABETS)), st.sampled_from(["the", "und"])), max_size=20
    )
)
@settings(max_examples=150)
def test_generated_texts_have_the_oracles_label_and_score(model, judge, words):
    text = "".join(word + " " for word in words)
    (label, score), (wanted, wanted_score) = predicted(judge, [text])[0], asked(model, [text])[0]
    assert label == wanted
    assert score == pytest.approx(wanted_score, abs=TOLERANCE)


@given(st.lists(st.text(max_size=50), max_size=6))
@settings(max_examples=100)
def test_any_text_that_was_cleaned_has_the_oracles_label(model, judge, texts):
    judged, _ = judged_texts(pa.array(texts, pa.string()), None)
    words = judged.to_pylist()
    assert [label for label, _ in predicted(judge, words)] == [label for label, _ in asked(model, words)]


@pytest.mark.parametrize(
    ("dim", "kept", "parts", "min_n", "max_n"),
    [
        (5, None, None, 2, 4),
        (16, None, None, 1, 3),
        (37, range(0, 1000, 3), 2, 2, 4),
        (20, [], 3, 3, 6),
        (3, None, None, 0, 0),
    ],
)
def test_models_of_other_shapes(tmp_path, dim, kept, parts, min_n, max_n):
    counts = {f"__label__{number}": 2 ** (12 - number) for number in range(12)}
    path = tmp_path / "toy.bin"
    path.write_bytes(
        fasttext_bytes(
            ["</s>", "the", "der", "日本"], counts, kept, parts, dim=dim, min_n=min_n, max_n=max_n, weights=3.0
        )
    )
    rng = np.random.default_rng(1)
    letters = np.array(list("thederabc日本語 <>é"))
    known = ["the", "der", "日本"]
    texts = ["".join(rng.choice(letters, size)) + " " + rng.choice(known) for size in rng.integers(1, 60, 300)]
    words = [" ".join(text.split()) + " " for text in texts]
    ours, theirs = predicted(Classifier(read_fasttext(path)), words), asked(fasttext.load_model(str(path)), words)
    assert len({label for label, _ in theirs}) > 1
    assert agreeing(ours, theirs) == 1.0


def test_a_model_of_one_label(tmp_path):
    path = tmp_path / "toy.bin"
    path.write_bytes(fasttext_bytes(["</s>", "the"], {"__label__only": 7}))
    assert predicted(Classifier(read_fasttext(path)), ["the ", "x "]) == [("__label__only", 1.0)] * 2


def test_rows_that_are_not_wanted_and_rows_without_words(judge):
    texts = pa.array(["this is English text ", "this is English text ", "", "\u1234 "], pa.string())
    labels, scores = judge.predict(texts, np.array([True, False, True, True]))
    assert labels.tolist()[1:] == [NOTHING] * 3
    assert judge.labels[labels[0]] == "__label__en"
    assert scores.tolist()[1:] == [0.0] * 3


def test_an_answer_follows_the_text_alone(judge):
    """Neither what the cache has, nor the place of a text in its array, nor another thread."""
    rng = np.random.default_rng(4)
    words = ["".join(rng.choice(list("abcdeéяж"), size)) for size in rng.integers(1, 36, 60_000)]
    texts = pa.array([" ".join(words[at : at + 20]) + " " for at in range(0, len(words), 20)], pa.string())
    wanted = np.ones(len(texts), np.bool_)
    first = judge.predict(texts, wanted)
    part = judge.predict(texts[1000:], wanted[1000:])
    alone = classifier.__wrapped__().predict(texts[2000:], wanted[2000:])
    for one, other, third in zip(first, part, alone, strict=True):
        np.testing.assert_array_equal(one[1000:], other)
        np.testing.assert_array_equal(one[2000:], third)
    found = []
    threads = [threading.Thread(target=lambda: found.append(judge.predict(texts, wanted))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(one[0], first[0]) and np.array_equal(one[1], first[1]) for one in found)


@pytest.mark.shared
def test_real_texts_have_the_oracles_answers(model, judge, shared_data):
    """99.9 % are wanted."""
    with gzip.open(shared_data / "langid_udhr" / "udhr.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [part for line in file for part in json.loads(line)["paragraphs"][::9]]
    corpus = pq.ParquetFile(shared_data / "bench_corpus" / "corpus.parquet")
    texts += corpus.read_row_group(7, columns=["text"])["text"].to_pylist()[::20]
    judged, known = judged_texts(pa.array(texts, pa.string()), None)
    words = [text for text, flag in zip(judged.to_pylist(), known, strict=True) if flag]
    assert len(words) > 3000
    assert agreeing(predicted(judge, words), asked(model, words)) >= 0.9999
