"""Bands of toy texts, and pairs of equal bands against all pairs of them."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.blocks import set_bytes
from etl.dedup.canaries import bases, which_canaries
from etl.dedup.candidates import MEMBERSHIP_KEY
from etl.dedup.minhash import band_hashes, signatures, sketches
from etl.dedup.near import NearDedup
from etl.stages.dedup.bands import EmitBands, MakeCanaries, PairUp, band_bytes, band_schema, pick
from etl.text import shingles
from tests.etl.rows import asked, conversations
from tests.etl.stages.toybatches import ToyRows, cut_at, distributions_of, rows_in, rows_of

NEAR = NearDedup(unit="word", bands=16, rows=8)
WORDS = [f"w{number}" for number in range(60)]
TEXTS = [" ".join(WORDS[start : start + 40]) for start in (0, 5, 10)] + ["short"]


def emitted(fraction, dropped=()):
    batch = conversations([asked(text, "yes") for text in TEXTS], dropped)
    batch = batch.append_column("skill_bucket", pa.array(["B1"] * len(TEXTS)))
    making = MakeCanaries(NEAR, fraction)
    return pa.Table.from_batches(EmitBands(ToyRows([], [batch]), NEAR, making, 5)(1), band_schema(NEAR.num_words))


def test_a_live_row_sends_each_band_of_its_signature_with_its_sketch():
    found = emitted(0.0, dropped=[1])
    signed = signatures(*shingles(pa.array([f"{text}\nyes" for text in TEXTS]), 5))
    bands, words = band_hashes(signed, 16, 8), sketches(signed, 1).view(np.int64)
    expected = {(1 << 32) + row: [(band, *words[row].tolist()) for band in bands[row].tolist()] for row in (0, 2, 3)}
    names = ["band", *(f"sketch_{word}" for word in range(NEAR.num_words))]
    by_row = {}
    for item in found.to_pylist():
        by_row.setdefault(item["row"], []).append(tuple(item[name] for name in names))
        assert item["bucket"] == item["band"] % 2**64 % 5
    assert by_row == expected
    assert band_bytes(NEAR) == 16 * (4 + 8 + 8 + 8 + 8 * NEAR.num_words)


def test_the_size_in_a_stream_key_bounds_that_of_the_set():
    text = "one two three four five six " * 20
    batch = conversations([asked(text, "yes")], ()).append_column("skill_bucket", pa.array(["B1"]))
    (bands,) = EmitBands(ToyRows([], [batch]), NEAR, MakeCanaries(NEAR, 0.0), 5)(1)
    num_ngrams = 20 * 6 + 1 - 4
    (size,) = set(set_bytes(bands.column("key").to_numpy()).tolist())
    assert 8 * 6 < 8 * num_ngrams <= size < 1.2 * 8 * num_ngrams + 10


def test_canaries_come_beside_their_rows_each_with_two_membership_records():
    """Every row is chosen; the short text cannot be edited."""
    table = emitted(1.0)
    rows = table["row"].to_numpy()
    copies = which_canaries(rows)
    assert set(bases(rows[copies]).tolist()) == {(1 << 32) + row for row in (0, 1, 2)}
    records = table.filter(pa.array(table["key"].to_numpy() == MEMBERSHIP_KEY))
    made = sorted(set(rows[copies].tolist()))
    assert sorted(records["row"].to_pylist()) == sorted([*made, *bases(np.array(made)).tolist()])
    assert sorted(records["band"].to_pylist()) == sorted(2 * records["band"].unique().to_pylist())
    assert copies.sum() == 3 * (16 + 1)
    others = ~copies & (table["key"].to_numpy() != MEMBERSHIP_KEY)
    assert table.filter(pa.array(others)).equals(emitted(0.0))


def test_sets_are_picked_by_place_or_by_mask():
    sets = (np.array([0, 2, 2, 5]), np.array([1, 2, 7, 8, 9], np.uint64))
    for which in (np.array([0, 2]), np.array([True, False, True])):
        offsets, hashes = pick(sets, which)
        assert (offsets.tolist(), hashes.tolist()) == ([0, 2, 5], [1, 2, 7, 8, 9])


def band_table(groups):
    """Rows of bands in their order: for each band the (row, looks alike) of its rows; row r has the key 10 · r."""
    lines = []
    for band, rows in enumerate(groups):
        for row, alike in sorted(rows.items()):
            word = 0 if alike else -1
            lines.append((0, band, 10 * row, row, word, word))
    schema = band_schema(2)
    columns = list(zip(*lines, strict=True)) if lines else [()] * len(schema)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema)


def expected_pairs(groups, max_partners):
    pairs = set()
    for rows in groups:
        ordered = sorted(rows)
        for place, row in enumerate(ordered):
            before = ordered[max(0, place - max_partners) : place]
            pairs |= {(other, row) for other in before if rows[other] == rows[row]}
    return pairs


groups = st.lists(st.dictionaries(st.integers(0, 15), st.booleans(), max_size=9), max_size=5)


@given(groups, st.integers(1, 4), st.lists(st.integers(0, 50), max_size=6))
def test_rows_of_a_band_pair_with_those_before_them_however_the_stream_is_cut(groups, max_partners, cuts):
    table = band_table(groups)
    chunks = list(PairUp(NearDedup(max_partners=max_partners))(0, cut_at(table, cuts)))
    found = [(row["a"], row["b"]) for row in rows_of(chunks)]
    assert found == sorted(expected_pairs(groups, max_partners))
    assert all((row["a_key"], row["b_key"]) == (10 * row["a"], 10 * row["b"]) for row in rows_of(chunks))
    assert rows_in(chunks) == sum(len(rows) for rows in groups if len(rows) > 1)
    counts = distributions_of(chunks)
    possible = sum(len(list(itertools.combinations(rows, 2))) for rows in groups)
    assert counts["pairs_compared"] + counts.get("pairs_left_out", 0) == possible
    hot = [len(rows) for rows in groups if len(rows) > max_partners + 1]
    assert sum(counts.get("hot_bands", {}).values()) == len(hot)


@pytest.mark.parametrize("batch_rows", [1, 4, 7, 1000])
def test_candidate_blocks_do_not_depend_on_the_batches_that_arrive(monkeypatch, batch_rows):
    """Five rows in each of 20 bands are 10 pairs a band, 200 in all; a block of 64 holds each pair once."""
    monkeypatch.setattr("etl.stages.dedup.bands.PAIR_BLOCK", 64)
    band = np.repeat(np.arange(20), 5)
    numbers, none = np.tile(np.arange(5), 20), np.zeros(100, np.int64)
    columns = [none.astype(np.int32), band, numbers, numbers, none, none]
    table = pa.Table.from_arrays([pa.array(column) for column in columns], schema=band_schema(2))
    chunks = list(PairUp(NearDedup(max_partners=8))(0, iter(table.to_batches(max_chunksize=batch_rows))))
    assert [chunk.batch.num_rows for chunk in chunks if chunk.batch] == [10, 10, 10, 8]
    assert sum(chunk.rows_in for chunk in chunks) == 100
