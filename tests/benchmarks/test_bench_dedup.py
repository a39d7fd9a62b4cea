"""The maths of the near-dedup benchmark, without its peers: shares of true pairs, the exact join, made corpora."""

import itertools
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.benchmarks.bench_dedup import Run, Score, in_turn, score, times
from tests.benchmarks.dedup_corpora import Corpus, documents, exact_pairs, first_documents, rows_of

TRUTH = np.array([[0, 1], [1, 2], [3, 4], [5, 6]])


def test_recall_counts_clusters_and_precision_counts_pairs() -> None:
    # 0-1-2 share a cluster although 1-2 is not reported; 5-6 was not found; 2-3 is reported and no true pair.
    label = np.array([0, 0, 0, 3, 3, 5, 6])
    found = score(np.array([0, 2, 3]), np.array([1, 3, 4]), label, TRUTH)
    assert found == Score(num_pairs=3, recall=3 / 4, precision=2 / 3)


def test_labels_need_not_be_row_numbers() -> None:
    label = np.array([900, 900, 900, -4, -4, 17, 17])
    assert score(TRUTH[:, 0], TRUTH[:, 1], label, TRUTH) == Score(4, 1.0, 1.0)


def test_nothing_to_find_and_nothing_known() -> None:
    none, label = np.empty(0, np.int64), np.arange(3)
    assert score(none, none, label, np.empty((0, 2), np.int64)) == Score(0, 1.0, 1.0)
    assert score(none, none, label, None) == Score(0, None, None)


def test_times_are_compared_round_by_round() -> None:
    runs = [
        [Run({"cpu_s": cpu}, 0.0, Score(0, None, None)) for cpu in taken]
        for taken in ([2.0, 9.0, 8.0], [1.0, 3.0, 2.0])
    ]
    assert times(*runs) == 3.0
    assert times(runs[1], runs[1]) == 1.0


def test_each_contestant_is_first_in_turn() -> None:
    assert [in_turn("abc", turn) for turn in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    lines = [f"wort{number} Ära {number % 7} of_line {number * number} end" for number in range(400)]
    return [*documents(lines, 120), "", "one two", "TWO?", "One  two!"]


def test_exact_join_is_the_comparison_of_all_pairs(texts: list[str]) -> None:
    sets = []
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        sets.append({tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))})
    for threshold in (0.5, 0.8, 1.0):
        pairs = itertools.combinations(range(len(texts)), 2)
        similar = [(a, b) for a, b in pairs if len(sets[a] & sets[b]) >= threshold * len(sets[a] | sets[b])]
        assert list(map(tuple, exact_pairs(texts, threshold).tolist())) == similar
        assert len(similar) >= 5


def test_made_documents_have_copies_of_many_similarities(texts: list[str]) -> None:
    count = [len(exact_pairs(texts, threshold)) for threshold in (0.3, 0.8, 1.0)]
    assert count[0] > count[1] > count[2] > 0


def test_pairs_of_ids_become_pairs_of_rows() -> None:
    left, right = pa.chunked_array([["c", "a"]]), pa.chunked_array([["a", "b"]])
    assert rows_of(pa.array(["a", "b", "c"]), left, right).tolist() == [[0, 2], [0, 1]]
    with pytest.raises(AssertionError, match="does not have"):
        rows_of(pa.array(["a", "c"]), left, right)


def test_first_documents_keep_the_true_pairs_among_them(tmp_path) -> None:
    path = tmp_path / "all.parquet"
    pq.write_table(pa.table({"id": range(7), "text": ["ä"] * 7}), path)
    part = first_documents(Corpus("all", path, 7, 14, TRUTH), 4, tmp_path, 0.8)
    assert (part.num_rows, part.num_bytes) == (4, 8)
    assert part.truth is not None
    assert part.truth.tolist() == [[0, 1], [1, 2]]
