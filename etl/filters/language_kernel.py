"""The most probable label of each text by a fastText classifier: kernels on Arrow's buffers, no Python objects.

A text's vector is the mean of the rows of its words, of their n-grams of characters and of fastText's end of line. Two
things make it cheap. The sums of words of up to 32 bytes are kept in a cache of 2^15 places, since a few words make up
most of a text: seven of ten are found there (in documents of many languages and code), and cost one hash and one
addition. The tree of labels is walked likelier child first, and only into branches whose probability exceeds that of
the best label so far. Speed: 50 MB a CPU-second where fasttext-predict does 4 (python -m
tests.benchmarks.bench_language).

The answers are those of `fasttext.predict`, apart from the order of float32 additions: fastText adds every n-gram to
one sum; here each word is summed first. Probabilities differ by less than 1e-5 in texts of usual length. They depend
only on the text, not on the rows before it or the machine's vector width.

A classifier takes 4 MB for lid.176, and 3.5 MB for each thread that is inside `predict` at once.
"""

from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np
import pyarrow as pa
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from etl.arrays import F32, F64, I8, I32, I64, U8, U64, Bools
from etl.hashing import binary_buffers
from etl.jit import njit
from etl.models.fasttext_model import FastTextModel

if TYPE_CHECKING:
    from collections.abc import Callable

NOTHING: Final = -1
"""The label of a text in which the model knows no word and no n-gram."""

_LANES: Final = 16
"""The columns of a row are padded to a multiple of this, so that a row fills whole vector registers."""

_BASIS: Final = np.uint64(2166136261)
_PRIME: Final = np.uint64(16777619)
_32_BITS: Final = np.uint64(0xFFFFFFFF)
_ONE: Final = np.uint64(1)
_SIX: Final = np.uint64(6)
_SMOOTHING: Final = 1e-5
"""fastText adds it to every probability before it takes the logarithm."""

_CACHE_PLACES: Final = np.int64(1 << 15)
_CACHED_BYTES: Final = 32
_FOUND: Final = 1 << 10


class _Tables(NamedTuple):
    """A FastTextModel with its words hashed."""

    word_data: I8
    word_offsets: I64
    places: I32
    """int32 [power of 2]: a word's number at its hash or the next free place after it, -1 at a free place."""
    min_n: int
    max_n: int
    num_buckets: int
    inverse: float
    """The least number above 1 / num_buckets. The whole part of its product with a hash of 32 bits is the quotient."""
    kept: U64
    rank: I32
    columns: np.int64
    rows: F32
    nodes: F32
    left: I32
    right: I32


class _Cache(NamedTuple):
    """Words whose rows have been summed already, one at each place."""

    keys: I8
    """int8 [places * 32]"""
    sizes: U8
    """uint8 [places]: bytes of the word, 0 at a free place."""
    counts: I32
    """int32 [places]: how many rows the sum has."""
    sums: F32
    """float32 [places * columns]"""


class Classifier:
    """A model that is ready for texts. Threads may share one."""

    def __init__(self, model: FastTextModel) -> None:
        self.labels: Final = model.labels
        rows = _padded(model.rows)
        self._tables = _Tables(
            model.word_data,
            model.word_offsets,
            _place_words(model.word_data, model.word_offsets),
            model.min_n,
            model.max_n,
            model.num_buckets,
            float(np.nextafter(1 / model.num_buckets, 1.0)),
            model.kept,
            model.rank,
            np.int64(rows.shape[1]),
            rows.ravel(),
            _padded(model.nodes),
            model.left,
            model.right,
        )
        self._end_of_line = np.int64(model.end_of_line)
        self._idle: list[_Cache] = []

    def predict(self, texts: pa.StringArray, wanted: Bools) -> tuple[I32, F64]:
        """Number of the most probable label of each text, and its probability.

        Args:
            texts: string [rows], no nulls: words with a single space after each, as `judged_texts` makes them.
            wanted: bool [rows]; the others get NOTHING.

        Returns:
            int32 [rows], NOTHING where the model knows nothing of the text; float64 [rows], 0 for such a text.
        """
        data, offsets = binary_buffers(texts)
        labels = np.full(len(texts), NOTHING, np.int32)
        probabilities = np.zeros(len(texts))
        cache = self._cache()
        _predict(data.view(np.int8), offsets, wanted, self._tables, self._end_of_line, cache, labels, probabilities)
        self._idle.append(cache)
        return labels, probabilities

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays: the model's, and a cache for each thread that was inside `predict` at once."""
        arrays = [*self._tables, *(array for cache in self._idle for array in cache)]
        return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))

    def _cache(self) -> _Cache:
        """A cache that no other thread uses."""
        try:
            return self._idle.pop()
        except IndexError:
            return _Cache(
                np.zeros(_CACHE_PLACES * _CACHED_BYTES, np.int8),
                np.zeros(_CACHE_PLACES + 1, np.uint8),
                np.zeros(_CACHE_PLACES + 1, np.int32),
                np.zeros((_CACHE_PLACES + 1) * self._tables.columns, np.float32),
            )


def _padded(rows: F32) -> F32:
    """The rows padded with columns of zeros to a multiple of _LANES."""
    missing = -rows.shape[1] % _LANES
    return np.pad(rows, ((0, 0), (0, missing))) if missing else rows


@njit
def _hash(data: I8, begin: int, end: int) -> np.uint64:
    """fastText's hash: FNV-1a of 32 bits, where a byte of 128 or more is a negative number."""
    value = _BASIS
    for at in range(begin, end):
        value = ((value ^ np.uint64(np.int64(data[at]))) * _PRIME) & _32_BITS
    return value


@njit
def _place_words(data: I8, offsets: I64) -> I32:
    """The table `places` of _Tables, at most half full."""
    size = 2
    while size < 2 * len(offsets):
        size *= 2
    places = np.full(size, -1, np.int32)
    for word in range(len(offsets) - 1):
        at = np.int64(_hash(data, offsets[word], offsets[word + 1])) & (size - 1)
        while places[at] >= 0:
            at = (at + 1) & (size - 1)
        places[at] = word
    return places


@njit
def _find_word(tables: _Tables, data: I8, begin: int, end: int, value: np.uint64) -> np.int64:
    """Number of the word, -1 where the model does not know it."""
    last = len(tables.places) - 1
    at = np.int64(value) & last
    while tables.places[at] >= 0:
        word = np.int64(tables.places[at])
        start = tables.word_offsets[word]
        if tables.word_offsets[word + 1] - start == end - begin and _same(
            tables.word_data, start, data, begin, end - begin
        ):
            return word
        at = (at + 1) & last
    return np.int64(-1)


@njit
def _same(one: I8, at: np.int64, other: I8, begin: int, size: int) -> bool:
    for k in range(size):  # noqa: SIM110 (a generator is no machine code)
        if one[at + k] != other[begin + k]:
            return False
    return True


def _addition_of_lanes(typing: Any, sums: Any, at: Any, rows: Any, start: Any) -> Any:
    """sums[at : at + _LANES] += rows[start : start + _LANES], of flat float32 arrays, as one addition of vectors.

    LLVM would make _LANES single additions of the loop, at four times the cost: it cannot know that the arrays do not
    overlap.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), _LANES).as_pointer()

        def place(array: int) -> Any:
            data = cgutils.create_struct_proxy(signature.args[array])(context, builder, values[array]).data
            return builder.bitcast(builder.gep(data, [values[array + 1]]), vector)

        to, added = place(0), place(2)
        total = builder.fadd(builder.load(to, align=4), builder.load(added, align=4))
        builder.store(total, to, align=4)
        return context.get_dummy_value()

    return types.void(sums, at, rows, start), generate


_add_lanes = cast("Callable[[F32, np.int64, F32, np.int64], None]", intrinsic(_addition_of_lanes))


@njit
def _add(sums: F32, place: np.int64, rows: F32, row: np.int64, columns: np.int64) -> None:
    """Add a row to a sum."""
    for k in range(0, columns, _LANES):
        _add_lanes(sums, place * columns + k, rows, row * columns + k)


@njit
def _sum_word(
    tables: _Tables,
    data: I8,
    begin: int,
    end: int,
    value: np.uint64,
    marked: I8,
    found: I64,
    sums: F32,
    place: np.int64,
) -> np.int64:
    """Sum the rows of a word and of its n-grams; returns how many there are.

    `marked` has room for the word and 2, `found` for _FOUND buckets and those of one character more.
    """
    first = np.uint64(place * tables.columns)  # unsigned: LLVM makes no memset of an index that may be negative
    for k in range(tables.columns):
        sums[first + np.uint64(k)] = 0
    count = np.int64(0)
    word = _find_word(tables, data, begin, end, value)
    if word >= 0:
        _add(sums, place, tables.rows, word, tables.columns)
        count += 1
    size = np.uint64(end - begin + 2)
    marked[0] = 60  # <
    for k in range(begin, end):
        marked[np.uint64(k - begin + 1)] = data[np.uint64(k)]
    marked[size - _ONE] = 62  # >
    num_found = np.int64(0)
    last = end - begin + 1
    for start in range(last + 1):
        if start == last or num_found >= _FOUND:  # the last character begins no n-gram that counts
            count += num_found
            _add_buckets(tables, found, num_found, sums, place)
            num_found = np.int64(0)
        at = np.uint64(start)
        if start == last or marked[at] < -64:  # inside a character
            continue
        ngram = _BASIS
        for n in range(1, tables.max_n + 1):
            if at == size:
                break
            ngram = ((ngram ^ np.uint64(np.int64(marked[at]))) * _PRIME) & _32_BITS
            at += _ONE
            while at < size and marked[at] < -64:
                ngram = ((ngram ^ np.uint64(np.int64(marked[at]))) * _PRIME) & _32_BITS
                at += _ONE
            if n >= tables.min_n and (n > 1 or (start > 0 and at < size)):
                bucket = np.int64(ngram) - np.int64(np.float64(np.int64(ngram)) * tables.inverse) * tables.num_buckets
                # Always written, but kept only if the bucket has a row: no branch predictor guesses one n-gram in ten.
                found[np.uint64(num_found)] = bucket
                num_found += np.int64((tables.kept[np.uint64(bucket) >> _SIX] >> np.uint64(bucket & 63)) & _ONE)
    return count


@njit
def _add_buckets(tables: _Tables, found: I64, num_found: np.int64, sums: F32, place: np.int64) -> None:
    """Add the rows of those buckets that have one."""
    for k in range(num_found):
        bucket = np.uint64(found[np.uint64(k)])
        below = tables.kept[bucket >> _SIX] & ((_ONE << (bucket & np.uint64(63))) - _ONE)
        # Set bits of `below`, counted in parallel (Warren, Hacker's Delight, 5-1).
        below -= (below >> np.uint64(1)) & np.uint64(0x5555555555555555)
        below = (below & np.uint64(0x3333333333333333)) + ((below >> np.uint64(2)) & np.uint64(0x3333333333333333))
        below = (below + (below >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
        num_before = np.int64((below * np.uint64(0x0101010101010101)) >> np.uint64(56))
        row = len(tables.word_offsets) - 1 + tables.rank[bucket >> _SIX] + num_before
        _add(sums, place, tables.rows, row, tables.columns)


@njit
def _predict(
    data: I8,
    offsets: I64,
    wanted: Bools,
    tables: _Tables,
    end_of_line: np.int64,
    cache: _Cache,
    labels: I32,
    probabilities: F64,
) -> None:
    """Fill in labels and probabilities; see Classifier.predict."""
    columns = tables.columns
    keys, sizes, counts, sums = cache.keys, cache.sizes, cache.counts, cache.sums
    total = np.zeros(columns, np.float32)
    longest = 0
    for row in range(len(wanted)):
        longest = max(longest, offsets[row + 1] - offsets[row])
    marked = np.empty(longest + 2, np.int8)
    found = np.empty(_FOUND + tables.max_n, np.int64)
    waiting = np.empty(len(tables.nodes), np.int32)
    chances = np.empty(len(tables.nodes))
    for row in range(len(wanted)):
        if not wanted[row]:
            continue
        for k in range(columns):
            total[k] = 0
        count = 0
        begin = offsets[row]
        value = _BASIS
        for at in range(offsets[row], offsets[row + 1]):
            if data[at] != 32:
                value = ((value ^ np.uint64(np.int64(data[at]))) * _PRIME) & _32_BITS
                continue
            size = at - begin
            place = np.int64(value ^ (value >> np.uint64(15))) & (_CACHE_PLACES - 1)
            if size > _CACHED_BYTES:
                counts[_CACHE_PLACES] = _sum_word(tables, data, begin, at, value, marked, found, sums, _CACHE_PLACES)
                place = _CACHE_PLACES
            elif sizes[place] != size or not _same(keys, place * _CACHED_BYTES, data, begin, size):
                sizes[place] = size
                for k in range(size):
                    keys[place * _CACHED_BYTES + k] = data[begin + k]
                counts[place] = _sum_word(tables, data, begin, at, value, marked, found, sums, place)
            _add(total, np.int64(0), sums, place, columns)
            count += counts[place]
            begin = at + 1
            value = _BASIS
        if count == 0:
            continue
        if end_of_line >= 0:
            _add(total, np.int64(0), tables.rows, end_of_line, columns)
            count += 1
        labels[row], probabilities[row] = _best_label(tables, total, count, waiting, chances)


@njit
def _best_label(tables: _Tables, total: F32, count: int, waiting: I32, chances: F64) -> tuple[np.int64, float]:
    """The most probable leaf and its probability: depth first, likelier child first, no branch that cannot win.

    `waiting` and `chances` have room for a node of each label.
    """
    share = np.float32(np.divide(1.0, count))
    num_labels = len(tables.nodes)
    waiting[0], chances[0] = 2 * num_labels - 2, 1.0
    size = 1
    best, highest = np.int64(NOTHING), -1.0
    while size:
        size -= 1
        node, chance = np.int64(waiting[size]), chances[size]
        while chance > highest and node >= num_labels:
            product = np.float32(0)
            for k in range(len(total)):
                product += tables.nodes[node - num_labels, k] * (total[k] * share)
            right = np.divide(1.0, 1.0 + np.exp(-np.float64(product)))
            likelier, other = np.int64(tables.right[node]), tables.left[node]
            if right < 0.5:
                likelier, other = np.int64(tables.left[node]), tables.right[node]
                right = 1 - right
            waiting[size], chances[size] = other, chance * (1 - right + _SMOOTHING)
            size += 1
            node, chance = likelier, chance * (right + _SMOOTHING)
        if chance > highest:
            best, highest = node, chance
    return best, highest
