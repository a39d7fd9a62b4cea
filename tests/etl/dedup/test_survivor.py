"""Which duplicate is kept: sources first, then scores."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.survivor import Survivor
from etl.errors import SchemaError

floats = st.one_of(st.none(), st.floats(width=32))


def rows(sources: list[str], scores: list[float | None]) -> pa.RecordBatch:
    columns = [pa.array(sources), pa.array(scores, pa.float32())]
    return pa.RecordBatch.from_arrays(columns, names=["source_dataset", "score"])


@given(st.lists(st.tuples(st.sampled_from(["x", "y", "z"]), floats), min_size=1), st.booleans())
def test_the_smallest_preference_is_the_best_source_then_score(
    items: list[tuple[str, float | None]], highest: bool
) -> None:
    survivor = Survivor(sources=("y", "x"), score="score", highest=highest)

    def key(item: tuple[str, float | None]) -> tuple[int, bool, float]:
        source, score = item
        place = {"y": 0, "x": 1, "z": 2}[source]
        if score is None or math.isnan(score):
            return place, True, 0.0
        return place, False, -score if highest else score

    batch = rows([source for source, _ in items], [score for _, score in items])
    preference = survivor.preference(batch)
    assert (preference >= 0).all()
    for i in range(len(items)):
        for k in range(len(items)):
            assert np.sign(preference[i] - preference[k]) == (key(items[i]) > key(items[k])) - (
                key(items[i]) < key(items[k])
            )


def test_without_a_rule_all_rows_are_alike() -> None:
    assert Survivor().preference(rows(["x", "y"], [1.0, None])).tolist() == [0, 0]
    assert Survivor().reads == ["source_dataset"]


def test_a_score_must_be_there_and_be_a_number() -> None:
    schema = pa.schema([("source_dataset", pa.string()), ("language", pa.string()), ("n", pa.int32())])
    Survivor(score="n").check(schema)
    with pytest.raises(SchemaError, match="no earlier stage adds the column 'composite'"):
        Survivor(score="composite").check(schema)
    with pytest.raises(SchemaError, match="column 'language' is string, but numbers are needed"):
        Survivor(score="language").check(schema)
