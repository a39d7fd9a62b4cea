"""Context buckets at and around their limits."""

import pyarrow as pa
import pytest
from pydantic import ValidationError

from etl.mixture.buckets import CtxBucketStep
from etl.schema import VERDICT
from etl.step import drop


def batch(num_tokens):
    columns = {"n_tokens": pa.array(num_tokens, pa.int32()), "verdict": pa.nulls(len(num_tokens), VERDICT)}
    return pa.record_batch(columns)


def test_limits_are_inclusive():
    out = CtxBucketStep().open()(batch([1, 4096, 4097, 8192, 8193, 16384, 16385, 32768, 32769]))
    names = ["C1", "C1", "C2", "C2", "C3", "C3", "C4", "C4", None]
    assert out.column("ctx_bucket").to_pylist() == names
    assert out.column("verdict").to_pylist() == [None] * 8 + [
        {"step": "ctx_bucket", "reason": "longer_than_max_tokens", "value": "32769"}
    ]
    assert out.schema == CtxBucketStep().output_schema(batch([]).schema)


def test_max_tokens():
    out = CtxBucketStep(max_tokens=5000).open()(batch([5000, 5001]))
    assert out.column("ctx_bucket").to_pylist() == ["C2", None]
    assert out.column("verdict")[1].as_py()["value"] == "5001"


def test_rows_with_a_verdict_have_no_bucket():
    judged = drop(batch([10, None, 40000, 20]), "x", pa.array([True, True, True, False]), "y", pa.nulls(4))
    out = CtxBucketStep().open()(judged)
    assert out.column("ctx_bucket").to_pylist() == [None, None, None, "C1"]
    assert out.column("verdict") == judged.column("verdict")


def test_a_row_without_tokens_has_no_bucket():
    out = CtxBucketStep().open()(batch([10, None]))
    assert out.column("ctx_bucket").to_pylist() == ["C1", None]
    assert out.column("verdict").null_count == 2


@pytest.mark.parametrize("max_tokens", [0, 32769])
def test_a_limit_outside_the_buckets_is_refused(max_tokens):
    with pytest.raises(ValidationError, match="max_tokens"):
        CtxBucketStep(max_tokens=max_tokens)


def test_no_rows():
    assert CtxBucketStep().open()(batch([])).num_rows == 0
