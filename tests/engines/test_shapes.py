"""Three shapes in three formats on every engine, cut small and not at all: the same rows, so one digest of ingest."""

import csv
import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.engines.inprocess import InProcessEngine
from tests.etl.sources.toyingest import ingest_each

COUNT = 60
ODD = ("plain", "line \u2028 and \x0b\x0c\x85", "zero \0", "one\ntwo\r\nthree", '"quoted", {"a": 1}', "日本語 e\u0301")


def columns_row(n):
    text = ODD[n % len(ODD)]
    return {
        "id": f"r{n}",
        "q": f"{n} {text}",
        "why": "" if n % 3 else text,
        "a": "" if n % 20 == 7 else text,
        "m": text,
    }


def messages_row(n):
    text = ODD[n % len(ODD)]
    said = [{"role": "user", "content": f"{n} {text}"}, {"role": "assistant", "content": text}]
    if n % 4 == 0:
        call = {"id": "c", "function": {"name": "look", "arguments": json.dumps({"at": n})}}
        said[1:1] = [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": text, "tool_call_id": "c"},
        ]
    return {"id": f"r{n}", "messages": said, "tools": [{"name": "look", "description": text}]}


def preference_row(n):
    text = ODD[n % len(ODD)]
    sides = [[{"role": "assistant", "content": f"{side} {text}"}] for side in ("good", "bad")]
    return {"id": f"r{n}", "prompt": f"{n} {text}", "chosen": sides[0], "rejected": sides[1]}


SHAPES = {
    "columns": {"shape": "columns", "user": "q", "analysis": "why", "final": "a", "meta": ["m"]},
    "messages": {"shape": "messages"},
    "preference": {"shape": "preference", "prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
}
ROWS = {"columns": columns_row, "messages": messages_row, "preference": preference_row}
FORMATS = ("jsonl", "parquet", "csv")
SPLIT_BYTES = (1024, 8192, 1 << 30)
ALL_CUTS = tuple(itertools.product(FORMATS, SPLIT_BYTES))
FEW_CUTS = (("jsonl", 1024), ("jsonl", 1 << 30), ("parquet", 1024), ("csv", 8192))
"""Where a job costs half a second."""


def write(path, rows):
    """JSON lines, Parquet with structs and lists, and CSV with JSON in the place of these."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=9)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            nested = {key for key, value in rows[0].items() if not isinstance(value, str)}
            writer.writerows({key: json.dumps(row[key]) if key in nested else row[key] for key in row} for row in rows)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Format -> shape -> two files with the rows."""
    folder = tmp_path_factory.mktemp("shapes")
    for shape, make in ROWS.items():
        rows = [make(n) for n in range(COUNT)]
        for form in FORMATS:
            (folder / form / shape).mkdir(parents=True)
            write(folder / form / shape / f"a.{form}", rows[: COUNT // 3])
            write(folder / form / shape / f"b.{form}", rows[COUNT // 3 :])
    return folder


def digest_and_accounts(inputs, folder, engine, split_bytes, form):
    """The content digest of ingest over all shapes in a format, and the account of each."""
    paths = {shape: inputs / form / shape for shape in SHAPES}
    shapes = {shape: {**described, "example_id": "id"} for shape, described in SHAPES.items()}
    found = ingest_each(folder, paths, shapes, engine, run={"split_bytes": split_bytes})
    (digest,) = {one.digest for one in found.values()}
    return digest, {shape: one.account for shape, one in found.items()}


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory):
    """What the oracle makes of one split of JSON lines."""
    folder = tmp_path_factory.mktemp("expected")
    found = digest_and_accounts(inputs, folder, InProcessEngine(), 1 << 30, "jsonl")
    accounts = found[1]
    assert accounts["columns"] == {"in": COUNT, "made": 0, "kept": COUNT - 3, "blank_answer": 3}
    assert accounts["messages"] == accounts["preference"] == {"in": COUNT, "made": 0, "kept": COUNT}
    return found


def check(inputs, tmp_path, engine, expected, cuts):
    for form, split_bytes in cuts:
        folder = tmp_path / f"{form}-{split_bytes}"
        assert digest_and_accounts(inputs, folder, engine, split_bytes, form) == expected


def test_local(inputs, tmp_path, expected):
    from etl.engines.local import LocalEngine

    check(inputs, tmp_path, LocalEngine(), expected, ALL_CUTS)


def test_beam_direct(inputs, tmp_path, expected):
    from etl.engines.beam import BeamEngine

    check(inputs, tmp_path, BeamEngine([], report=lambda line: None), expected, FEW_CUTS)


def test_spark_local(inputs, tmp_path, expected, spark):
    from etl.engines.spark import SparkEngine

    check(inputs, tmp_path, SparkEngine(session=spark), expected, FEW_CUTS)
