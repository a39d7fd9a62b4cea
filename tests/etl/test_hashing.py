"""Kernels against the xxhash package, and invariance of row hashes to how Arrow stores the values."""

import struct

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from etl.hashing import ContentDigest, hash128, hash_array, hash_columns, signed
from etl.schema import Digested, count, place

SEED = 7


@given(st.lists(st.binary(max_size=200), max_size=8), st.integers(0, 2**64 - 1))
def test_binary_hash_is_xxh64(values, seed):
    expected = [xxhash.xxh64_intdigest(value, seed) for value in values]
    assert hash_array(pa.array(values, pa.binary()), seed).tolist() == expected


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8))
def test_integer_hash_is_xxh64_of_little_endian_bytes(values):
    expected = [xxhash.xxh64_intdigest(struct.pack("<q", value), SEED) for value in values]
    assert hash_array(pa.array(values, pa.int64()), SEED).tolist() == expected


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        (pa.array([1, None, -3], pa.int8()), pa.array([1, None, -3], pa.int64())),
        (pa.array(["a", None, ""], pa.string()), pa.array(["a", None, ""], pa.large_string())),
        (pa.array(["a", "b", "a"]), pa.array(["a", "b", "a"]).dictionary_encode()),
        (pa.array([0.0, 1.5, float("nan")], pa.float32()), pa.array([-0.0, 1.5, float("nan")], pa.float64())),
        (pa.array([b"x" * 16], pa.binary(16)), pa.array([b"x" * 16], pa.binary())),
    ],
)
def test_equal_values_hash_alike_whatever_their_encoding(narrow, wide):
    assert hash_array(narrow, SEED).tolist() == hash_array(wide, SEED).tolist()


NESTED = pa.array(
    [[{"a": "x", "b": 1}], None, [], [{"a": None, "b": 2}, {"a": "y", "b": None}], [{"a": "x", "b": 1}]],
    pa.list_(pa.struct([("a", pa.string()), ("b", pa.int32())])),
)


def test_nested_rows_hash_by_value():
    hashes = hash_array(NESTED, SEED)
    assert hashes[0] == hashes[4]
    assert len(set(hashes.tolist())) == 4


@pytest.mark.parametrize("start", range(5))
def test_slices_hash_like_the_whole(start):
    assert hash_array(NESTED[start:], SEED).tolist() == hash_array(NESTED, SEED)[start:].tolist()
    text = pa.array(["one", None, "three", "", "five"])
    assert hash_array(text[start:], SEED).tolist() == hash_array(text, SEED)[start:].tolist()


INTEGERS = st.lists(st.none() | st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4), max_size=5)


@given(INTEGERS, st.integers(0, 5))
def test_a_list_of_integers_is_a_fold_over_its_length_and_the_hashes_of_its_elements(lists, start):
    def expected(values):
        found = xxhash.xxh64_intdigest(struct.pack("<q", len(values)), SEED)
        for value in values:
            child = xxhash.xxh64_intdigest(struct.pack("<q", value), SEED)
            found = xxhash.xxh64_intdigest(struct.pack("<Q", child), found)
        return found

    narrow, wide = (pa.array(lists, pa.list_(kind))[start:] for kind in (pa.int32(), pa.int64()))
    with_a_null = pa.concat_arrays([narrow, pa.array([[None]], narrow.type)])
    whole = [values for values in lists[start:] if values is not None]
    for hashes in (hash_array(narrow, SEED), hash_array(wide, SEED), hash_array(with_a_null, SEED)[:-1]):
        valid = [found for found, values in zip(hashes.tolist(), lists[start:], strict=True) if values is not None]
        assert valid == [expected(values) for values in whole]


def test_list_boundaries_matter():
    split = hash_array(pa.array([[["a"], ["b"]], [["a", "b"]]]), SEED)
    assert split[0] != split[1]


def test_hash128_joins_two_seeds():
    columns = [pa.array(["a", "b"]), pa.array([1, 2])]
    ids = hash128(columns, 3)
    halves = [hash_columns(columns, 3), hash_columns(columns, 4)]
    assert ids.to_pylist() == [struct.pack(">QQ", int(halves[0][i]), int(halves[1][i])) for i in range(2)]
    assert signed(halves[0]).to_numpy().view(np.uint64).tolist() == halves[0].tolist()


@given(st.permutations(range(6)), st.integers(0, 6))
def test_content_digest_is_free_of_order_and_parts(order, cut):
    table = pa.table({"a": ["x", "x", None, "z", "", "q"], "b": [1, 1, 2, 3, 4, 5]})
    whole = ContentDigest()
    whole.add(table.to_batches()[0])
    mixed = table.take(list(order)).combine_chunks().to_batches()[0]
    parts = []
    for piece in (mixed.slice(0, cut), mixed.slice(cut)):
        digest = ContentDigest()
        digest.add(piece)
        parts.append(str(digest))
    assert ContentDigest.total(parts) == str(whole)


def test_content_digest_sees_values_names_and_multiplicity():
    def digest(**columns):
        value = ContentDigest()
        value.add(pa.record_batch(columns))
        return str(value)

    base = digest(a=["x", "y"])
    assert len({base, digest(a=["x", "z"]), digest(b=["x", "y"]), digest(a=["x", "y", "y"]), digest(a=["x"])}) == 5


def test_a_place_is_no_content_and_a_count_says_how_often_a_row_counts():
    fields = [place(pa.field("row", pa.int64())), pa.field("word", pa.string()), count(pa.field("times", pa.int64()))]
    schema = pa.schema(fields)

    def digest(rows):
        found = ContentDigest(digested=Digested.of(schema))
        found.add(pa.RecordBatch.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema))
        return str(found)

    plain = ContentDigest()
    plain.add(pa.record_batch({"word": ["a", "b", "b", "b"]}))
    assert digest([(1, "a", 1), (2, "b", 3)]) == digest([(9, "b", 2), (7, "b", 1), (8, "a", 1)]) == str(plain)
    assert digest([(1, "a", 1), (2, "b", 2)]) != str(plain)
    assert Digested.stored(pa.schema([], Digested.of(schema).to_store()).metadata) == Digested.of(schema)
    assert Digested.stored(None) == Digested.of(pa.schema([("a", pa.string())])) == Digested()


def test_of_places_alone_a_digest_tells_the_number_of_rows():
    rows = pa.schema([place(pa.field("row", pa.int64()))])
    found = []
    for values in ([1, 2], [3, 4], [1]):
        digest = ContentDigest(digested=Digested.of(rows))
        digest.add(pa.record_batch([pa.array(values)], schema=rows))
        found.append(str(digest))
    assert found[0] == found[1] != found[2]


def test_a_sequence_tells_the_order_of_rows_and_no_batches():
    def sequence(*batches):
        digest = ContentDigest()
        for values in batches:
            digest.add(pa.record_batch({"a": values}))
        return digest.sequence

    assert sequence([1, 2, 3]) == sequence([1], [2, 3]) != sequence([2, 1, 3])
