"""The table of a teacher: rows by id, in the order asked for, over several parts and row groups."""

import hashlib
import tempfile
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.errors import DataError, SchemaError
from etl.schema import TEACHER_LOGP
from etl.storage.build import Build, Chunk, Job
from etl.storage.location import Location
from training.data.teacher_table import LOGP_ROUNDING, TABLE, TeacherTable, completion_digests, digest_bytes, id_keys

TOPK = 2
FOUND = {"mean_logp": -1.25, "temperature": 1.0, "topk": TOPK}


def row(number):
    """Row `number` has number % 4 + 1 supervised tokens."""
    size = number % 4 + 1
    tokens = np.arange(number, number + size, dtype=np.int32)
    return {
        "id": str(uuid.UUID(bytes=hashlib.md5(str(number).encode()).digest())),
        "completion_digest": digest_bytes(completion_digests(tokens, np.array([0, size])))[0].as_py(),
        "prompt_digest": bytes(16),
        "teacher_digest": "t",
        "reasoning_mode": "low",
        "temperature": 1.0,
        "prefix_tokens": 5,
        "logp": [-number - place / 4 for place in range(size)],
        "topk_ids": list(range(number, number + size * TOPK)),
        "topk_logp": [-number - place / 8 for place in range(size * TOPK)],
    }


def write(folder, splits, topk=TOPK, table=TABLE):
    """Commit rows: a list of row groups for each split."""
    found = {**FOUND, "topk": topk}
    build = Build(Job(Location.of(folder), "teacher_logp", table, TEACHER_LOGP, {}).with_findings(found))
    plan = build.plan(range(len(splits)))
    for number, groups in enumerate(splits):
        batches = [pa.RecordBatch.from_pylist([row(n) for n in group], TEACHER_LOGP) for group in groups]
        build.writer(plan).write(number, [Chunk(batch, batch.num_rows) for batch in batches])
    return build.commit(plan)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table") / "t"
    write(folder, [[range(5), range(5, 12)], [range(12, 13)], [range(13, 30), range(30, 40)]])
    return TeacherTable(str(folder))


def test_what_a_table_says_of_itself(table):
    assert (len(table), table.mean_logp, table.temperature, table.topk) == (40, -1.25, 1.0, TOPK)


@given(numbers=st.lists(st.integers(0, 39), max_size=50))
def test_rows_come_in_the_order_asked_for(table, numbers):
    rows = [row(number) for number in numbers]
    got = table.gather([item["id"] for item in rows])
    sizes = [len(item["logp"]) for item in rows]
    assert got.offsets.tolist() == [0, *np.cumsum(sizes)]
    assert got.logp.tolist() == [value for item in rows for value in item["logp"]]
    assert got.topk_ids.reshape(-1).tolist() == [value for item in rows for value in item["topk_ids"]]
    assert got.topk_logp.shape == (sum(sizes), TOPK)
    assert got.topk_logp.reshape(-1).tolist() == [value for item in rows for value in item["topk_logp"]]
    tokens = [np.arange(n, n + size, dtype=np.int32) for n, size in zip(numbers, sizes, strict=True)]
    flat = np.concatenate([np.empty(0, np.int32), *tokens])
    assert got.completion_digest.tolist() == completion_digests(flat, got.offsets).tolist()


def test_ids_in_any_form_name_the_same_rows(table):
    texts = [row(number)["id"] for number in (7, 3, 39)]
    raw = pa.array([uuid.UUID(text).bytes for text in texts], pa.binary(16))
    for ids in (texts, pa.array(texts), raw, id_keys(texts), raw.slice(0, 3)):
        assert table.gather(ids).logp.tolist() == table.gather(texts).logp.tolist()
    assert table.gather(raw.slice(1)).logp.tolist() == table.gather(texts[1:]).logp.tolist()


@given(values=st.lists(st.uuids(), min_size=1, max_size=20))
def test_a_text_has_the_key_of_its_bytes(values):
    keys = id_keys([str(value) for value in values])
    assert [bytes(key).ljust(16, b"\0") for key in keys] == [value.bytes for value in values]


def test_rows_that_are_not_there(table):
    known, foreign = row(4)["id"], str(uuid.UUID(int=1))
    last = str(uuid.UUID(int=2**128 - 1))
    assert table.has([foreign, known, last]).tolist() == [False, True, False]
    assert table.has([]).tolist() == []
    with pytest.raises(DataError, match=foreign):
        table.gather([known, foreign])


@pytest.mark.parametrize("text", ["no-id", "0" * 36 + "0", "G" * 36, ":" * 36, "A" * 36])
def test_a_text_that_is_no_id_is_refused(table, text):
    with pytest.raises(DataError, match="is not an id"):
        table.has([text])


def test_a_digest_depends_on_every_token_and_where_a_row_ends():
    tokens = np.arange(10, dtype=np.int32)
    base = completion_digests(tokens, np.array([0, 4, 10]))
    assert base.shape == (2, 2)
    assert base[1].tolist() == completion_digests(tokens[4:], np.array([0, 6]))[0].tolist()
    for place in range(10):
        other = tokens.copy()
        other[place] += 1
        same = (completion_digests(other, np.array([0, 4, 10])) == base).all(axis=1)
        assert same.tolist() == [place >= 4, place < 4]
    assert (completion_digests(tokens, np.array([0, 5, 10])) != base).any(axis=1).all()


def test_without_likely_tokens_there_are_none(tmp_path):
    write(tmp_path / "t", [[range(3)]], topk=0)
    got = TeacherTable(str(tmp_path / "t")).gather([row(1)["id"]])
    assert got.topk_ids is None
    assert got.topk_logp is None


def test_a_table_without_rows(tmp_path):
    write(tmp_path / "t", [[]])
    table = TeacherTable(str(tmp_path / "t"))
    assert table.has([row(1)["id"]]).tolist() == [False]
    assert table.gather([]).logp.tolist() == []


def test_other_tables_and_double_ids_are_refused(tmp_path):
    write(tmp_path / "other", [[range(3)]], table="CORPUS")
    with pytest.raises(SchemaError, match="is a CORPUS dataset"):
        TeacherTable(str(tmp_path / "other"))
    write(tmp_path / "twice", [[range(3)], [range(2, 4)]])
    with pytest.raises(DataError, match="two rows with the id"):
        TeacherTable(str(tmp_path / "twice"))


def test_a_part_of_another_size_is_refused(tmp_path):
    write(tmp_path / "t", [[range(3)]])
    (path,) = (tmp_path / "t").glob("*.parquet")
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(DataError, match=rf"{path.name} has .* bytes, but the manifest says"):
        TeacherTable(str(tmp_path / "t"))


def changed(folder, column, values):
    """A table of two rows, the second of which (two targets) says something else."""
    rows = [row(4), {**row(5), column: values}]
    build = Build(Job(Location.of(folder), "teacher_logp", TABLE, TEACHER_LOGP, {}).with_findings(FOUND))
    plan = build.plan(range(1))
    batch = pa.RecordBatch.from_pylist(rows, TEACHER_LOGP)
    build.writer(plan).write(0, [Chunk(batch, batch.num_rows)])
    build.commit(plan)
    return TeacherTable(str(folder))


@pytest.mark.parametrize(("column", "values", "said"), [
    ("logp", [-1.0, 0.5], r"the log-probability 0\.5 in logp \(target 1 of the row\)"),
    ("logp", [float("nan"), -1.0], r"nan in logp \(target 0"),
    ("logp", [-1.0, float("-inf")], r"-inf in logp \(target 1"),
    ("logp", [float("inf"), -1.0], r"inf in logp \(target 0"),
    ("topk_logp", [-1.0, -2.0, -1.0, 0.002], r"0\.002 in topk_logp \(target 1"),
])  # fmt: skip
def test_what_is_no_log_probability_is_refused_with_its_row(tmp_path, column, values, said):
    table = changed(tmp_path / "t", column, values)
    assert table.gather([row(4)["id"]]).logp.tolist() == row(4)["logp"]
    with pytest.raises(DataError, match=rf"id {row(5)['id']}: .*{said}.* is not a finite number up to 0; rescore"):
        table.gather([row(4)["id"], row(5)["id"]])


def test_what_rounding_puts_above_0_counts_as_0(tmp_path):
    assert changed(tmp_path / "t", "logp", [0.0009, -1.0]).gather([row(5)["id"]]).logp.tolist() == [0.0, -1.0]


@given(st.lists(st.floats(width=32), min_size=2, max_size=2))
def test_only_finite_numbers_up_to_0_are_log_probabilities(values):
    with tempfile.TemporaryDirectory() as folder:
        table = changed(Path(folder) / "t", "logp", values)
        if all(np.isfinite(value) and np.float32(value) <= np.float32(LOGP_ROUNDING) for value in values):
            assert (table.gather([row(5)["id"]]).logp <= 0).all()
        else:
            with pytest.raises(DataError, match="log-probability"):
                table.gather([row(5)["id"]])


def test_an_entry_that_was_not_given_has_no_log_probability(tmp_path):
    table = changed(tmp_path / "t", "topk_ids", [3, 4, 5, -1])
    assert np.isnan(table.gather([row(5)["id"]]).topk_logp).tolist() == [[False, False], [False, True]]
