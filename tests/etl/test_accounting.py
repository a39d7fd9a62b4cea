"""Accounts from verdicts: by source, step and reason, and always closed."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.accounting import NO_LIMITS, account, count_by_source, judged
from etl.errors import SchemaError
from etl.schema import VERDICT, aligned
from etl.storage.manifest import accounting_gaps, sum_counts

STEPS = ("one", "two")


def verdicts(*given):
    """Verdicts from (step, reason) pairs, None for the living."""
    return pa.array([pair and {"step": pair[0], "reason": pair[1], "value": None} for pair in given], VERDICT)


def test_losses_are_counted_where_they_happened():
    sources = pa.array(["web", "web", "web", "web", "books", "web"])
    before = verdicts(None, None, None, None, None, ("zero", "z"))
    after = verdicts(None, ("one", "x"), ("one", "y"), ("two", "x"), ("two", "x"), ("zero", "z"))
    assert account(STEPS, sources, before, after) == {
        "web": {
            "one": {"in": 4, "made": 0, "kept": 2, "x": 1, "y": 1},
            "two": {"in": 2, "made": 0, "kept": 1, "x": 1},
        },
        "books": {"one": {"in": 1, "made": 0, "kept": 1}, "two": {"in": 1, "made": 0, "kept": 0, "x": 1}},
    }


def test_a_row_group_comes_with_its_account_and_without_the_columns_that_are_not_its_own():
    before = pa.record_batch(
        [pa.array([bytes(16), b"1" * 16]), pa.array(["web", "web"]), verdicts(None, None)],
        ["id", "source_dataset", "verdict"],
    )
    after = before.append_column("score", pa.array([1, 2])).set_column(2, "verdict", verdicts(None, ("one", "x")))
    schema = aligned(pa.schema([("score", pa.float64())]))
    chunk = judged(["one"], before, after, schema)
    assert chunk.batch.schema == schema
    assert [(row["id"], row["score"]) for row in chunk.batch.to_pylist()] == [(bytes(16), 1.0), (b"1" * 16, 2.0)]
    assert (chunk.rows_in, chunk.accounting) == (2, {"web": {"one": {"in": 2, "made": 0, "kept": 1, "x": 1}}})


def test_a_source_whose_rows_are_all_gone_is_listed():
    gone = verdicts(("zero", "z"))
    nothing = {"in": 0, "made": 0, "kept": 0}
    assert account(STEPS, pa.array(["web"]), gone, gone) == {"web": {"one": nothing, "two": nothing}}


def test_no_rows_make_no_account():
    assert account(STEPS, pa.array([], pa.string()), verdicts(), verdicts()) == {}


def test_a_verdict_by_a_step_that_is_not_of_the_pass_is_told():
    with pytest.raises(SchemaError, match=r"verdicts name \['three'\] in a pass of \['one', 'two'\].*self\.label"):
        account(STEPS, pa.array(["web"]), verdicts(None), verdicts(("three", "x")))


def test_rows_by_source():
    sources = pa.array(["a", "b", "a", "c"])
    assert count_by_source(sources, pa.array([True, False, True, True])) == {"a": 2, "b": 0, "c": 1}


FATE = st.one_of(st.none(), st.tuples(st.sampled_from(STEPS), st.sampled_from("xy")))


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), FATE), max_size=30),
    st.sampled_from([NO_LIMITS, {"one": ("a", "c")}, {"one": ("b",), "two": ("a",)}]),
)
def test_a_step_accounts_for_the_sources_that_it_takes(rows, limits):
    # A step drops nothing of a source that it does not take.
    fates = [fate if fate is None or source in limits.get(fate[0], ("a", "b")) else None for source, _, fate in rows]
    sources = pa.array([source for source, _, _ in rows], pa.string())
    before = verdicts(*(("zero", "z") if dead else None for _, dead, _ in rows))
    after = verdicts(*(("zero", "z") if row[1] else fate for row, fate in zip(rows, fates, strict=True)))
    found = account(STEPS, sources, before, after, limits)
    whole = account(STEPS, sources, before, after)
    assert accounting_gaps(found) == []
    assert found == {
        source: {step: counts for step, counts in steps.items() if source in limits.get(step, (source,))}
        for source, steps in whole.items()
    }


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), FATE), max_size=30), st.integers(0, 30))
def test_accounts_close_and_add_up(rows, middle):
    def of(piece):
        sources = pa.array([source for source, _, _ in piece], pa.string())
        before = verdicts(*(("zero", "z") if dead else None for _, dead, _ in piece))
        after = verdicts(*(("zero", "z") if dead else fate for _, dead, fate in piece))
        return account(STEPS, sources, before, after)

    whole = of(rows)
    assert accounting_gaps(whole) == []
    assert sum_counts([of(rows[:middle]), of(rows[middle:])]) == sum_counts([whole])
    for source, steps in whole.items():
        living = [fate for name, dead, fate in rows if name == source and not dead]
        assert steps["one"]["in"] == len(living)
        assert steps["two"]["in"] == steps["one"]["kept"]
        assert steps["two"]["kept"] == living.count(None)
