import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.datasets import write_dataset
from training.data.footers import in_footer, largest_in, largest_of

COLUMNS = ("number", "list")


def table(*rows):
    schema = pa.schema([("number", pa.float32()), ("list", pa.list_(pa.int32()))])
    return pa.Table.from_pylist([dict(zip(COLUMNS, row, strict=True)) for row in rows], schema)


@pytest.fixture
def dataset(tmp_path):
    tables = {"": table((1.5, [3, 9]), (math.nan, [])), "more": table((-2.0, [10]), (None, None))}
    return write_dataset(str(tmp_path), "toy", "TOY", tables)


def test_the_largest_value_and_where_it_lies(dataset):
    found = largest_in(dataset, dataset.manifest.parts, COLUMNS)
    assert {column: one.value for column, one in found.items()} == {"number": 1.5, "list": 10}
    assert found["list"].place.startswith("more/")
    assert largest_of([]).value == -math.inf


def test_a_row_group_without_statistics_is_read(dataset, monkeypatch):
    told = largest_in(dataset, dataset.manifest.parts, COLUMNS)
    monkeypatch.setattr("training.data.footers.in_footer", lambda *_: None)
    assert largest_in(dataset, dataset.manifest.parts, COLUMNS) == told


def test_a_footer_that_does_not_say(tmp_path):
    values = pa.table({"number": np.arange(3)})
    pq.write_table(values, tmp_path / "silent.parquet", write_statistics=False)
    pq.write_table(values, tmp_path / "told.parquet")
    found = [in_footer(pq.read_metadata(tmp_path / f"{name}.parquet"), 0, "number") for name in ("silent", "told")]
    assert found == [None, 2.0]
