"""The cut `threshold` against plain Python over every type of column, and bounds that a column cannot hold."""

import math
import struct

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etl import conf
from etl.errors import ConfigError, SchemaError
from etl.mixture.threshold import ThresholdCut
from etl.pipeline import Pipeline
from etl.schema import MESSAGE, VERDICT

EARLIER = {"step": "earlier", "reason": "x", "value": None}


def as_float32(value: float) -> float:
    (rounded,) = struct.unpack("f", struct.pack("f", value))
    return rounded


def rows(values: list, kind: pa.DataType, dropped: tuple[int, ...] = ()) -> pa.RecordBatch:
    verdicts = [EARLIER if n in dropped else None for n in range(len(values))]
    return pa.record_batch([pa.array(values, kind), pa.array(verdicts, VERDICT)], ["n", "verdict"])


def reasons(cut: ThresholdCut, batch: pa.RecordBatch) -> list[str | None]:
    """The reason of each row's verdict, None for one that is kept."""
    cut.check(batch.schema)
    return [verdict and verdict["reason"] for verdict in cut.judge(batch, {}).column("verdict").to_pylist()]


def expected(value, unscored="drop", low=None, high=None, equals=None, values=None) -> str | None:
    """Plain Python's verdict on a value."""
    if value is None or value != value:
        return "unscored" if unscored == "drop" else None
    if low is not None and value < low:
        return "below_min"
    if high is not None and value > high:
        return "above_max"
    if equals is not None and value != equals:
        return "not_equal"
    return "not_in" if values is not None and value not in values else None


def check(kind, column, convert, unscored, **bounds):
    """The cut agrees with Python where the bounds are first made values of the column."""
    given = {key: bounds[key] for key in bounds if bounds[key] is not None}
    named = {{"low": "min", "high": "max"}.get(key, key): value for key, value in given.items()}
    cut = ThresholdCut(name="c", column="n", unscored=unscored, **named)
    stored = {
        key: tuple(map(convert, value)) if isinstance(value, tuple) else convert(value) for key, value in given.items()
    }
    batch = rows(column, kind)
    assert reasons(cut, batch) == [expected(value, unscored, **stored) for value in batch.column("n").to_pylist()]


UNSCORED = st.sampled_from(["drop", "keep"])


def bounds(values: st.SearchStrategy):
    """Any of the four conditions, at least one, min not above max."""
    either = st.one_of(st.none(), values)
    many = st.one_of(st.none(), st.lists(values, min_size=1, max_size=3).map(tuple))
    found = st.fixed_dictionaries({"low": either, "high": either, "equals": either, "values": many})
    return found.filter(
        lambda it: (
            any(value is not None for value in it.values())
            and (it["low"] is None or it["high"] is None or it["low"] <= it["high"])
        )
    )


WHOLE = st.one_of(st.integers(-3, 3), st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, -(2**63)]))


@given(st.lists(st.one_of(st.none(), WHOLE), max_size=8), UNSCORED, bounds(WHOLE))
@example([2**53, 2**53 + 1, 2**53 + 2], "drop", {"low": 2**53 + 1, "high": 2**53 + 1})
@example([2**53, 2**53 + 1], "drop", {"equals": 2**53 + 1, "values": (2**53 + 1,)})
def test_whole_numbers(column, unscored, bounds):
    check(pa.int64(), column, int, unscored, **bounds)


@given(st.lists(st.one_of(st.none(), st.integers(-3, 3)), max_size=8), st.floats(-4, 4), st.floats(-4, 4))
def test_whole_numbers_between_others(column, one, other):
    check(pa.int8(), column, lambda bound: bound, "drop", low=min(one, other), high=max(one, other))


FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, 0.1, 0.3, 0.7, 1.0, float("nan"), float("inf"), float("-inf"), 5e-324]), st.floats()
)
FINITE = st.one_of(st.sampled_from([0.0, -0.0, 0.1, 0.3, 0.7, 1, 2]), st.floats(-1e6, 1e6))


@given(st.lists(st.one_of(st.none(), FLOATS), max_size=8), UNSCORED, bounds(FINITE))
@example([0.0, -0.0], "drop", {"values": (-0.0,)})
def test_doubles(column, unscored, bounds):
    check(pa.float64(), column, float, unscored, **bounds)


@given(
    st.lists(st.one_of(st.none(), st.floats(width=32), FINITE.map(as_float32)), max_size=8), UNSCORED, bounds(FINITE)
)
def test_floats_by_the_bound_as_a_float(column, unscored, bounds):
    check(pa.float32(), column, as_float32, unscored, **bounds)


@pytest.mark.parametrize("bound", [0.1, 0.3, 0.7, 16777217])
def test_what_was_stored_as_the_bound_stays(bound):
    for condition in ({"min": bound}, {"max": bound}, {"equals": bound}, {"values": (bound,)}):
        assert reasons(ThresholdCut(name="c", column="n", **condition), rows([float(bound)], pa.float32())) == [None]


TEXT = st.one_of(
    st.sampled_from(["", "a", "B", "ä", "z", "10", "9", "\uffff", "\U0001f600"]), st.text("aBzä\U0001f600", max_size=3)
)


@given(st.lists(st.one_of(st.none(), TEXT), max_size=8), UNSCORED, bounds(TEXT))
@example(["10", "9", "\uffff", "\U0001f600"], "drop", {"low": "9", "high": "\uffff"})
def test_text_by_its_bytes(column, unscored, bounds):
    # The order of code points, which is Python's, is that of the UTF-8 bytes.
    check(pa.string(), column, str, unscored, **bounds)


@given(st.lists(st.sampled_from([None, True, False]), max_size=6), UNSCORED, st.booleans(), st.booleans())
def test_true_and_false(column, unscored, equals, value):
    check(pa.bool_(), column, bool, unscored, equals=equals, values=(value,))


def test_the_value_of_a_verdict_is_the_rows_as_text():
    def told(kind, column, **bounds):
        cut = ThresholdCut(name="short", column="n", **bounds)
        verdicts = cut.judge(rows(column, kind, (0,)), {}).column("verdict").to_pylist()
        assert verdicts[0] == EARLIER
        assert all(verdict["step"] == "short" for verdict in verdicts[1:])
        return [(verdict["reason"], verdict["value"]) for verdict in verdicts[1:]]

    below = [("below_min", "0.3"), ("unscored", None), ("unscored", "nan")]
    assert told(pa.float32(), [0.1, 0.3, None, math.nan], min=1) == below
    assert told(pa.int64(), [0, 2**53 + 1], max=7) == [("above_max", str(2**53 + 1))]
    assert told(pa.bool_(), [True, False], equals=True) == [("not_equal", "false")]
    assert told(pa.string(), ["x", "y"], values=("x",)) == [("not_in", "y")]


@pytest.mark.parametrize(
    ("kind", "bounds", "message"),
    [
        (pa.float64(), {"min": "0.5"}, "min is '0.5', but column 'n' is double; write a number, without quotes"),
        (pa.int32(), {"equals": True}, "equals is true, but column 'n' is int32; write a number"),
        (pa.float32(), {"in": [1, False]}, "in is false, but column 'n' is float; write a number"),
        (pa.string(), {"max": 3}, "max is 3, but column 'n' is string; write it as text, in quotes"),
        (pa.string(), {"equals": True}, "equals is true, but column 'n' is string; write it as text"),
        (pa.bool_(), {"equals": "true"}, "equals is 'true', but column 'n' is bool; write true or false"),
        (pa.bool_(), {"in": [1]}, "in is 1, but column 'n' is bool; write true or false"),
        (pa.bool_(), {"min": False}, "min is false, but column 'n' is bool; true and false have no order; use `equals"),
        (pa.int64(), {"max": 2**63}, r"max is 9223372036854775808, .*from -9223372036854775808 to 9223372036854775807"),
        (pa.int64(), {"max": 1e300}, "max is 1e[+]300, but column 'n' is int64; its values are from"),
        (pa.int32(), {"max": 3_000_000_000}, "its values are from -2147483648 to 2147483647; write one of these"),
        (pa.uint8(), {"min": -1}, "its values are from 0 to 255"),
        (pa.int64(), {"equals": 0.5}, "equals is 0.5, but column 'n' is int64; no whole number equals it"),
        (pa.float32(), {"min": -1e39}, "its values are from -3.40"),
        (pa.float64(), {"min": 10**400}, "its values are from -1.79"),
        (pa.list_(pa.int64()), {"min": 1}, "column 'n' is list<.*compares numbers, text, and true or false"),
        (pa.list_(MESSAGE), {"equals": "x"}, "compares numbers, text, and true or false; give such a column"),
        (pa.binary(16), {"equals": "x"}, "compares numbers, text"),
        (pa.timestamp("us"), {"min": "2024-01-01"}, "compares numbers, text"),
    ],
)
def test_a_bound_that_the_column_cannot_hold_is_told_before_a_row_is_read(kind, bounds, message):
    with pytest.raises(SchemaError, match=f"cut 'c': .*{message}"):
        read(**bounds).check(pa.schema([("n", kind)]))


def test_a_column_that_is_not_there_is_told():
    with pytest.raises(SchemaError, match=r"cut 'c' reads \['n'\]; the columns at that point are \['m'\]"):
        read(min=1).check(pa.schema([("m", pa.int64())]))


def read(**options) -> ThresholdCut:
    """The cut as a file has it."""
    tree = {"cuts": [{"kind": "threshold", "name": "c", "column": "n", **options}]}
    (cut,) = conf.check(Pipeline, tree, "toy.yaml").cuts
    assert isinstance(cut, ThresholdCut)
    return cut


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no condition is given; give at least one of min, max, equals and in"),
        ({"in": []}, "`in` is an empty list, so no row would be kept"),
        ({"min": 2, "max": 1.5}, "min is 2 and max is 1.5, so no row would be kept"),
        ({"min": "b", "max": "a"}, "min is 'b' and max is 'a', so no row would be kept"),
        ({"min": math.nan}, r"cuts\.0\.min: must be .*a finite number"),
        ({"equals": [1]}, r"cuts\.0\.equals: must be .*\(got \[1\]\)"),
        ({"in": "en"}, r"cuts\.0\.in: must be a list"),
        ({"inn": ["en"]}, "unknown key 'inn'; did you mean 'in'"),
        ({"min": 1, "unscored": "skip"}, "'skip' is not known; did you mean 'keep'"),
    ],
)
def test_settings_without_meaning_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        read(**options)


def test_values_are_written_under_in():
    cut = read(**{"in": [1, 2.5, "a", True]})
    assert cut.values == (1, 2.5, "a", True)
    assert [type(value) for value in cut.values] == [int, float, str, bool]
    assert cut.identity() == {"kind": "threshold", "name": "c", "column": "n", "in": [1, 2.5, "a", True]}
    pipeline = Pipeline(cuts=(cut,))
    assert conf.check(Pipeline, pipeline.model_dump(mode="json"), "again") == pipeline
