"""`key=value` folders as columns of the rows: their text, the file's own column before it, and both formats alike."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.errors import SourceError
from etl.sources.files import cut, list_files
from etl.sources.partitions import partitions_of
from etl.sources.read import read_split
from etl.sources.row_groups import Limits
from etl.sources.shapes.text import TextShape
from etl.sources.spec import Source
from tests.etl.stages.toys import read, run, stage, text_recipe

SHAPE = TextShape(
    shape="text",
    example_id="id",
    text="text",
    language="lang",
    skill_bucket={"column": "kind", "by_value": {"maths & more": "B2"}, "default": "B1"},
    meta=("year", "lang"),
)


@pytest.mark.parametrize(
    ("relative", "columns"),
    [
        ("a.jsonl", {}),
        ("x/y/a.jsonl", {}),
        ("year=2024/lang=en/a.jsonl", {"year": "2024", "lang": "en"}),
        ("x/lang=en/y/a.jsonl", {"lang": "en"}),
        ("lang=__HIVE_DEFAULT_PARTITION__/a.jsonl", {"lang": None}),
        ("lang=a%2Fb%20%C3%A9%25/a.jsonl", {"lang": "a/b é%"}),
        ("my%3Dkey=v/a.jsonl", {"my=key": "v"}),
        ("q=a=b/a.jsonl", {"q": "a=b"}),
        ("lang=/a.jsonl", {"lang": ""}),
        ("=x/a.jsonl", {}),
        ("a=b.jsonl", {}),
    ],
)
def test_columns_of_a_path(relative, columns):
    assert partitions_of(relative) == columns


@pytest.mark.parametrize(
    ("relative", "message"),
    [("lang=en/lang=de/a", "two folders name the column 'lang'"), ("lang=%ff/a", "'lang=%ff' is not UTF-8")],
)
def test_folders_that_make_no_columns(relative, message):
    with pytest.raises(SourceError, match=message):
        partitions_of(relative)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")


def rows_of(path, shape=SHAPE):
    source = Source(spec="text", path=str(path))
    splits = cut("toy", source, list_files("toy", source, {}), 1 << 30, {})
    return [
        row
        for split in splits
        for batch, _ in read_split(source, shape, split, {}, Limits())
        for row in batch.to_pylist()
    ]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_row_has_the_columns_of_its_folders(tmp_path, ending):
    document = [{"id": "d", "text": "words"}]
    write(tmp_path / f"in/year=2024/lang=de%20CH/kind=maths & more/a.{ending}", document)
    write(tmp_path / f"in/year=__HIVE_DEFAULT_PARTITION__/b.{ending}", document)
    write(tmp_path / f"in/c.{ending}", document)
    found = [(row["language"], row["skill_bucket"], row["meta_json"]) for row in rows_of(tmp_path / "in")]
    assert sorted(found, key=str) == [
        ("de CH", "B2", '{"lang":"de CH","year":"2024"}'),
        (None, "B1", "{}"),
        (None, "B1", "{}"),
    ]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_column_of_the_file_goes_before(tmp_path, ending):
    rows = [{"id": "1", "text": "a", "lang": "fr"}, {"id": "2", "text": "b", "lang": None}]
    write(tmp_path / f"lang=en/a.{ending}", rows)
    assert [row["language"] for row in rows_of(tmp_path)] == ["fr", None]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_id_and_text_may_be_folders(tmp_path, ending):
    write(tmp_path / f"id=7/text=a b/x.{ending}", [{"n": 1}, {"n": 2}])
    (one, two) = rows_of(tmp_path)
    assert one["source_example_id"] == two["source_example_id"] == "7"
    assert one["messages"][0]["content"] == "a b"


def test_a_folder_above_the_root_is_no_column(tmp_path):
    write(tmp_path / "lang=en/a.jsonl", [{"id": "1", "text": "a"}])
    assert [row["language"] for row in rows_of(tmp_path / "lang=en")] == [None]
    assert [row["language"] for row in rows_of(tmp_path / "lang=en/a.jsonl")] == [None]
    assert [row["language"] for row in rows_of(tmp_path / "lang=*/a.jsonl")] == ["en"]


def test_folders_are_in_the_fingerprint_where_a_row_shows_them(tmp_path):
    """Moving a file between folders that no column reads changes only the listing, as it always did."""
    for name, folder in (("used", "id=1"), ("unused", "shard=1")):
        recipe = text_recipe(tmp_path / name, {"a": []})
        write(tmp_path / f"{name}-files/{folder}/a.jsonl", [{"id": "x", "text": "t"}])
        sources = {"a": recipe.sources["a"].model_copy(update={"path": str(tmp_path / f"{name}-files")})}
        run(recipe.model_copy(update={"sources": sources}))
    made = {name: stage(tmp_path / name, "ingest").manifest.made_from["sources"]["a"] for name in ("used", "unused")}
    assert made["used"]["columns_of_folders"] == ["id"]
    assert sorted(made["unused"]) == ["bytes", "files", "listing", "shape"]
    assert [row["source_example_id"] for row in read(stage(tmp_path / "used", "ingest"))] == ["x"]
