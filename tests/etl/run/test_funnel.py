"""The funnel at the end of a run: exact lines, sources that do not fit, and the next command."""

from hypothesis import given
from hypothesis import strategies as st

from etl.run.funnel import funnel, last_lines
from etl.storage.location import Location


def counts(entering, **lost):
    return {"in": entering, "made": 0, "kept": entering - sum(lost.values()), **lost}


def test_rows_by_source_in_the_order_of_the_run():
    accounting = {
        "web": {"ingest": counts(1200, **{"quarantined:bad_json": 10}), "answer": counts(1190, empty_answer=90)},
        "code": {"exact": counts(40, exact_duplicate=4), "ingest": counts(40)},
    }
    accounting["web"]["exact"] = counts(1100, exact_duplicate=100)
    assert funnel(accounting, ["ingest", "answer", "language", "exact"]) == [
        "rows left after    web  code    all  lost to",
        "(read)           1,200    40  1,240",
        "ingest           1,190    40  1,230  quarantined:bad_json 10",
        "answer           1,100    40  1,140  empty_answer 90",
        "exact            1,000    36  1,036  exact_duplicate 104",
    ]


def test_one_source_needs_no_sum_and_reasons_go_on_below():
    losses = {f"reason_number_{n}": 10 - n for n in range(5)}
    assert funnel({"toy": {"ingest": counts(100, **losses)}}, ["ingest"]) == [
        "rows left after  toy  lost to",
        "(read)           100",
        "ingest            60  reason_number_0 10, reason_number_1 9, reason_number_2 8,",
        "                      reason_number_3 7, reason_number_4 6",
    ]


def test_small_sources_are_one_column_where_many_do_not_fit():
    accounting = {f"source_{n:02}": {"ingest": counts(1000 * n, bad=n)} for n in range(1, 13)}
    lines = funnel(accounting, ["ingest"])
    assert lines == [
        "rows left after  source_12  source_11  10 others     all  lost to",
        "(read)              12,000     11,000     55,000  78,000",
        "ingest              11,988     10,989     54,945  77,922  bad 78",
        "10 others: source_10, source_09, source_08, source_07, source_06, source_05,",
        "  source_04, source_03, source_02, source_01",
    ]


def test_long_and_wide_names_are_whole():
    long, step = "a-source-" + "x" * 60, "late-" + "y" * 50
    accounting = {
        long: {"ingest": counts(1200), step: counts(1200, two_words=7)},
        "维基百科": {"ingest": counts(40), step: counts(40)},
        "한": {"ingest": counts(3), step: counts(3)},
    }
    assert funnel(accounting, ["ingest", step]) == [
        "rows left after    (1)  维基百科  한    all  lost to",
        "(read)           1,200        40   3  1,243",
        "ingest           1,200        40   3  1,243",
        step,
        "                 1,193        40   3  1,236  two_words 7",
        f"(1) {long}",
    ]
    assert funnel({long: {step: counts(5)}}, [step]) == [
        "rows left after  (1)  lost to",
        "(read)             5",
        step,
        "                   5",
        f"(1) {long}",
    ]


def test_no_reason_is_broken_at_a_hyphen():
    losses = {f"my-own-reason-number-{n}": 10 - n for n in range(6)}
    text = " ".join(funnel({"toy": {"ingest": counts(100, **losses)}}, ["ingest"]))
    assert all(f"{reason} {rows}" in text for reason, rows in losses.items())


@given(
    st.dictionaries(st.text("abcdef_", min_size=1, max_size=30), st.integers(0, 10**12), min_size=1, max_size=40),
    st.lists(st.text("xyz:", min_size=1, max_size=40), min_size=1, max_size=4, unique=True),
)
def test_a_line_has_80_columns_the_last_number_is_the_sum_and_no_name_is_cut(sources, steps):
    accounting = {source: {step: counts(rows) for step in steps} for source, rows in sources.items()}
    lines = funnel(accounting, steps)
    assert max(map(len, lines)) <= 80
    of_numbers = [line for line in lines[1:] if line.split()[-1] == f"{sum(sources.values()):,}"]
    assert len(of_numbers) == 1 + len(steps)
    words = {word.strip(",") for line in lines for word in line.split()}
    assert {*sources, *steps} <= words


def test_without_a_corpus_the_next_command_shows_the_tables():
    assert list(last_lines({}, [], None, Location.of("/a b/out"))) == [
        "next: stillhouse catalog '/a b/out' --dialect duckdb"
    ]
