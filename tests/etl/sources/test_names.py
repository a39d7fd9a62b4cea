"""Names of files with signs that shells, URLs, globs and YAML interpret: found as written, and named so in rows."""

import os
import uuid

import pytest

from etl.errors import SourceError
from etl.sources.spec import Description
from etl.storage.location import Location
from tests.etl.sources.toyingest import COLUMNS, ingest
from tests.etl.sources.toysources import rows_of

SHAPE = Description.model_validate({"skill_bucket": "chat", **COLUMNS}).root
NAMES = (
    "a b.jsonl", " a .jsonl", "a#b.jsonl", "a%20b.jsonl", "100%.jsonl", "[x].jsonl", "a[0-9].jsonl", "a?.jsonl",
    "a*.jsonl", "**.jsonl", "it's \"a\".jsonl", "a\nb.jsonl", "a\tb.jsonl", "é.jsonl", "e\u0301.jsonl", "日本.jsonl",
    "{a,b}.jsonl", "a;b&c=d.jsonl", "~.jsonl", "$HOME.jsonl", "a\\b.jsonl", "-x.jsonl", "a::b.jsonl", "a: b.jsonl",
    "\u2028.jsonl", "!x.jsonl", "set #1 [2] 50%/é.jsonl", "key=a%2Fb/x.jsonl",
)  # fmt: skip


def line(number):
    return f'{{"q": "q{number}", "a": "yo"}}\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each name as a file of two rows, and a bad one between them."""
    folder = tmp_path_factory.mktemp("names")
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{line(number)}bad {number}\n{line(number)}")
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return ingest(folder.with_name("run"), {"all": folder, "glob": f"{folder}/**/*.jsonl"}, COLUMNS)


@pytest.mark.parametrize("number", range(len(NAMES)))
def test_rows_of_a_folder_and_of_a_glob_say_where_they_stand(folder, found, number):
    for one in found.values():
        rows = [row for row in one.rows if row["file"] == NAMES[number]]
        data = (folder / NAMES[number]).read_bytes()
        assert [data[row["position"] :].split(b"\n")[0].decode() + "\n" for row in rows] == [line(number)] * 2
        assert [data[row["position"] :].split(b"\n")[0] for row in one.bad if row["file"] == NAMES[number]] == [
            f"bad {number}".encode()
        ]


@pytest.mark.parametrize("number", range(len(NAMES)))
def test_a_path_of_a_file_is_that_file(folder, number):
    good, bad = rows_of(folder / NAMES[number], SHAPE)
    assert [row["messages"][0]["content"] for row in good] == [f"q{number}"] * 2
    assert {row["file"] for row in good} == {NAMES[number].split("/")[-1]}
    assert len(bad) == 1


@pytest.mark.parametrize("name", [name for name in NAMES if not set(name) & set("\n\\") and "::" not in name])
def test_an_object_of_a_store_is_named_so_too(name):
    """All but `::`, which chains file systems in fsspec, and what stores change in keys themselves."""
    place = Location.of(f"memory://{uuid.uuid4().hex}")
    (place / name).create(line(7).encode())
    for path in (place, place / name):
        good, _ = rows_of(path, SHAPE)
        assert [row["messages"][0]["content"] for row in good] == ["q7"]
        assert name.endswith(good[0]["file"])
    place.remove_tree()


def test_a_name_that_is_no_text_is_an_error_that_says_so(tmp_path):
    (tmp_path / os.fsdecode(b"bad\xff.jsonl")).write_text(line(1))
    for path in (tmp_path, tmp_path / os.fsdecode(b"bad\xff.jsonl")):
        with pytest.raises(SourceError, match=r"the name of the file .*bad\\udcff\.jsonl is not UTF-8; rename it"):
            rows_of(path, SHAPE)
