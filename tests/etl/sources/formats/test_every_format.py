"""Every format with every compression, of one member or several, among files that are not part of its data."""

import io
import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.sources.files import cut, list_source
from etl.sources.formats.endings import COMPRESSIONS, FORMATS
from etl.sources.read import read_split
from etl.sources.row_groups import Limits
from etl.sources.spec import Description, Source
from tests.etl.sources.test_damage import PACK

SHAPE = Description.model_validate({"shape": "text", "text": "text", "skill_bucket": "B5"}).root
TEXTS = [f"Größe {number}, {'x' * number}" for number in range(40)]
ROWS = [{"text": text} for text in TEXTS]


def record(text):
    data = text.encode()
    head = "WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\nContent-Length:"
    return f"{head} {len(data)}\r\n\r\n".encode() + data + b"\r\n\r\n"


def arrow(new):
    out = io.BytesIO()
    table = pa.Table.from_pylist(ROWS)
    with new(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return out.getvalue()


def parquet():
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), out, row_group_size=7)
    return out.getvalue()


def quoted(text, sign):
    return f'"{text}"' if sign in text else text


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
DATA = {
    ".parquet": parquet(),
    ".jsonl": LINES,
    ".ndjson": LINES,
    ".json": json.dumps(ROWS, indent=2).encode(),
    ".csv": "\n".join(["text", *(quoted(text, ",") for text in TEXTS)]).encode(),
    ".tsv": "\n".join(["text", *(quoted(text, "\t") for text in TEXTS)]).encode(),
    ".arrow": arrow(pa.ipc.new_file),
    ".feather": arrow(pa.ipc.new_stream),
    ".txt": "\n".join(TEXTS).encode(),
    ".warc": b"".join(map(record, TEXTS)),
    ".wet": b"".join(map(record, TEXTS)),
}


def test_no_format_is_forgotten():
    assert set(DATA) == set(FORMATS)
    assert set(PACK) == set(COMPRESSIONS)


@pytest.mark.parametrize("compression", ["", *COMPRESSIONS])
@pytest.mark.parametrize("ending", FORMATS)
def test_a_format_reads_packed_in_members_and_without_what_lies_beside_it(tmp_path, ending, compression):
    data = DATA[ending]
    name = f"part{ending}"
    if compression and ending != ".parquet":
        # Three members, which end anywhere.
        name += compression
        places = (0, len(data) // 3, len(data) // 2 + 1, len(data))
        data = b"".join(PACK[compression](data[start:end]) for start, end in itertools.pairwise(places))
    (tmp_path / name).write_bytes(data)
    for other in ("_SUCCESS", f".{name}.crc", f"_{name}", "_temporary/part", "README.md", f".hidden/{name}"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(data)
    source = Source(spec="toy", path=str(tmp_path), text_rows="line" if ending == ".txt" else None)
    if ending == ".txt":
        (tmp_path / "README.md").unlink()
    listed = list_source("toy", source, {})
    assert [file.relative for file in listed.files] == [name]
    assert sum(found["files"] for found in listed.left_out.values()) == (5 if ending == ".txt" else 6)
    found = []
    for split in cut("toy", source, listed.files, 100, {}):
        for batch, bad in read_split(source, SHAPE, split, {}, Limits()):
            assert bad == []
            found += [row["messages"][0]["content"] for row in batch.to_pylist()]
    assert found == TEXTS
