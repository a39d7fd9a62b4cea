"""A fastText classifier read from its file (`.ftz` or `.bin`), as the arrays that etl/filters/language_kernel.py walks.

The format is that of fastText 0.9 (version 12 of its files): arguments, dictionary, input matrix, output matrix, all
little-endian. This file reads supervised models with hierarchical softmax over single words and their character
n-grams, with quantised or plain matrices, pruned (`pruneidx`) or not. For any other model, the error names the part
that is not supported. The file is foreign data, so every count is checked before anything is read or allocated by it.

Rows are dequantised here, once: lid.176.ftz (0.9 MB) becomes 3.2 MB of rows and 0.5 MB of tables in 0.1 s. A model that
is not quantised takes the size of its file again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from etl.arrays import F32, I8, I32, I64, U64
from etl.errors import ConfigError

_MAGIC: Final = 793712314
_VERSION: Final = 12
_HIERARCHICAL_SOFTMAX: Final = 1
_SUPERVISED: Final = 3
_WORD, _LABEL = 0, 1
_NUM_CENTROIDS: Final = 256
_UNBUILT: Final = 10**15
"""The count that fastText gives a node not built yet; no count in a file may reach it."""

_MAX_DIM: Final = 4096
_MAX_BUCKETS: Final = 1 << 26
_MAX_ENTRY_BYTES: Final = 1 << 16
_END_OF_LINE: Final = b"</s>"


@dataclass(frozen=True)
class FastTextModel:
    """One model. The nodes of its tree are the labels, then the inner nodes; the last node is the root."""

    labels: tuple[str, ...]
    """As in the file, including `__label__`."""
    word_data: I8
    """int8: the bytes of the known words, one after another."""
    word_offsets: I64
    """int64 [words + 1]: word w is word_data[word_offsets[w] : word_offsets[w + 1]]."""
    end_of_line: int
    """Number of the word `</s>`, which ends every text; -1 if the model does not know it."""
    min_n: int
    max_n: int
    """Lengths of the shortest and the longest n-gram, in characters."""
    num_buckets: int
    """An n-gram's bucket is its hash modulo this number."""
    kept: U64
    """uint64 [buckets / 64, rounded up]: bit b % 64 of element b // 64 is set if bucket b has a row."""
    rank: I32
    """int32 [elements of `kept`]: how many bits are set before each element. The n-th set bit has row words + n."""
    rows: F32
    """float32 [words + kept buckets, dim]: what each word and n-gram adds to a text's vector."""
    nodes: F32
    """float32 [labels, dim]: row n is that of inner node labels + n."""
    left: I32
    right: I32
    """int32 [2 labels - 1]: the children of each node, -1 for a label."""


def read_fasttext(path: Path) -> FastTextModel:
    """The model in a file.

    Raises:
        ConfigError: the file is no fastText model, damaged, or of a kind that is not supported.
    """
    reader = _Reader(path)
    if reader.int32() != _MAGIC:
        raise reader.error("it does not begin as a fastText model does")
    reader.require("file version", reader.int32(), _VERSION)
    dim, _, _, _, _, word_ngrams, loss, model, num_buckets, min_n, max_n, _ = reader.array("<i4", 12).tolist()
    reader.array("<f8", 1)
    reader.require("model (3 is a supervised one)", model, _SUPERVISED)
    reader.require("loss (1 is hierarchical softmax)", loss, _HIERARCHICAL_SOFTMAX)
    reader.require("number of words in an n-gram", word_ngrams, 1)
    reader.limit("dim", dim, 1, _MAX_DIM)
    reader.limit("maxn", max_n, 0, 64)
    reader.limit("minn", min_n, 0, 64)
    reader.limit("bucket", num_buckets, 1 if max_n else 0, _MAX_BUCKETS)
    num_words, num_labels, num_pruned = _dictionary_head(reader)
    words, _ = _entries(reader, num_words, _WORD)
    labels, counts = _entries(reader, num_labels, _LABEL)
    kept, order = _buckets(reader, num_buckets, num_pruned)
    matrix = _matrix(reader, dim, reader.flag())
    reader.require("number of rows", len(matrix), num_words + (num_buckets if num_pruned < 0 else num_pruned))
    nodes = _matrix(reader, dim, reader.flag())
    reader.require("number of output rows", len(nodes), num_labels)
    left, right = _tree(counts)
    set_bits = np.bitwise_count(kept).astype(np.int32)
    return FastTextModel(
        labels=tuple(reader.text(label) for label in labels),
        word_data=np.frombuffer(b"".join(words), np.int8),
        word_offsets=np.cumsum([0, *map(len, words)], dtype=np.int64),
        end_of_line=words.index(_END_OF_LINE) if _END_OF_LINE in words else -1,
        min_n=min_n,
        max_n=max_n,
        num_buckets=max(num_buckets, 1),
        kept=kept,
        rank=(np.cumsum(set_bits) - set_bits).astype(np.int32),
        rows=matrix if num_pruned < 0 else np.concatenate([matrix[:num_words], matrix[num_words:][order]]),
        nodes=nodes,
        left=left,
        right=right,
    )


class _Reader:
    """The bytes of a file from front to back; reading past the end is a ConfigError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data = path.read_bytes()
        self._at = 0

    def error(self, what: str) -> ConfigError:
        return ConfigError(
            f"{self._path} is no fastText model that can be read: {what}; "
            "wanted is a supervised one with hierarchical softmax, as lid.176.ftz is"
        )

    def array(self, dtype: str, size: int) -> npt.NDArray[Any]:
        num_bytes = np.dtype(dtype).itemsize * size
        if size < 0 or num_bytes > len(self._data) - self._at:
            raise self.error(f"it ends at byte {len(self._data)}, before {size} values at byte {self._at}")
        self._at += num_bytes
        return np.frombuffer(self._data, dtype, size, self._at - num_bytes)

    def int32(self) -> int:
        return int(self.array("<i4", 1)[0])

    def int64(self) -> int:
        return int(self.array("<i8", 1)[0])

    def flag(self) -> bool:
        value = int(self.array("u1", 1)[0])
        self.limit("flag", value, 0, 1)
        return value == 1

    def until_zero(self) -> bytes:
        end = self._data.find(b"\0", self._at, self._at + _MAX_ENTRY_BYTES)
        if end < 0:
            raise self.error(f"the word at byte {self._at} has no end")
        word = self._data[self._at : end]
        self._at = end + 1
        return word

    def text(self, label: bytes) -> str:
        try:
            return label.decode()
        except UnicodeDecodeError:
            raise self.error(f"the label {label!r} is not UTF-8") from None

    def require(self, what: str, value: int, wanted: int) -> None:
        if value != wanted:
            raise self.error(f"{what} is {value}, not {wanted}")

    def limit(self, what: str, value: int, least: int, most: int) -> None:
        if not least <= value <= most:
            raise self.error(f"{what} is {value}, not within {least} and {most}")

    def finite(self, values: npt.NDArray[Any]) -> F32:
        if not np.isfinite(values).all():
            raise self.error("a matrix has a value that is not finite")
        return values.astype(np.float32)


def _dictionary_head(reader: _Reader) -> tuple[int, int, int]:
    """Numbers of words, labels, and kept buckets (-1: all)."""
    size, num_words, num_labels = reader.array("<i4", 3).tolist()
    reader.int64()  # number of tokens that it was trained on
    num_pruned = reader.int64()
    reader.limit("number of words", num_words, 0, 2**31 - 1)
    reader.limit("number of labels", num_labels, 1, 2**30)
    reader.require("size of the dictionary", size, num_words + num_labels)
    reader.limit("number of kept buckets", num_pruned, -1, 2**31 - 1)
    return num_words, num_labels, num_pruned


def _entries(reader: _Reader, num_entries: int, kind: int) -> tuple[list[bytes], list[int]]:
    """Words or labels, and how often each occurred in training."""
    words, counts = [], []
    for _ in range(num_entries):
        words.append(reader.until_zero())
        counts.append(reader.int64())
        reader.require("kind of the dictionary's entry (labels come last)", int(reader.array("u1", 1)[0]), kind)
    if len(set(words)) != num_entries:
        raise reader.error("a word stands twice in its dictionary")
    reader.limit("count of a word", min(counts, default=0), 0, _UNBUILT - 1)
    reader.limit("count of a word", max(counts, default=0), 0, _UNBUILT - 1)
    return words, counts


def _buckets(reader: _Reader, num_buckets: int, num_pruned: int) -> tuple[U64, I64]:
    """The bits of the buckets that have a row, and the numbers of these rows in the file, ordered by bucket."""
    kept = np.zeros(-(-num_buckets // 64) or 1, np.uint64)
    if num_pruned < 0:
        kept[:] = ~np.uint64(0)
        if num_buckets % 64:
            kept[-1] = (1 << num_buckets % 64) - 1
        return kept if num_buckets else np.zeros(1, np.uint64), np.empty(0, np.int64)
    pairs = reader.array("<i4", 2 * num_pruned).reshape(-1, 2).astype(np.int64)
    buckets, order = pairs[np.argsort(pairs[:, 0])].T
    reader.limit("smallest kept bucket", int(buckets.min(initial=0)), 0, num_buckets)
    reader.limit("largest kept bucket", int(buckets.max(initial=-1)), -1, num_buckets - 1)
    if not np.array_equal(np.sort(order), np.arange(num_pruned)) or len(np.unique(buckets)) != num_pruned:
        raise reader.error("a kept bucket or its row stands twice")
    np.bitwise_or.at(kept, buckets >> 6, np.uint64(1) << (buckets & 63).astype(np.uint64))
    return kept, order


def _matrix(reader: _Reader, dim: int, is_quantised: bool) -> F32:
    """float32 [rows, dim]"""
    return reader.finite(_quantised(reader, dim) if is_quantised else _plain(reader, dim))


def _plain(reader: _Reader, dim: int) -> F32:
    num_rows, columns = reader.int64(), reader.int64()
    reader.require("number of columns", columns, dim)
    reader.limit("number of rows", num_rows, 0, 2**31)
    return reader.array("<f4", num_rows * columns).reshape(num_rows, columns)


def _quantised(reader: _Reader, dim: int) -> F32:
    has_norms = reader.flag()
    num_rows, columns = reader.int64(), reader.int64()
    reader.require("number of columns", columns, dim)
    reader.limit("number of rows", num_rows, 0, 2**31)
    num_codes = reader.int32()
    codes = reader.array("u1", num_codes)
    centroids = _centroids(reader, dim)
    reader.require("number of codes", num_codes, num_rows * len(centroids))
    parts = [part[column] for part, column in zip(centroids, codes.reshape(num_rows, -1).T, strict=True)]
    values = np.concatenate(parts, axis=1)
    if not has_norms:
        return values
    norm_codes = reader.array("u1", num_rows)
    (norms,) = _centroids(reader, 1)
    return values * norms[norm_codes]


def _centroids(reader: _Reader, dim: int) -> list[F32]:
    """The parts of a product quantiser: float32 [256, columns of the part] each, dim columns in all."""
    columns, num_parts, width, last_width = reader.array("<i4", 4).tolist()
    reader.require("number of columns of a quantiser", columns, dim)
    reader.limit("columns of a part", width, 1, dim)
    reader.require("number of parts", num_parts, -(-dim // width))
    reader.require("columns of the last part", last_width, dim - (num_parts - 1) * width)
    values = reader.finite(reader.array("<f4", _NUM_CENTROIDS * dim))
    ends = [_NUM_CENTROIDS * width * part for part in range(1, num_parts)]
    return [part.reshape(_NUM_CENTROIDS, -1) for part in np.split(values, ends)]


def _tree(counts: list[int]) -> tuple[I32, I32]:
    """Left and right child of each node: the Huffman tree of fastText's HierarchicalSoftmaxLoss::buildTree."""
    num_labels = len(counts)
    size = 2 * num_labels - 1
    weights = [*counts, *[_UNBUILT] * (num_labels - 1)]
    left, right = np.full(size, -1, np.int32), np.full(size, -1, np.int32)
    leaf, inner = num_labels - 1, num_labels
    for node in range(num_labels, size):
        for side in (left, right):
            if leaf >= 0 and weights[leaf] < weights[inner]:
                side[node] = leaf
                leaf -= 1
            else:
                side[node] = inner
                inner += 1
        weights[node] = weights[left[node]] + weights[right[node]]
    return left, right
