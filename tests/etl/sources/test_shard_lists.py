"""Lists of shards: which files are read, in which order, and the error for a wrong list."""

import json
import random

import pytest

from etl.engines.local import LocalEngine
from etl.errors import SourceError
from etl.run.run import run_recipe
from etl.sources.files import list_source
from etl.sources.shards import NOT_LISTED
from etl.sources.spec import Source
from etl.storage.dataset import Dataset
from tests.etl.sources.toyingest import COLUMNS, ingest, recipe_of


@pytest.fixture
def shards(tmp_path):
    """A folder of shards in two folders, and one elsewhere."""
    for name in ("data/a.jsonl", "data/b.jsonl", "data/more/a.jsonl", "data/notes.md", "else/z.jsonl"):
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps({"q": f"{name}?", "a": name}) + "\n")
    return tmp_path


def listed(folder, text, **source):
    place = folder / "shards.txt"
    place.write_text(text)
    return list_source("s", Source(spec="synth", path=str(folder / "data"), shards=str(place), **source), {})


def test_names_are_relative_to_the_folder_or_whole(shards):
    found = listed(shards, f"# the first phase\n\n  more/a.jsonl\r\n./b.jsonl\n{shards}/else/z.jsonl\n")
    assert [file.relative for file in found.files] == ["b.jsonl", "more/a.jsonl", "z.jsonl"]
    assert found.left_out[NOT_LISTED] == {"files": 1, "names": ["a.jsonl"]}


def test_whole_names_alone_need_no_folder(shards):
    found = listed(shards, f"{shards}/else/z.jsonl\nfile://{shards}/data/b.jsonl\n")
    assert [file.relative for file in found.files] == ["b.jsonl", "z.jsonl"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a.jsonl\nc.jsonl\n", r"shards\.txt, line 2: there is no file c\.jsonl in .*/data$"),
        ("notes.md\n", r"line 1: there is no file notes\.md in .*/data that can be read \(unknown ending\)"),
        ("a.jsonl\n\n./a.jsonl\n", r"line 3: a\.jsonl is already in line 1"),
        ("../else/z.jsonl\n", "line 1: .* is above the folder; write its whole path"),
        ("/no/such.jsonl\n", r"line 1: there is no file /no/such\.jsonl"),
        ("# nothing\n", "lists no file"),
    ],
)
def test_a_list_that_is_wrong(shards, text, told):
    with pytest.raises(SourceError, match=told):
        listed(shards, text)


def test_a_list_that_is_not_there_or_no_text(shards):
    (shards / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for name, told in (("none.txt", "there is no list of shards"), ("bytes.txt", "is not UTF-8 text")):
        with pytest.raises(SourceError, match=told):
            list_source("s", Source(spec="synth", path=str(shards / "data"), shards=str(shards / name)), {})


def test_a_shuffle_follows_from_the_seed_and_the_names_alone(shards):
    names = ["a.jsonl", "b.jsonl", "more/a.jsonl"]
    orders = set()
    for seed in range(20):
        found = listed(shards, "\n".join(random.sample(names, 3)), shuffle=seed)
        again = listed(shards, "\n".join(names), shuffle=seed)
        assert found.files == again.files
        assert sorted(file.relative for file in found.files) == names
        orders.add(tuple(file.relative for file in found.files))
    assert len(orders) == 6


def test_the_order_is_in_the_manifest_and_decides_the_first_rows(shards):
    found = {}
    for seed in (None, 1, 2, 3):
        tree = recipe_of(shards / f"run{seed}", {"s": shards / "data"}, {"s": COLUMNS})
        source = tree.sources["s"].model_copy(update={"shuffle": seed, "limit": 1})
        recipe = tree.model_copy(update={"sources": {"s": source}})
        run_recipe(recipe, LocalEngine(), lambda line: None)
        dataset = Dataset.open(recipe.place / "ingest")
        (row,) = (row for batch in dataset.read(["file"]) for row in batch.to_pylist())
        order = dataset.manifest.findings["inputs"]["s"].get("order")
        assert row["file"] == (order or ["a.jsonl"])[0]
        found[seed] = order
    assert found[None] is None
    assert len({tuple(found[seed]) for seed in (1, 2, 3)}) > 1


def test_a_list_reads_what_its_files_read(shards):
    (shards / "shards.txt").write_text("b.jsonl\nmore/a.jsonl\n")
    whole = recipe_of(shards / "x", {"s": shards / "data"}, {"s": COLUMNS})
    source = whole.sources["s"].model_copy(update={"shards": str(shards / "shards.txt")})
    run_recipe(whole.model_copy(update={"sources": {"s": source}}), LocalEngine(), lambda line: None)
    by_list = Dataset.open(whole.place / "ingest").manifest
    paths = ingest(shards / "y", {"s": shards / "data" / "b.jsonl"}, COLUMNS)
    assert by_list.rows_out == 2
    assert paths["s"].said == [("data/b.jsonl?", "data/b.jsonl")]
