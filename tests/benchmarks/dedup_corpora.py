"""Corpora whose near duplicates are known, for bench_dedup: given ones, made ones, and the exact join that finds them.

Without a corpus of the user's the documents are lines of the embedded sample, drawn at random, some of them edited
copies of others. Without a list of true pairs an exact join of sets of Python strings' hashes finds them; none of the
project's kernels takes part. The join takes about 1.5 CPU-seconds and 60 MB for 1,000 documents of 2,500 bytes.
"""

import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.sparse import csr_array

from etl.arrays import I64
from etl.sources.sample import sample_folder

WORDS: Final = re.compile(r"\w+")
NGRAM: Final = 5
MOST_JOINED: Final = 25_000
"""Documents of a corpus that is joined; larger ones need a list of true pairs."""
LINES_MEAN: Final = 40
COPIED: Final = 0.12
EDITS: Final = (0.0, 0.002, 0.005, 0.01, 0.02, 0.04)
"""Shares of the words that are replaced in copies; each is as likely."""
_BLOCK_ROWS: Final = 1000


@dataclass(frozen=True)
class Corpus:
    """Documents and what is known of them.

    Attributes:
        name: as tables call it.
        path: Parquet with the columns id and text, ids distinct.
        num_rows: documents.
        num_bytes: of their text.
        truth: row numbers of all pairs that are similar, the smaller first, int64 [pairs, 2]; None where unknown.
    """

    name: str
    path: Path
    num_rows: int
    num_bytes: int
    truth: I64 | None


def exact_pairs(texts: list[str], threshold: float) -> I64:
    """All pairs of rows whose sets of word 5-grams have at least this Jaccard similarity, ascending int64 [pairs, 2].

    Of each document's lower-cased `\\w+` words; one with fewer than five is a single shorter gram.
    """
    grams = []
    for text in texts:
        words = WORDS.findall(text.lower())
        count = max(1, len(words) - NGRAM + 1)
        grams.append(np.unique(np.array([hash(tuple(words[at : at + NGRAM])) for at in range(count)], np.int64)))
    sizes = np.array([len(row) for row in grams])
    _, columns, uses = np.unique(np.concatenate(grams), return_inverse=True, return_counts=True)
    rows = np.repeat(np.arange(len(texts)), sizes)
    shared = uses[columns] > 1
    ones = np.ones(int(shared.sum()), np.int32)
    matrix = csr_array((ones, (rows[shared], columns[shared])), shape=(len(texts), len(uses)))
    found = []
    for start in range(0, len(texts), _BLOCK_ROWS):
        common = (matrix[start : start + _BLOCK_ROWS] @ matrix.T).tocoo()
        left, right = common.coords[0] + start, common.coords[1]
        similar = common.data >= threshold * (sizes[left] + sizes[right] - common.data) - 1e-9
        similar &= left < right
        found.append(left[similar].astype(np.int64) * len(texts) + right[similar])
    return np.stack(np.divmod(np.sort(np.concatenate(found)), len(texts)), axis=1)


def given(name: str, path: Path, truth: Path | None, threshold: float) -> Corpus:
    """A corpus of files: Parquet with id and text, and Parquet with the ids a and b of the true pairs."""
    if truth is None:
        return _corpus(name, path, threshold)
    ids = pq.read_table(path, columns=["id"])["id"].combine_chunks()
    pairs = pq.read_table(truth, columns=["a", "b"])
    return _corpus(name, path, threshold, rows_of(ids, pairs["a"], pairs["b"]))


def rows_of(ids: pa.Array, left: pa.ChunkedArray, right: pa.ChunkedArray) -> I64:
    """Pairs of ids as pairs of row numbers, the smaller first, int64 [pairs, 2]."""
    ends = [pc.index_in(side.cast(ids.type), value_set=ids).combine_chunks() for side in (left, right)]
    assert not any(side.null_count for side in ends), "a true pair names an id that the corpus does not have"
    return np.sort(np.stack([side.to_numpy() for side in ends], axis=1).astype(np.int64), axis=1)


def first_documents(corpus: Corpus, count: int, folder: Path, threshold: float) -> Corpus:
    """The first documents of a corpus as one of its own."""
    if corpus.num_rows <= count:
        return corpus
    path = folder / f"first-{count}.parquet"
    pq.write_table(pq.read_table(corpus.path, columns=["id", "text"]).slice(0, count), path, compression="zstd")
    truth = None if corpus.truth is None else corpus.truth[corpus.truth[:, 1] < count]
    return _corpus(f"its first {count:,} documents", path, threshold, truth)


def listed_licences(folder: Path, output: Path, threshold: float) -> Corpus:
    """Licences and their similar pairs, from two files of JSON lines."""
    rows = _lines(folder / "spdx_licences.jsonl.gz")
    pairs = [pair for pair in _lines(folder / "pairs_jaccard_ge_0.5.jsonl.gz") if pair["jaccard_word5"] >= threshold]
    table = pa.table({name: [row[name] for row in rows] for name in ("id", "text")})
    path = output / "licences.parquet"
    pq.write_table(table, path)
    left, right = (pa.chunked_array([[pair[side] for pair in pairs]]) for side in ("a", "b"))
    return _corpus("licences", path, threshold, rows_of(table["id"].combine_chunks(), left, right))


def sample_licences(output: Path, threshold: float) -> Corpus:
    """The licences that the installed packages ship, as the embedded sample has them."""
    files = sorted((sample_folder() / "licences").glob("*.parquet"))
    texts = pa.concat_tables([pq.read_table(file, columns=["synthetic_answer"]) for file in files])["synthetic_answer"]
    path = output / "licences.parquet"
    pq.write_table(pa.table({"id": pa.array(range(len(texts))), "text": texts}), path)
    return _corpus("licences of the sample", path, threshold)


def made(num_documents: int, output: Path, threshold: float) -> Corpus:
    """Documents of lines that the embedded sample has, some of them edited copies; the same every time."""
    path = output / f"made-{num_documents}.parquet"
    texts = documents(sample_lines(), num_documents)
    table = pa.table({"id": pa.array(range(len(texts))), "text": texts})
    pq.write_table(table, path, compression="zstd", row_group_size=2000)
    return _corpus("documents made of the sample's lines", path, threshold)


def sample_lines() -> list[str]:
    """Distinct lines of the sample with five words or more, in a fixed order."""
    lines: set[str] = set()
    for file in sorted(sample_folder().glob("*/*.parquet")):
        for text in pq.read_table(file, columns=["synthetic_answer"])["synthetic_answer"].to_pylist():
            lines.update(line for line in text.split("\n") if len(line.split()) >= NGRAM)
    return sorted(lines)


def documents(lines: list[str], count: int) -> list[str]:
    """This many documents of random lines; a share COPIED of them are copies of an earlier one with words replaced."""
    rng = np.random.default_rng(0)
    texts: list[str] = []
    for _ in range(count):
        if texts and rng.random() < COPIED:
            words = texts[rng.integers(len(texts))].split(" ")
            for place in np.flatnonzero(rng.random(len(words)) < rng.choice(EDITS)):
                words[place] = f"x{rng.integers(1 << 40):x}"
            texts.append(" ".join(words))
        else:
            length = 3 + int(rng.lognormal(np.log(LINES_MEAN) - 0.32, 0.8))
            texts.append("\n".join(lines[place] for place in rng.integers(0, len(lines), length)))
    return texts


def _lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _corpus(name: str, path: Path, threshold: float, truth: I64 | None = None) -> Corpus:
    """A corpus whose file is there; true pairs that nobody knows are found where it is small enough."""
    texts = pq.read_table(path, columns=["text"])["text"]
    if truth is None and len(texts) <= MOST_JOINED:
        truth = exact_pairs(texts.to_pylist(), threshold)
    return Corpus(name, path, len(texts), pc.sum(pc.binary_length(texts)).as_py(), truth)
