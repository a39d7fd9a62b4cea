"""What the heads of a source's files show."""

import json

import pytest

from etl.sources.files import list_files
from etl.sources.look import look, names
from etl.sources.spec import Source
from tests.etl.sources.toysources import SHAPE, example, jsonl


def seen(path):
    source = Source(spec="toy", path=str(path))
    return look(source, SHAPE, list_files("toy", source, {}), {})


def test_columns_of_rows_and_folders_that_are_not_named(tmp_path):
    folder = tmp_path / "in" / "lang=de" / "year=2020"
    folder.mkdir(parents=True)
    jsonl(folder / "a.jsonl", example(1, task="sum", note=1), example(2, more=[1]))
    found = seen(tmp_path / "in")
    assert found.columns == ("id", "q", "a", "task", "note", "more", "lang", "year")
    assert (found.unused, found.lacks, found.is_sound) == (("note", "more", "year"), (), True)


@pytest.mark.parametrize(
    ("rows", "lacks"),
    [
        ([], ()),
        (["{}"], ("id", "q", "a")),
        ([json.dumps({"x": "y"})], ("id", "q", "a")),
        ([json.dumps(example(1, q=" "))], ()),
        ([json.dumps(example(1)), "oops"], ()),
        ([json.dumps(example(1)), json.dumps(example(2, a=None))], ()),
    ],
    ids=["empty", "no column", "other columns", "blank", "no JSON", "null"],
)
def test_rows_that_are_not_sound(tmp_path, rows, lacks):
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    found = seen(tmp_path / "a.jsonl")
    assert (found.is_sound, found.lacks) == (False, lacks)


def test_a_damaged_file_is_not_sound_and_no_error_here(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert not seen(tmp_path / "a.parquet").is_sound


def test_many_names_are_cut_short():
    assert names([str(number) for number in range(14)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more"
