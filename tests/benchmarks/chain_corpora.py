"""Inputs of bench_chain: the first megabytes of a corpus and, beyond its end, copies of it with words in another order.

Every input is a folder of two Parquet files (or two for each copy) with the columns id and text, so that each of
datatrove's two workers has a file. In a copy the words of each sentence are in another order, which depends on the
number of the copy and the number of words. So copies have next to no word n-grams in common, while near duplicates
within a copy remain near duplicates. To fastText's model a text is a bag of words, so labels and scores of languages
do not change, nor do the bytes or nearly all tokens. Writing 1 GB takes about a minute.
"""

import functools
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

FILES_A_COPY: Final = 2
ROW_GROUP_ROWS: Final = 4096
_SENTENCES: Final = re.compile(r"(\n|(?<=[.!?]) )")


@dataclass(frozen=True)
class Input:
    """What a chain reads.

    Attributes:
        folder: of Parquet files with the columns id and text.
        num_rows: documents.
        num_bytes: of their text in UTF-8.
        copies: how many of the corpus; above 1, all but the first are changed ones.
    """

    folder: Path
    num_rows: int
    num_bytes: int
    copies: int

    @property
    def megabytes(self) -> float:
        """Million bytes of text."""
        return self.num_bytes / 1e6


def reordered(text: str, copy: int) -> str:
    """The text with the words of each sentence in the order of a copy."""
    pieces = _SENTENCES.split(text)
    for place in range(0, len(pieces), 2):
        words = pieces[place].split(" ")
        pieces[place] = " ".join([words[at] for at in _order(copy, len(words))])
    return "".join(pieces)


@functools.cache
def _order(copy: int, length: int) -> list[int]:
    return random.Random(f"{copy} {length}").sample(range(length), length)


def input_of_rows(corpus: Path, num_rows: int, folder: Path) -> Input:
    """The first documents of a corpus."""
    return _write(read_texts(corpus)[:num_rows], 1, folder)


def input_of_size(corpus: Path, megabytes: float, folder: Path) -> Input:
    """This many million bytes of text: a corpus's first documents or, where it is smaller, it and copies of it.

    The size is met to within half a document, with copies to within half a copy.
    """
    texts = read_texts(corpus)
    ends = np.cumsum(pc.binary_length(texts).to_numpy(zero_copy_only=False).astype(np.int64))
    copies = max(1, round(megabytes * 1e6 / int(ends[-1])))
    num_rows = int(np.argmin(np.abs(ends - megabytes * 1e6))) + 1
    return _write(texts[:num_rows], copies, folder)


def read_texts(corpus: Path) -> pa.ChunkedArray:
    """The column text of a Parquet file, with 64-bit offsets."""
    return pq.read_table(corpus, columns=["text"])["text"].cast(pa.large_string())


def _reordered_texts(texts: pa.ChunkedArray, copy: int) -> pa.ChunkedArray:
    return pa.chunked_array([[reordered(text, copy) for text in texts.to_pylist()]], pa.large_string())


def _write(texts: pa.ChunkedArray, copies: int, folder: Path) -> Input:
    """Write the files, in place of what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    num_bytes = 0
    for copy in range(copies):
        written = (
            pa.chunked_array([[reordered(text, copy) for text in texts.to_pylist()]], pa.large_string())
            if copy
            else texts
        )
        num_bytes += pc.sum(pc.binary_length(written)).as_py()
        ids = pa.array(np.arange(copy * len(texts), (copy + 1) * len(texts)))
        table = pa.table({"id": ids, "text": written})
        size = -(-len(table) // FILES_A_COPY)
        for part in range(FILES_A_COPY):
            path = folder / f"{copy}-{part}.parquet"
            pq.write_table(table.slice(part * size, size), path, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    return Input(folder, len(texts) * copies, num_bytes, copies)
