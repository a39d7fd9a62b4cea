"""Side tables read beside the table that they are aligned with: columns, order, verdicts, and what is not aligned."""

import pickle

import pyarrow as pa
import pytest

from etl.errors import DataError, SchemaError
from etl.rows import Rows
from etl.schema import PROMPT, REMOVED, VERDICT, aligned
from etl.storage.location import Location
from tests.etl.rows import asked, say
from tests.etl.storage.builds import commit

CUT = [[2, 3], [], [1]]
"""Rows of each row group of each split."""
SCORES = aligned(pa.schema([("score", pa.float64())]))
LABELS = aligned(pa.schema([("label", pa.string())]))
BARE = aligned(pa.schema([]))


def key(n: int) -> bytes:
    return n.to_bytes(16, "big")


def verdict(step: str) -> dict:
    return {"step": step, "reason": "r", "value": None}


def laid_out(rows: list[dict], schema: pa.Schema, cut: list[list[int]]) -> list[list[pa.RecordBatch]]:
    """The rows in the row groups of each split."""
    left = iter(rows)
    return [
        [pa.RecordBatch.from_pylist([next(left) for _ in range(size)], schema=schema) for size in split]
        for split in cut
    ]


def prompt(n: int) -> dict:
    return {
        "id": key(n),
        "source_dataset": "toy",
        "source_example_id": f"{n}",
        "split_key": f"{n}",
        "messages": asked(f"q{n}", f"a{n}"),
        "skill_bucket": "B1",
    }


def prompts(folder: Location, cut=CUT) -> Rows:
    rows = [prompt(n) for n in range(sum(map(sum, cut)))]
    return Rows.of(commit(folder / "ingest", PROMPT, laid_out(rows, PROMPT, cut), "ingest"))


def with_side(rows: Rows, stage: str, schema: pa.Schema, values, ids=range(6), cut=CUT) -> Rows:
    """A side table whose row n holds id ids[n] and the columns values[n]."""
    laid = laid_out([{"id": key(n)} | value for n, value in zip(ids, values, strict=True)], schema, cut)
    folder = Location.of(rows.base.ref.folder.url.removesuffix("/ingest")) / stage
    return rows.with_side(commit(folder, schema, laid, stage), schema)


@pytest.fixture
def rows(folder):
    base = prompts(folder)
    scored = with_side(
        base, "score", SCORES, [{"score": n / 2, "verdict": verdict("score") if n == 1 else None} for n in range(6)]
    )
    marks = [
        {"label": f"l{n}", "verdict": verdict("score" if n == 1 else "label") if n < 3 else None} for n in range(6)
    ]
    return with_side(scored, "label", LABELS, marks)


def read(rows: Rows, split: int, columns: list[str]) -> list[dict[str, list]]:
    return [batch.to_pydict() for batch in rows.ref.read(split, columns)]


def test_columns_of_all_tables_come_in_the_order_asked_for(rows):
    columns = ["label", "source_example_id", "score", "id"]
    batches = list(rows.ref.read(0, columns))
    assert [batch.schema.names for batch in batches] == [columns, columns]
    assert batches[0].to_pydict() == {
        "label": ["l0", "l1"],
        "source_example_id": ["0", "1"],
        "score": [0.0, 0.5],
        "id": [key(0), key(1)],
    }
    assert batches[1].column("score").to_pylist() == [1.0, 1.5, 2.0]
    assert list(rows.ref.read(1, columns)) == []
    assert read(rows, 2, ["label"]) == [{"label": ["l5"]}]


def test_a_column_of_one_table_alone(rows):
    assert read(rows, 0, ["score"]) == [{"score": [0.0, 0.5]}, {"score": [1.0, 1.5, 2.0]}]
    assert [batch.num_columns for batch in rows.ref.read(0, [])] == [0, 0]


def test_messages_are_whole(rows):
    assert read(rows, 2, ["messages"]) == [{"messages": [asked("q5", "a5")]}]


def test_the_verdict_is_that_of_the_newest_table(rows):
    stored = [batch["verdict"] for batch in read(rows, 0, ["verdict"])]
    assert stored == [[verdict("label"), verdict("score")], [verdict("label"), None, None]]
    bare = with_side(rows, "bare", BARE, [{"verdict": None}] * 6)
    assert read(bare, 0, ["verdict", "score"])[0] == {"verdict": [None, None], "score": [0.0, 0.5]}


def test_without_a_side_table_the_verdict_is_that_of_ingest(folder):
    rows = [prompt(0) | {"verdict": verdict("ingest")}, *map(prompt, range(1, 6))]
    base = Rows.of(commit(folder / "ingest", PROMPT, laid_out(rows, PROMPT, CUT), "ingest"))
    first, last = next(base.ref.read(0, ["verdict", "id"])), next(base.ref.read(2, ["verdict"]))
    assert first.column("verdict").type == VERDICT
    assert first.to_pydict() == {"verdict": [verdict("ingest"), None], "id": [key(0), key(1)]}
    assert last.to_pydict() == {"verdict": [None]}
    later = with_side(base, "bare", BARE, [{"verdict": None}] * 6)
    assert next(later.ref.read(0, ["verdict"])).to_pydict() == {"verdict": [None, None]}


def test_schema_lists_each_column_once(rows):
    assert rows.schema.names == [*PROMPT.names[:-1], "score", "label", "verdict"]
    assert rows.schema.field("score").type == pa.float64()
    assert (rows.splits, rows.num_rows) == (range(3), 6)


def test_an_unknown_column_is_a_schema_error(rows):
    with pytest.raises(SchemaError, match=r"no table has \['scores'\]; the columns are \['id'"):
        next(rows.ref.read(0, ["id", "scores"]))


def test_inputs_are_the_tables_that_a_read_touches(rows):
    _, score, label = rows.datasets
    assert rows.tables(["messages"]) == (rows.base,)
    assert rows.tables(["score"]) == (rows.base, score)
    assert rows.tables(["verdict"]) == (rows.base, label)
    assert rows.tables(["score", "verdict"]) == (rows.base, score, label)


def test_rows_pickle(rows):
    assert read(pickle.loads(pickle.dumps(rows)), 0, ["label"]) == read(rows, 0, ["label"])


@pytest.mark.parametrize(
    ("ids", "cut"),
    [
        ([0, 2, 1, 3, 4, 5], CUT),
        ([0, 1, 2, 3, 4, 9], CUT),
        (range(6), [[3, 2], [], [1]]),
        (range(6), [[5], [], [1]]),
        (range(6), [[2, 2, 1], [], [1]]),
        (range(6), [[2, 3], [], []]),
        (range(6), [[2, 3], [1], []]),
        (range(6), [[2, 3]]),
    ],
)
def test_tables_that_are_not_aligned_are_a_data_error(folder, ids, cut):
    count = sum(map(sum, cut))
    values = [{"score": 0.0, "verdict": None}] * count
    rows = with_side(prompts(folder), "score", SCORES, values, ids=list(ids)[:count], cut=cut)
    with pytest.raises(DataError, match=r"are not aligned|00001\.json is missing"):
        [list(rows.ref.read(split, ["messages", "score"])) for split in rows.splits]


def test_a_table_that_is_not_needed_is_not_read(folder):
    rows = prompts(folder)
    values = [{"score": 0.0, "verdict": None}] * 6
    rows = with_side(rows, "score", SCORES, values, ids=[9] * 6)
    assert read(rows, 2, ["source_dataset"]) == [{"source_dataset": ["toy"]}]


REMOVAL = aligned(pa.schema([REMOVED, pa.field("num_removed", pa.int32())]))


def raw(folder: Location, *texts: str) -> Rows:
    """Raw documents in the row groups of CUT."""
    rows = [
        {
            "id": key(n),
            "source_dataset": "toy",
            "source_example_id": f"{n}",
            "split_key": f"{n}",
            "messages": [say("text", text)],
            "skill_bucket": "B5",
        }
        for n, text in enumerate(texts)
    ]
    return Rows.of(commit(folder / "ingest", PROMPT, laid_out(rows, PROMPT, CUT), "ingest"))


def removal(rows: Rows, stage: str, *ranges: list[tuple[int, int]]) -> Rows:
    values = [
        {"removed": [{"start": a, "end": b} for a, b in of], "num_removed": len(of), "verdict": None} for of in ranges
    ]
    return with_side(rows, stage, REMOVAL, values)


def texts_of(rows: Rows) -> list[str]:
    return [
        message[0]["content"]
        for split in rows.splits
        for batch in rows.ref.read(split, ["num_removed", "messages"])
        for message in batch.column("messages").to_pylist()
    ]


def test_messages_come_without_the_ranges_of_every_table_oldest_first(folder):
    base = raw(folder, "abcdef", "abcdef", "abc", "abc", "", "abc")
    once = removal(base, "one", [(0, 1)], [(1, 3), (4, 5)], [], [(0, 3)], [], [(2, 3)])
    assert texts_of(once) == ["bcdef", "adf", "abc", "", "", "ab"]
    twice = removal(once, "two", [(0, 2)], [(1, 2)], [(1, 2)], [], [], [])
    assert texts_of(twice) == ["def", "af", "ac", "", "", "ab"]


def test_the_table_of_ranges_is_an_input_of_what_reads_messages(folder):
    rows = removal(raw(folder, *"abcdef"), "one", *[[]] * 6)
    _, side = rows.datasets
    assert rows.tables(["messages"]) == (rows.base, side)
    assert rows.tables(["split_key"]) == (rows.base,)
    assert "removed" not in rows.schema.names
    assert "num_removed" in rows.schema.names
    with pytest.raises(SchemaError, match="no table has"):
        next(rows.ref.read(0, ["removed"]))
