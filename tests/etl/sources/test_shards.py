"""Shards of one source whose schemas differ give the rows of one clean file; files that change are errors."""

import datetime
import decimal
import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.errors import SourceError
from etl.sources.files import cut, list_files
from etl.sources.read import read_split
from etl.sources.row_groups import Limits
from etl.sources.spec import Description, Source
from tests.etl.sources.toyingest import CHAT, COLUMNS, ingest

SHAPE = Description.model_validate({"skill_bucket": "chat", **COLUMNS}).root


def write_arrow(table, path):
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)


def contents(found):
    """What rows say and keep, whatever file they are in."""
    return sorted((str(row["messages"]), str(row["tools"]), row["meta_json"]) for row in found.rows)


# --- schemas ----------------------------------------------------------------------------------------------------------

TEXTS = ["one", "two", "one"]
TEXT_TYPES = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
    "dictionary": pa.dictionary(pa.int8(), pa.string()),
    "large_dictionary": pa.dictionary(pa.int32(), pa.large_string()),
}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_shards_whose_text_has_other_types_give_the_same_rows(tmp_path, kind):
    """Also columns in another order, absent and null ones, and some that nobody reads."""
    write = pq.write_table if kind == "parquet" else write_arrow
    for name, text in TEXT_TYPES.items():
        column = (
            pa.array(TEXTS).cast(text) if "dictionary" not in name else pa.array(TEXTS).dictionary_encode().cast(text)
        )
        write(pa.table({"q": column, "a": column, "m": column}), tmp_path / f"{name}.{kind}")
    plain = pa.array(TEXTS)
    write(pa.table({"extra": [1, 2, 3], "m": plain, "a": plain, "q": plain}), tmp_path / f"order.{kind}")
    write(pa.table({"q": plain, "a": plain}), tmp_path / f"absent.{kind}")
    write(pa.table({"q": plain, "a": plain, "m": pa.nulls(3)}), tmp_path / f"null.{kind}")
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"q": t, "a": t, "m": t}) + "\n" for t in TEXTS))
    found = ingest(tmp_path / "run", {"x": tmp_path / f"*.{kind}", "lines": tmp_path / "lines.jsonl"}, COLUMNS)
    bare = [(said, tools, "{}") for said, tools, _ in contents(found["lines"])]
    assert contents(found["x"]) == sorted(contents(found["lines"]) * (len(TEXT_TYPES) + 1) + bare * 2)


def test_a_column_of_nulls_that_is_needed_makes_bad_rows(tmp_path):
    pq.write_table(pa.table({"q": ["hi"] * 2, "a": ["yo"] * 2}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"q": pa.nulls(2), "a": ["yo"] * 2}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"q": pa.nulls(2, pa.string()), "a": ["yo"] * 2}), tmp_path / "2.parquet")
    found = ingest(tmp_path, {"x": tmp_path / "*.parquet"}, COLUMNS)["x"]
    assert found.said == [("hi", "yo")] * 2
    assert [(row["file"], row["position"], row["reason"]) for row in found.bad] == [
        (f"{shard}.parquet", position, "missing_q") for shard in (1, 2) for position in (0, 1)
    ]


def test_a_shard_without_a_needed_column_is_an_error_that_names_it(tmp_path):
    pq.write_table(pa.table({"q": ["hi"], "a": ["yo"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"q": ["hi"], "answer": ["yo"]}), tmp_path / "1.parquet")
    with pytest.raises(SourceError, match=r"1\.parquet lacks the columns \['a'\]; it has \['q', 'answer'\]"):
        ingest(tmp_path, {"x": tmp_path / "*.parquet"}, COLUMNS)


TALK = [
    {"role": "user", "content": "How is Rome?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "1", "function": {"name": "weather", "arguments": {"city": "Rome"}}}],
    },
    {"role": "tool", "content": "sun", "tool_call_id": "1"},
    {"role": "assistant", "content": "Sunny, at what time?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "2", "function": {"name": "time", "arguments": {"zone": 1}}}],
    },
    {"role": "tool", "content": "noon", "tool_call_id": "2"},
]
TOOLS = [
    {"name": name, "description": "", "parameters": {"type": "object", "properties": {key: {"type": kind}}}}
    for name, key, kind in (("weather", "city", "string"), ("time", "zone", "integer"))
]
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])


def test_conversations_as_structs_with_the_keys_of_all_are_those_of_json(tmp_path):
    """All structs of a column have the same fields, so the arguments of one call are null in the others."""
    row = {"messages": TALK, "tools": TOOLS, "m": {"k": [1]}}
    (tmp_path / "lines.jsonl").write_text(json.dumps(row) + "\n")
    structs = pa.Table.from_pylist([row])
    assert (
        structs["messages"]
        .type.value_type.field("tool_calls")
        .type.value_type.field("function")
        .type.field("arguments")
        .type.num_fields
        == 2
    )
    pq.write_table(structs, tmp_path / "structs.parquet")
    write_arrow(structs, tmp_path / "structs.arrow")
    texts = {"messages": [json.dumps(TALK)], "tools": [json.dumps(TOOLS)], "m": structs["m"]}
    pq.write_table(pa.table(texts), tmp_path / "texts.parquet")
    write_arrow(
        pa.table(texts | {"messages": pa.array([json.dumps(TALK)], pa.large_string())}), tmp_path / "texts.arrow"
    )
    names = ["lines.jsonl", "structs.parquet", "structs.arrow", "texts.parquet", "texts.arrow"]
    found = ingest(tmp_path, {name: tmp_path / name for name in names}, CHAT)
    (expected,) = contents(found["lines.jsonl"])
    assert "null" not in expected[1]
    assert [message["content"] for message in found["lines.jsonl"].rows[0]["messages"]][1] == '{"city":"Rome"}'
    assert [contents(one) for one in found.values()] == [[expected]] * len(names)


LIST_TYPES = {
    "list": pa.list_(MESSAGE),
    "large": pa.large_list(MESSAGE),
    "view": pa.list_view(MESSAGE),
    "large_view": pa.large_list_view(MESSAGE),
    "fixed": pa.list_(MESSAGE, 2),
    "encoded": pa.list_(pa.struct([("role", pa.dictionary(pa.int8(), pa.string())), ("content", pa.large_string())])),
    "more": pa.list_(pa.struct([("content", pa.string()), ("name", pa.null()), ("role", pa.string())])),
}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_lists_of_every_kind_are_the_same_conversations(tmp_path, kind):
    talks = [[{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}] for n in range(3)]
    write = pq.write_table if kind == "parquet" else write_arrow
    for name, of in LIST_TYPES.items():
        write(
            pa.table({"messages": pa.array(talks, of), "m": pa.array([[1], None, []], pa.list_view(pa.int8()))}),
            tmp_path / f"{name}.{kind}",
        )
    found = ingest(tmp_path, {"x": tmp_path / f"*.{kind}"}, CHAT)["x"]
    assert found.said == [(f"q{n}", f"a{n}") for n in range(3)] * len(LIST_TYPES)
    assert [row["meta_json"] for row in found.rows] == ['{"m":[1]}', "{}", '{"m":[]}'] * len(LIST_TYPES)


def test_what_is_kept_of_each_type_is_the_same_in_every_format(tmp_path):
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5)
    kept = pa.table(
        {
            "decimal": [decimal.Decimal("1.10"), None],
            "moment": [moment, None],
            "day": [moment.date(), None],
            "big": pa.array([2**64 - 1, None], pa.uint64()),
            "flag": [True, None],
            "nested": [{"x": [1, None], "y": None}, None],
        }
    )
    table = pa.table(
        {
            "q": ["hi", "ho"],
            "a": ["yo", "ya"],
            "m": pa.StructArray.from_arrays(
                [column.combine_chunks() for column in kept.columns], names=kept.column_names
            ),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    write_arrow(table, tmp_path / "x.arrow")
    found = ingest(tmp_path, {name: tmp_path / name for name in ("x.parquet", "x.arrow")}, COLUMNS)
    first = {
        "decimal": "1.10", "moment": "2026-01-02T03:04:05", "day": "2026-01-02", "big": 2**64 - 1, "flag": True,
        "nested": {"x": [1, None], "y": None},
    }  # fmt: skip
    for one in found.values():
        assert [json.loads(row["meta_json"])["m"] for row in one.rows] == [first, dict.fromkeys(first)]


# --- files that change ------------------------------------------------------------------------------------------------

ROWS = [{"q": f"q{n}", "a": "yo", "m": n} for n in range(5)]


def write_lines(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def write_gzip(path):
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))


def write_array(path):
    path.write_text(json.dumps(ROWS))


def write_csv(path):
    path.write_text("q,a,m\n" + "".join(f"{row['q']},{row['a']},{row['m']}\n" for row in ROWS))


WRITERS = {
    "x.jsonl": write_lines,
    "x.jsonl.gz": write_gzip,
    "x.json": write_array,
    "x.csv": write_csv,
    "x.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "x.arrow": lambda path: write_arrow(pa.Table.from_pylist(ROWS), path),
}


def grow(path):
    path.write_bytes(path.read_bytes() * 2)


def shrink(path):
    path.write_bytes(path.read_bytes()[:-10])


def replace(path):
    """By the same bytes, written later."""
    other = path.with_name(".other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(0, 0))
    other.replace(path)


def rewrite(path):
    """By as many other bytes."""
    path.write_bytes(path.read_bytes().replace(b"q3", b"Q3"))
    os.utime(path, ns=(0, 0))


def go_away(path):
    path.unlink()


def become_a_folder(path):
    path.unlink()
    path.mkdir()


def listed(folder):
    source = Source(spec="toy", path=str(folder))
    return source, list(cut("toy", source, list_files("toy", source, {}), 1 << 30, {}))


def read(source, splits):
    return [
        row
        for split in splits
        for batch, _ in read_split(source, SHAPE, split, {}, Limits())
        for row in batch.to_pylist()
    ]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("change", [grow, shrink, replace, rewrite, go_away, become_a_folder])
def test_a_file_that_changes_after_it_was_listed_is_an_error_that_names_it(tmp_path, name, change):
    WRITERS[name](tmp_path / name)
    source, splits = listed(tmp_path)
    assert len(read(source, splits)) == 5
    change(tmp_path / name)
    with pytest.raises(SourceError, match=rf"{name} (changed while it was read|cannot be read|is missing)") as error:
        read(source, splits)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_grows_while_it_is_read_is_an_error(tmp_path, name, monkeypatch):
    """A format may see something else first, such as text after the end of an array."""
    WRITERS[name](tmp_path / name)
    source, splits = listed(tmp_path)
    size = (tmp_path / name).stat().st_size
    made = read_split.__globals__["to_prompt"]

    def grow_and_make(*arguments):
        if (tmp_path / name).stat().st_size == size:
            grow(tmp_path / name)
        return made(*arguments)

    monkeypatch.setitem(read_split.__globals__, "to_prompt", grow_and_make)
    with pytest.raises(SourceError, match=name):
        read(source, splits)


def test_a_file_that_is_written_while_it_is_listed_is_an_error(tmp_path, monkeypatch):
    write_lines(tmp_path / "x.jsonl")
    digest = list_files.__globals__["_digest"]

    def digest_then_write(location, *arguments):
        found = digest(location, *arguments)
        grow(tmp_path / "x.jsonl")
        return found

    monkeypatch.setitem(list_files.__globals__, "_digest", digest_then_write)
    source, splits = listed(tmp_path)
    with pytest.raises(SourceError, match=r"x\.jsonl changed while it was read"):
        read(source, splits)


def test_a_file_that_appears_after_the_listing_is_of_the_next_run(tmp_path):
    write_lines(tmp_path / "x.jsonl")
    source, splits = listed(tmp_path)
    write_csv(tmp_path / "y.csv")
    assert len(read(source, splits)) == 5
    assert len(read(*listed(tmp_path))) == 10
