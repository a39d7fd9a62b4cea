"""What is read of a fastText file, and what is refused."""

import numpy as np
import pytest

from etl.artefacts import fetch
from etl.errors import ConfigError
from etl.filters.language import MODEL_SHA256, MODEL_URI
from etl.models.fasttext_model import read_fasttext
from tests.etl.models.fasttext_files import fasttext_bytes

WORDS = ["</s>", "the", "und"]
COUNTS = {"__label__en": 50, "__label__de": 30, "__label__x": 2, "__label__y": 1}


def read(folder, data):
    path = folder / "toy.bin"
    path.write_bytes(data)
    return read_fasttext(path)


def test_a_plain_model(tmp_path):
    model = read(tmp_path, fasttext_bytes(WORDS, COUNTS, bucket=130))
    assert model.labels == tuple(COUNTS)
    assert model.word_data.tobytes() == b"</s>theund"
    assert model.word_offsets.tolist() == [0, 4, 7, 10]
    assert (model.end_of_line, model.min_n, model.max_n, model.num_buckets) == (0, 2, 4, 130)
    assert model.rows.shape == (133, 5)
    expected = np.random.default_rng(0).standard_normal((133, 5)).astype(np.float32)
    np.testing.assert_array_equal(model.rows, expected)
    assert model.kept.tolist() == [2**64 - 1, 2**64 - 1, 3]
    assert model.rank.tolist() == [0, 64, 128]


def test_the_tree_is_huffmans(tmp_path):
    model = read(tmp_path, fasttext_bytes(WORDS, COUNTS))
    # 2 + 1 = 3 is node 4, with 30 node 5, with 50 the root; the rarer child is the left one.
    assert model.left.tolist() == [-1, -1, -1, -1, 3, 4, 5]
    assert model.right.tolist() == [-1, -1, -1, -1, 2, 1, 0]


def test_rows_of_kept_buckets_are_in_the_order_of_buckets(tmp_path):
    whole = read(tmp_path, fasttext_bytes(WORDS, COUNTS, kept=[3, 70, 64], parts=2))
    ordered = read(tmp_path, fasttext_bytes(WORDS, COUNTS, kept=[3, 64, 70], parts=2))
    assert whole.kept.tolist()[:3] == [8, 1 | 1 << 6, 0]
    assert whole.rank.tolist()[:3] == [0, 1, 3]
    np.testing.assert_array_equal(whole.rows, ordered.rows[[0, 1, 2, 3, 5, 4]])


def test_the_model_that_is_shipped():
    model = read_fasttext(fetch(MODEL_URI, MODEL_SHA256))
    assert len(model.labels) == 176
    assert model.rows.shape == (7235 + 42_765, 16)
    assert sum(map(int.bit_count, model.kept.tolist())) == 42_765
    words = model.word_data.tobytes()
    offsets = model.word_offsets
    assert words[offsets[model.end_of_line] : offsets[model.end_of_line + 1]] == b"</s>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": 5}, "does not begin as"),
        ({"version": 11}, "file version is 11, not 12"),
        ({"model": 1}, r"model \(3 is a supervised one\) is 1"),
        ({"loss": 3}, r"loss \(1 is hierarchical softmax\) is 3"),
        ({"word_ngrams": 2}, "number of words in an n-gram is 2, not 1"),
        ({"dim": 0}, "dim is 0"),
        ({"max_n": -1}, "maxn is -1"),
        ({"num_words": 2}, "size of the dictionary is 7, not 6"),
        ({"kind": 1}, "labels come last"),
        ({"weights": np.nan}, "not finite"),
        ({"words": ["a", "a"]}, "a word stands twice"),
        ({"counts": {"a": 10**15}}, "count of a word is 1000000000000000"),
        ({"counts": {"a": -1}}, "count of a word is -1"),
        ({"kept": [5, 5], "parts": 2}, "stands twice"),
        ({"kept": [1000], "parts": 2}, "largest kept bucket is 1000"),
        ({"kept": [-1], "parts": 2}, "smallest kept bucket is -1"),
        ({"bucket": 0}, "bucket is 0"),
    ],
)
def test_other_models_are_refused_with_the_part_that_is_wrong(tmp_path, changes, message):
    given = {"words": WORDS, "counts": COUNTS} | changes
    with pytest.raises(ConfigError, match=rf"toy\.bin is no fastText model that can be read: .*{message}.*lid\.176"):
        read(tmp_path, fasttext_bytes(**given))


@pytest.mark.parametrize("parts", [None, 2])
def test_a_file_that_ends_early_is_refused_wherever_it_ends(tmp_path, parts):
    kept = None if parts is None else [1, 2]
    data = fasttext_bytes(WORDS, COUNTS, kept, parts, bucket=10)
    for end in range(0, len(data), max(1, len(data) // 300)):
        with pytest.raises(ConfigError):
            read(tmp_path, data[:end])


def test_damage_is_refused_or_read_without_another_error(tmp_path):
    data = bytearray(fasttext_bytes(WORDS, COUNTS, [1, 2], 2, bucket=10))
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        damaged[rng.integers(0, 300)] = rng.integers(0, 256)
        try:
            read(tmp_path, bytes(damaged))
        except ConfigError:
            refused += 1
    assert refused > 100
