"""The JSON objects: canonical bytes, fingerprints, sums of counts, accounts that close or do not."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.storage.manifest import (
    Manifest,
    Part,
    Plan,
    Receipt,
    accounting_gaps,
    fingerprint_of,
    sum_counts,
    to_json,
)

PART = Part(split=0, path="part-00000-aa.parquet", rows=3, bytes=99, tokens=7, sha256="a" * 64, row_groups=(2, 1))


def manifest(**changes) -> Manifest:
    known: dict[str, Any] = {
        "stage": "toy",
        "table": "TOY",
        "fingerprint": "f" * 32,
        "receipts": "b" * 32,
        "made_from": {},
        "content_digest": "c" * 32,
        "rows_in": 3,
        "rows_out": 3,
        "accounting": {},
        "splits": 1,
        "parts": (PART,),
    }
    return Manifest(**(known | changes))


def test_json_is_canonical_and_reads_back():
    whole = manifest(thresholds={"b": 1, "a": {"é": 2}})
    text = to_json(whole).decode()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    assert Manifest.model_validate_json(text) == whole


@pytest.mark.parametrize("model", [Plan(fingerprint="f" * 32, splits=({"a": 1}, [2], 3)), PART])
def test_the_others_read_back(model):
    assert type(model).model_validate_json(to_json(model)) == model


def test_a_receipt_reads_back():
    receipt = Receipt(
        split=0, rows_in=4, rows_out=3, content_digest="c" * 32, parts=(PART,), distributions={"x": {"1": 2}}
    )
    assert Receipt.model_validate_json(to_json(receipt)) == receipt


def test_fingerprint_is_of_the_canonical_json():
    expected = hashlib.sha256('{"a":[1,2],"b":{"c":"ü"}}'.encode()).hexdigest()[:32]
    assert fingerprint_of({"b": {"c": "ü"}, "a": [1, 2]}) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [("splits", 2), ("content_digest", "d" * 32), ("parts", (PART.model_copy(update={"row_groups": (3,)}),))],
)
def test_the_cut_changes_with_how_rows_lie(field, value):
    assert manifest(**{field: value}).cut != manifest().cut


def test_the_cut_does_not_change_with_names_of_files():
    assert (
        manifest(parts=(PART.model_copy(update={"path": "x", "sha256": "b" * 64, "bytes": 1}),)).cut == manifest().cut
    )


def test_tokens_are_summed_where_a_part_has_some():
    assert manifest(parts=(PART, PART, PART.model_copy(update={"tokens": None}))).num_tokens == 14


COUNTS = st.dictionaries(st.sampled_from("abc"), st.dictionaries(st.sampled_from("xyz"), st.integers(0, 9)), max_size=3)


@given(st.lists(COUNTS, max_size=5))
def test_counts_are_summed_leaf_by_leaf(counts):
    total = sum_counts(counts)
    for outer in "abc":
        for inner in "xyz":
            expected = sum(count.get(outer, {}).get(inner, 0) for count in counts)
            assert total.get(outer, {}).get(inner, 0) == expected
    assert list(total) == sorted(total)
    assert sum_counts(reversed(counts)) == total


def test_an_account_that_closes():
    counts = {"in": 10, "made": 2, "kept": 7, "too_short": 4, "quarantined:invalid_json": 1}
    assert accounting_gaps({"web": {"answer": counts}, "books": {"answer": {"in": 0, "made": 0, "kept": 0}}}) == []


def test_accounts_that_do_not_close_are_named():
    accounting = {
        "web": {"a": {"in": 10, "made": 0, "kept": 9}, "b": {"in": 9, "made": 0, "kept": 9}},
        "books": {"a": {"in": 1, "made": 0, "kept": 1, "odd": 2}},
    }
    assert accounting_gaps(accounting) == [
        "web/a: in + made exceeds kept + dropped by 1 rows",
        "books/a: in + made exceeds kept + dropped by -2 rows",
    ]


def test_a_cut_tells_the_order_of_rows_which_format_1_did_not():
    one, other = manifest(sequence="1" * 32), manifest(sequence="2" * 32)
    assert one.cut != other.cut
    assert manifest(base=one.cut).is_cut_as(one)
    assert not manifest(base=one.cut).is_cut_as(other)
    shape = {"splits": 1, "parts": [[0, 2, 1]], "content": "c" * 32}
    assert manifest(base=fingerprint_of(shape), format=1).is_cut_as(one)
    assert not manifest(base=fingerprint_of(shape)).is_cut_as(one)
