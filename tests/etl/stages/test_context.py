"""A job of a stage: what its fingerprint holds of it."""

import pyarrow as pa
import pytest

from etl.laws import Growth, With
from etl.run.run import context_of
from etl.text import UNICODE_VERSION
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.toys import make_recipe

SCHEMA = pa.schema([("id", pa.string())])


@pytest.fixture
def context(tmp_path):
    return context_of(make_recipe(tmp_path / "out", {"a": "a.jsonl"}), InProcessEngine())


def test_the_first_version_of_a_job_is_left_out_of_its_fingerprint(context):
    plain, first = context.job("s", "T", SCHEMA, {"key": 1}), context.job("s", "T", SCHEMA, {"key": 1}, version=1)
    assert plain.made_from == first.made_from == {"key": 1, "versions": {"unicode": UNICODE_VERSION}}
    assert plain.fingerprint == first.fingerprint


def test_a_raised_version_gives_other_fingerprints(context):
    first, second = (context.job("s", "T", SCHEMA, {"key": 1}, version=version) for version in (1, 2))
    assert second.made_from["versions"] == {"unicode": UNICODE_VERSION, "job": 2}
    assert second.fingerprint != first.fingerprint
    assert second.plan_fingerprint != first.plan_fingerprint


def test_how_a_job_grows_is_in_no_fingerprint(context):
    plain = context.job("s", "T", SCHEMA, {"key": 1})
    growing = context.job("s", "T", SCHEMA, {"key": 1}, grows=Growth(With.SPLITS))
    assert growing.grows == Growth(With.SPLITS)
    assert growing.fingerprint == plain.fingerprint
    assert growing.plan_fingerprint == plain.plan_fingerprint


def test_a_dataset_lies_in_the_folder_of_its_stage(context, tmp_path):
    assert context.job("s", "T", SCHEMA, {}).folder.path == str(tmp_path / "out" / "s")


@pytest.mark.parametrize(("total_bytes", "buckets"), [(0, 1), (1, 1), (8192, 1), (8193, 2), (3 * 8192, 3)])
def test_buckets_hold_what_the_recipe_says(context, total_bytes, buckets):
    assert context.cutting.bucket_bytes == 8192
    assert context.buckets(total_bytes).count() == buckets
