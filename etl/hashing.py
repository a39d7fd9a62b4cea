"""Hashes that are the same on every engine and machine, at any time.

Everything is built on xxHash64 (the public specification of XXH64) of canonical bytes, computed by kernels over Arrow
buffers, never on Python objects: 4 GB of text or 120 million token ids per CPU-second, with both seeds of a content
digest. `hash_array` gives one 64-bit hash per row for an array of any type. Equal values have equal hashes, regardless
of chunks, slices, dictionaries and the width of their encoding:

    null            a constant
    int, bool, date xxh64 of the value as 8 little-endian bytes
    float           xxh64 of the float64 bits, -0.0 as 0.0 and every NaN alike
    string, binary  xxh64 of the bytes
    list            fold over (length, hash of each element)
    struct          fold over the hashes of its fields, in order

Every other type is hashed as one of these (etl/arrow_types.py): a decimal as its text, a time as nanoseconds, a moment
or duration as the struct of seconds and nanoseconds, whatever its unit and zone, a map as the list of its entries. A
union has no hash.

Ids and content digests take two such hashes with different seeds, 128 bits, in one pass over the values.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from etl.arrays import U64
from etl.arrow_types import hashed, refused
from etl.errors import SchemaError
from etl.jit import njit
from etl.schema import Digested

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_NULL = np.uint64(0x6E756C6C6E756C6C)


@njit
def _rotl(x: np.uint64, r: int) -> np.uint64:
    return (x << np.uint64(r)) | (x >> np.uint64(64 - r))


@njit
def _round(acc: np.uint64, lane: np.uint64) -> np.uint64:
    return _rotl(acc + lane * _P2, 31) * _P1


@njit
def _merge(acc: np.uint64, lane: np.uint64) -> np.uint64:
    return (acc ^ _round(np.uint64(0), lane)) * _P1 + _P4


@njit
def _avalanche(h: np.uint64) -> np.uint64:
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))


def _load_of_word(typing: Any, data: Any, i: Any) -> Any:
    """The 8 little-endian bytes at i, aligned or not; LLVM does not combine eight loads into one."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = builder.gep(
            cgutils.create_struct_proxy(signature.args[0])(context, builder, values[0]).data, values[1:]
        )
        return builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(data, i), generate


_word = cast("Callable[[npt.NDArray[np.uint8], int], np.uint64]", intrinsic(_load_of_word))


@njit
def xxh64_bytes(data: npt.NDArray[np.uint8], start: int, end: int, seed: np.uint64) -> np.uint64:
    """XXH64 of data[start:end]."""
    size = end - start
    i = start
    if size >= 32:
        v1 = seed + _P1 + _P2
        v2 = seed + _P2
        v3 = seed
        v4 = seed - _P1
        while i + 32 <= end:
            v1 = _round(v1, _word(data, i))
            v2 = _round(v2, _word(data, i + 8))
            v3 = _round(v3, _word(data, i + 16))
            v4 = _round(v4, _word(data, i + 24))
            i += 32
        h = _rotl(v1, 1) + _rotl(v2, 7) + _rotl(v3, 12) + _rotl(v4, 18)
        h = _merge(_merge(_merge(_merge(h, v1), v2), v3), v4)
    else:
        h = seed + _P5
    h += np.uint64(size)
    while i + 8 <= end:
        h = _rotl(h ^ _round(np.uint64(0), _word(data, i)), 27) * _P1 + _P4
        i += 8
    if i + 4 <= end:
        half = np.uint64(0)
        for k in range(4):
            half |= np.uint64(data[i + k]) << np.uint64(8 * k)
        h = _rotl(h ^ (half * _P1), 23) * _P2 + _P3
        i += 4
    while i < end:
        h = _rotl(h ^ (np.uint64(data[i]) * _P5), 11) * _P1
        i += 1
    return _avalanche(h)


@njit
def xxh64_u64(value: np.uint64, seed: np.uint64) -> np.uint64:
    """XXH64 of the value as 8 little-endian bytes."""
    h = seed + _P5 + np.uint64(8)
    h = _rotl(h ^ _round(np.uint64(0), value), 27) * _P1 + _P4
    return _avalanche(h)


# Kernels take the seeds, uint64 [seeds], and return uint64 [seeds, rows]. Folds support one or two seeds.


@njit
def _hash_values(values: U64, seeds: U64) -> U64:
    out = np.empty((len(seeds), len(values)), np.uint64)
    for j in range(len(seeds)):
        for i in range(len(values)):
            out[j, i] = xxh64_u64(values[i], seeds[j])
    return out


@njit
def _hash_slices(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], seeds: U64) -> U64:
    out = np.empty((len(seeds), len(offsets) - 1), np.uint64)
    for i in range(len(offsets) - 1):
        for j in range(len(seeds)):
            out[j, i] = xxh64_bytes(data, offsets[i], offsets[i + 1], seeds[j])
    return out


@njit
def _fold_lists(children: U64, lengths: npt.NDArray[np.int64], seeds: U64) -> U64:
    out = np.empty((len(seeds), len(lengths)), np.uint64)
    last = len(seeds) - 1
    k = 0
    for i in range(len(lengths)):
        one, other = xxh64_u64(np.uint64(lengths[i]), seeds[0]), xxh64_u64(np.uint64(lengths[i]), seeds[last])
        for _ in range(lengths[i]):
            one, other = xxh64_u64(children[0, k], one), xxh64_u64(children[last, k], other)
            k += 1
        out[0, i], out[last, i] = one, other
    return out


@njit
def _fold_integers(values: npt.NDArray[np.signedinteger[Any]], lengths: npt.NDArray[np.int64], seeds: U64) -> U64:
    """Like `_fold_lists` of the hashes of some integers, without storing those."""
    out = np.empty((len(seeds), len(lengths)), np.uint64)
    last = len(seeds) - 1
    k = 0
    for i in range(len(lengths)):
        one, other = xxh64_u64(np.uint64(lengths[i]), seeds[0]), xxh64_u64(np.uint64(lengths[i]), seeds[last])
        for _ in range(lengths[i]):
            value = np.uint64(np.int64(values[k]))
            one, other = xxh64_u64(xxh64_u64(value, seeds[0]), one), xxh64_u64(xxh64_u64(value, seeds[last]), other)
            k += 1
        out[0, i], out[last, i] = one, other
    return out


@njit
def _fold_fields(hashes: U64, field: U64) -> U64:
    for j in range(hashes.shape[0]):
        for i in range(hashes.shape[1]):
            hashes[j, i] = xxh64_u64(field[j, i], hashes[j, i])
    return hashes


def xxh64(data: bytes, seed: int = 0) -> int:
    """XXH64 of some bytes, unsigned."""
    return xxhash.xxh64_intdigest(data, seed)


def binary_buffers(array: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Views of a string or binary array: its bytes, uint8, and its offsets, int64 [rows + 1].

    A null row has the slice of its offsets, which is usually empty.
    """
    if pa.types.is_string(array.type) or pa.types.is_binary(array.type):
        width: type[np.signedinteger[Any]] = np.int32
    elif pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type):
        width = np.int64
    else:
        raise TypeError(f"{array.type} has no byte offsets")
    _, offsets, data = array.buffers()
    if offsets is None or len(array) == 0:
        return np.empty(0, np.uint8), np.zeros(len(array) + 1, np.int64)
    size = np.dtype(width).itemsize
    starts = np.frombuffer(offsets, width, len(array) + 1, array.offset * size).astype(np.int64)
    values = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return values, starts


def fixed_binary(array: pa.Array) -> npt.NDArray[np.uint8]:
    """View of a non-null fixed-size binary array: uint8 [rows, width]."""
    width = array.type.byte_width
    data = np.frombuffer(array.buffers()[1] or b"", np.uint8)
    return data[array.offset * width : (array.offset + len(array)) * width].reshape(len(array), width)


def hash_array(array: pa.Array, seed: int = 0) -> U64:
    """One 64-bit hash per row: uint64 [rows]. The top of this file defines it for each type.

    Raises:
        SchemaError: the type has no hash.
    """
    _refuse(array.type)
    return _hash(array, np.array([seed], np.uint64))[0]


def _refuse(kind: pa.DataType) -> None:
    if (part := refused(kind, "hashed")) is not None:
        raise SchemaError(f"{_of(kind, part)} has no hash; remove the column, or make one column per type")


def _of(whole: pa.DataType, part: pa.DataType) -> str:
    return f"a value of type {part}" if part == whole else f"a value of type {part} inside {whole}"


def _hash(array: pa.Array, seeds: U64) -> U64:
    if array.null_count == len(array):
        return np.full((len(seeds), len(array)), _NULL)
    array = hashed(array)
    hashes = _hash_valid(array, seeds)
    if array.null_count:
        hashes[:, np.asarray(array.is_null())] = _NULL
    return hashes


def _hash_valid(array: pa.Array, seeds: U64) -> U64:
    kind = array.type
    if pa.types.is_null(kind):
        return np.full((len(seeds), len(array)), _NULL)
    if pa.types.is_struct(kind):
        return _hash_fields((array.field(place) for place in range(kind.num_fields)), len(array), seeds)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        values = array.flatten()
        if pa.types.is_signed_integer(values.type) and not values.null_count:
            return _fold_integers(values.to_numpy(), lengths, seeds)
        return _fold_lists(_hash(values, seeds), lengths, seeds)
    if pa.types.is_fixed_size_binary(kind):
        return _hash_valid(array.cast(pa.binary()), seeds)
    if pa.types.is_floating(kind):
        values = pc.fill_null(array.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False) + 0.0
        bits = np.where(np.isnan(values), np.nan, values).view(np.uint64)
        return _hash_values(bits, seeds)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_date(kind):
        whole = array.cast(pa.int32()) if pa.types.is_date32(kind) else array
        values = pc.fill_null(whole.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
        return _hash_values(values.view(np.uint64), seeds)
    return _hash_slices(*binary_buffers(array), seeds)


def _hash_fields(arrays: Iterable[pa.Array], num_rows: int, seeds: U64) -> U64:
    """One hash per row over several arrays in order, for each seed; without arrays, the seed."""
    hashes = np.repeat(seeds[:, None], num_rows, axis=1)
    for array in arrays:
        hashes = _fold_fields(hashes, _hash(array, seeds))
    return hashes


def _hash_columns(arrays: Sequence[pa.Array], num_rows: int, seeds: Iterable[int]) -> U64:
    for array in arrays:
        _refuse(array.type)
    return _hash_fields(arrays, num_rows, np.array([seed % 2**64 for seed in seeds], np.uint64))


def hash_columns(arrays: Sequence[pa.Array], seed: int = 0) -> U64:
    """One 64-bit hash per row over several columns in order: uint64 [rows]."""
    return _hash_columns(arrays, len(arrays[0]), [seed])[0]


def hash128(arrays: Sequence[pa.Array], seed: int = 0) -> pa.Array:
    """One 128-bit hash per row over several columns: binary(16), big-endian halves of seeds `seed` and `seed + 1`."""
    halves = _hash_columns(arrays, len(arrays[0]), (seed, seed + 1)).T.astype(">u8", order="C")
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(halves), [None, pa.py_buffer(halves.tobytes())])


def signed(hashes: U64) -> pa.Array:
    """Hashes as int64, a type that every reader of a table supports."""
    return pa.array(hashes.view(np.int64))


def ordered_bits(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """uint32 in the order of some float32 without NaN; -0.0 and 0.0 are one."""
    bits = (scores + np.float32(0)).view(np.uint32)
    return np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31)).astype(np.uint32)


BY_VALUE = Digested()
"""Every column is hashed by value."""


def _sum(halves: U64, times: U64 | None) -> int:
    """The sum of 32-bit numbers, each multiplied by `times`."""
    return int((halves if times is None else halves * times).sum(dtype=np.uint64))


class ContentDigest:
    """Sum modulo 2^128 of a 128-bit hash of every row; independent of order, parts and engine.

    A row's hash covers names and values of all columns but places. A row with a count is added that many times. Adding
    the digests of two parts gives that of both.

    Args:
        value: of the rows so far.
        digested: the columns that are places, and the one that is a count.
    """

    def __init__(self, value: int = 0, digested: Digested = BY_VALUE) -> None:
        self.value = value
        self._digested = digested
        self._sequence = xxhash.xxh3_128()

    def add(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a batch.

        Raises:
            SchemaError: a column is of a type that has no hash.
        """
        num_rows, times = batch.num_rows, None
        if self._digested.count is not None:
            times = batch.column(self._digested.count).to_numpy().astype(np.uint64)
        left_out = {*self._digested.places, self._digested.count}
        batch = batch.select([name for name in batch.schema.names if name not in left_out])
        for field in batch.schema:
            if (kind := refused(field.type, "hashed")) is not None:
                raise SchemaError(f"column '{field.name}' cannot be stored: {_of(field.type, kind)} has no hash")
        names = int(xxh64("\0".join(batch.schema.names).encode()))
        halves = _hash_columns(batch.columns, num_rows, (names, names + 1))
        self._sequence.update(halves[0].astype("<u8").tobytes())
        for half, hashes in enumerate(halves):
            low, high = hashes & np.uint64(0xFFFFFFFF), hashes >> np.uint64(32)
            self.value += (_sum(low, times) + (_sum(high, times) << 32)) << (64 * half)
        self.value %= 2**128

    @property
    def sequence(self) -> str:
        """32 hex digits that also depend on the order of the rows: the XXH3 of their hashes."""
        return self._sequence.hexdigest()

    def __str__(self) -> str:
        return f"{self.value:032x}"

    @classmethod
    def total(cls, digests: Iterable[str]) -> str:
        """The digest of a dataset from the digests of its parts."""
        return str(cls(sum(int(digest, 16) for digest in digests) % 2**128))
