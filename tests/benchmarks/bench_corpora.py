"""Corpora of any size for benchmarks: made-up words, planted duplicates, and three kinds of skew; the same every time.

`write_corpus` writes Parquet in the SYNTH schema at about 60 MB a second and core. Documents have 400 words on average;
of twenty, two are edited copies of others and one is an exact copy. A skew changes 20 % (or 95 %) of the rows:

    band      20 % of the documents share one MinHash band (and no more than that)
    cell      95 % of the rows have one skill bucket
    content   20 % of the rows have one content
"""

import itertools
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from etl.dedup.minhash import permutations
from etl.text import ngram_hashes

SKEWS: Final = ("none", "band", "cell", "content")
EXERCISES: Final = ("memorization", "math exercise", "code", "editing", "something else")
WORDS_MEAN: Final = 400
BATCH_ROWS: Final = 4096
SKEWED: Final = 0.2


def vocabulary(size: int = 20_000) -> pa.Array:
    """Distinct made-up words of two to four syllables."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = itertools.chain(itertools.product(syllables, repeat=2), itertools.product(syllables, repeat=3))
    return pa.array(["".join(word) for word in itertools.islice(words, size)])


def zipf_table(size: int) -> np.ndarray:
    """Word numbers such that a uniform place in the table gives a word with the frequencies of text."""
    shares = 1 / np.arange(1, size + 1)
    ends = np.round(np.cumsum(shares) / shares.sum() * (1 << 16)).astype(np.int64)
    return np.repeat(np.arange(size), np.diff(ends, prepend=0)).astype(np.int32)


def hot_band(words: pa.Array, rows: int = 8, num_perm: int = 128, seed: int = 1) -> str:
    """Text whose 5-grams have the smallest values of the first `rows` permutations: whoever holds it shares a band."""
    rng = np.random.default_rng(7)
    places = rng.integers(0, len(words), (200_000, 5))
    grams = pc.binary_join_element_wise(*(words.take(pa.array(column)) for column in places.T), " ")
    _, hashes = ngram_hashes(grams, 5)
    multipliers, increments = permutations(num_perm, seed)
    high = (hashes >> np.uint64(32)).astype(np.uint32)
    chosen = [int(np.argmin(multipliers[k] * high + increments[k])) for k in range(rows)]
    return " ".join(grams[place].as_py() for place in chosen)


def _texts(rng: np.random.Generator, words: pa.Array, table: np.ndarray) -> pa.Array:
    """A batch of documents, some of them copies of others in the batch."""
    lengths = np.clip(rng.lognormal(np.log(WORDS_MEAN) - 0.32, 0.8, BATCH_ROWS), 20, 20_000).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    chosen = table[rng.integers(0, len(table), offsets[-1])]
    texts = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), words.take(pa.array(chosen))), " ")
    kind = rng.random(BATCH_ROWS)
    origin = np.where(kind < 0.15, rng.integers(0, BATCH_ROWS, BATCH_ROWS), np.arange(BATCH_ROWS))
    copied = texts.take(pa.array(origin))
    edit = pc.if_else(pa.array(kind < 0.1), words.take(pa.array(rng.integers(0, len(words), BATCH_ROWS))), "")
    return pc.binary_join_element_wise(copied, edit, " ")


def _table(rng: np.random.Generator, words: pa.Array, table: np.ndarray, skew: str, hot: str, first: int) -> pa.Table:
    answers = _texts(rng, words, table)
    skewed = pa.array(rng.random(BATCH_ROWS) < SKEWED)
    if skew == "band":
        answers = pc.binary_join_element_wise(answers, pc.if_else(skewed, hot, ""), " ")
    if skew == "content":
        answers = pc.if_else(skewed, f"the same answer {hot}", answers)
    exercise = rng.integers(0, len(EXERCISES), BATCH_ROWS)
    if skew == "cell":
        exercise = np.where(rng.random(BATCH_ROWS) < 0.95, 0, exercise)
    names = pa.array([f"d{number}" for number in range(first, first + BATCH_ROWS)])
    empty = pa.repeat("", BATCH_ROWS)
    prompts = pc.if_else(skewed, "one question", names) if skew == "content" else names
    columns = {
        "synth_id": names, "language": pa.repeat("en", BATCH_ROWS),
        "exercise": pa.array(EXERCISES).take(pa.array(exercise)), "model": empty, "query": prompts,
        "synthetic_reasoning": empty, "synthetic_answer": answers,
    }  # fmt: skip
    return pa.table(columns)


def write_corpus(path: Path, megabytes: int, skew: str = "none") -> Path:
    """Write a corpus with this many million bytes of answers, unless the file is there."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(megabytes)
    words = vocabulary()
    table, hot = zipf_table(len(words)), hot_band(words)
    written = first = 0
    writer = None
    partial = path.with_suffix(".partial")
    while written < megabytes * 1_000_000:
        rows = _table(rng, words, table, skew, hot, first)
        writer = writer or pq.ParquetWriter(partial, rows.schema, compression="zstd")
        writer.write_table(rows, row_group_size=BATCH_ROWS)
        written += rows["synthetic_answer"].nbytes
        first += BATCH_ROWS
    assert writer is not None
    writer.close()
    return partial.rename(path)
