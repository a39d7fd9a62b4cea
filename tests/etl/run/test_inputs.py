"""How large an input is before it is read: rows of Parquet from footers, those of JSONL once they have been read."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.run import inputs
from etl.run.inputs import InputSize, lines
from etl.run.plan import describe, plan_recipe
from tests.etl.stages.toys import SYNTH, make_recipe, plain_rows, run, write_jsonl, write_parquet


@pytest.fixture
def recipe(tmp_path):
    """A folder of Parquet, one file of it without rows, and a file of JSONL with a line that is no row."""
    folder = tmp_path / "many"
    write_parquet(folder / "a.parquet", plain_rows(30), row_group_size=7)
    write_parquet(folder / "b.parquet", plain_rows(12, first=30))
    pq.write_table(pa.Table.from_pylist([], SYNTH), folder / "c.parquet")
    one = write_jsonl(tmp_path / "one.jsonl", plain_rows(5, first=60))
    with one.open("ab") as file:
        file.write(b"no row\n")
    return make_recipe(tmp_path / "out", {"many": folder, "one": one})


def test_footers_tell_the_rows_of_parquet(recipe, tmp_path):
    many = sum(file.stat().st_size for file in (tmp_path / "many").iterdir())
    one = (tmp_path / "one.jsonl").stat().st_size
    assert plan_recipe(recipe).inputs == (InputSize("many", 3, 42, many), InputSize("one", 1, None, one))


def test_after_ingest_every_row_that_was_read_is_known(recipe):
    run(recipe)
    assert [(size.files, size.rows) for size in plan_recipe(recipe).inputs] == [(3, 42), (1, 6)]


def test_an_input_that_has_changed_is_looked_at_again(recipe, tmp_path):
    run(recipe)
    write_parquet(tmp_path / "many" / "d.parquet", plain_rows(3, first=90))
    assert [(size.files, size.rows) for size in plan_recipe(recipe).inputs] == [(4, 45), (1, None)]


def test_what_is_left_out_is_known_before_and_after_the_run(recipe, tmp_path):
    (tmp_path / "many" / "notes.doc").write_text("x")
    (tmp_path / "many" / "_SUCCESS").write_text("")
    for _ in range(2):
        planned = plan_recipe(recipe)
        assert [list(size.left_out) for size in planned.inputs] == [["hidden", "unknown ending"], []]
        assert [line.split(None, 1) for line in describe(planned) if "skipped" in line] == [
            ["many", "1 skipped (hidden): _SUCCESS"],
            ["many", "1 skipped (unknown ending): notes.doc"],
        ]
        run(recipe)


def test_so_many_files_are_not_opened(recipe, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_FOOTERS", 1)
    assert [(size.files, size.rows) for size in plan_recipe(recipe).inputs] == [(3, None), (1, None)]


def test_a_line_for_each_source():
    known = InputSize("synth", 12, 3_456_789, 9_876_543_210)
    assert list(lines([known])) == [
        "source     files            rows               bytes",
        "synth         12       3,456,789       9,876,543,210",
    ]
    *_, unknown, note = lines([known, InputSize("a_long_name")])
    assert unknown.split() == ["a_long_name", "?", "?", "?"]
    assert note.startswith("?: unknown until the input is read")
