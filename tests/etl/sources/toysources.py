"""Toy rows in files, the shapes that read them, and what a source gives."""

import json

import pyarrow as pa

from etl.schema import PROMPT
from etl.sources.files import cut, list_files
from etl.sources.read import read_split
from etl.sources.row_groups import Limits
from etl.sources.shapes.columns import ColumnsShape
from etl.sources.shapes.text import TextShape
from etl.sources.spec import Source

LIMITS = Limits()
SHAPE = ColumnsShape(
    shape="columns",
    example_id="id",
    user="q",
    analysis="why",
    final="a",
    language="lang",
    skill_bucket={"column": "task", "by_value": {"sum": "B2", "code": "B3"}, "default": "B1"},
    meta=("task", "m"),
)


def batches_of(path, split_bytes=1 << 30, shape=SHAPE):
    """The batches of a source with their bad rows, split by split."""
    source = Source(spec="toy", path=str(path))
    splits = cut("toy", source, list_files("toy", source, {}), split_bytes, {})
    return [list(read_split(source, shape, split, {}, LIMITS)) for split in splits]


def rows_of(path, shape=SHAPE, split_bytes=1 << 30, name="toy", limits=LIMITS):
    """(PROMPT rows, [(position, reason)] of the bad ones) of all splits of a source."""
    source = Source(spec="toy", path=str(path))
    good, bad = [], []
    for split in cut(name, source, list_files(name, source, {}), split_bytes, {}):
        for batch, lost in read_split(source, shape, split, {}, limits):
            assert batch.schema == PROMPT
            good.extend(batch.to_pylist())
            bad.extend((row.position, row.reason) for row in lost)
    return good, bad


def without_places(found):
    """What `rows_of` gives, but for the files and positions of the good rows and the positions of the bad ones."""
    good, bad = found
    places = ("file", "position")
    return [{name: row[name] for name in row if name not in places} for row in good], [reason for _, reason in bad]


def jsonl(path, *rows) -> None:
    path.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))


def example(n=0, **changes) -> dict:
    return {"id": f"e{n}", "q": f"q{n}", "a": f"a{n}"} | changes


def documents() -> TextShape:
    return TextShape(shape="text", example_id="id", text="text", skill_bucket={"default": "B1"})


def table(count=7, **columns) -> pa.Table:
    rows = [example(n, why="so" if n % 2 else "", task="code", m=n) for n in range(count)]
    made = pa.Table.from_pylist(rows)
    for name, column in columns.items():
        made = made.drop_columns([name]) if name in made.column_names else made
        made = made.append_column(name, column)
    return made
