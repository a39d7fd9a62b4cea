"""The record of a run: written once, and refused with the reason when it is damaged, forged or of another format."""

import json

import pytest

from etl.errors import DataError
from etl.storage.location import Location
from etl.storage.record import RECORD, RunRecord, StageRecord, read_record, write_record
from etl.storage.sweep import find_leftovers
from etl.storage.verify import verify
from tests.etl.storage.builds import InLine, chunks_of, job

STAGE = StageRecord(label="late-dedup", kind="dedup", folders={"late-exact": "VERDICT"}, steps=("late-exact",))
TOY = RunRecord(name="toy", stages=(STAGE,), recipe={"stages": [{"kind": "dedup", "name": "late"}]})


def test_what_is_written_is_read(folder):
    assert read_record(folder / RECORD) is None
    write_record(folder, TOY)
    assert read_record(folder / RECORD) == TOY
    assert TOY.steps == ("late-exact",)


def test_it_is_written_only_where_it_differs(folder, monkeypatch):
    write_record(folder, TOY)
    monkeypatch.setattr(Location, "replace", lambda *_: pytest.fail("it was there already"))
    write_record(folder, TOY)
    monkeypatch.undo()
    other = TOY.model_copy(update={"name": "other"})
    write_record(folder, other)
    assert read_record(folder / RECORD) == other


def test_a_damaged_one_is_written_anew(folder):
    (folder / RECORD).create(b"{")
    write_record(folder, TOY)
    assert read_record(folder / RECORD) == TOY


def changed(**changes):
    return json.dumps({**TOY.model_dump(mode="json"), **changes}).encode()


OUTSIDE = "must be a path inside the folder"
BAD = {
    "half": (b'{"format":1,', "is damaged: it is not JSON"),
    "list": (b"[]", "is damaged: it is not a JSON object"),
    "empty": (b"", "is damaged: it is not JSON"),
    "newer": (changed(format=2), "has the format 2, but this version of Stillhouse reads format 1"),
    "key": (changed(owner="x"), "unknown key 'owner'"),
    "missing": (b'{"format":1,"name":"toy","recipe":{}}', "stages: is missing"),
    "up": (
        changed(stages=[STAGE.model_dump() | {"folders": {"../elsewhere": "VERDICT"}}]),
        OUTSIDE,
    ),
    "absolute": (
        changed(stages=[STAGE.model_dump() | {"folders": {"/etc": "VERDICT"}}]),
        OUTSIDE,
    ),
    "url": (
        changed(stages=[STAGE.model_dump() | {"folders": {"s3://b/x": "VERDICT"}}]),
        OUTSIDE,
    ),
    "escape": (changed(stages=[STAGE.model_dump() | {"label": "\x1b[2Jdedup"}]), OUTSIDE),
}


@pytest.mark.parametrize(("data", "told"), BAD.values(), ids=BAD)
def test_a_bad_one_is_an_error_and_a_difference(tmp_path, data, told):
    output = Location.of(tmp_path / "out")
    engine = InLine()
    engine.map(job(output / "ingest"), [[[1]]], chunks_of)
    engine.settle()
    (output / RECORD).create(data)
    with pytest.raises(DataError) as error:
        read_record(output / RECORD)
    assert told in str(error.value)
    assert "\x1b" not in str(error.value)
    assert "pydantic" not in str(error.value)
    (difference,) = verify(output)
    assert (difference.dataset, difference.path, difference.kind) == (output.url, RECORD, "changed")
    assert told in difference.detail


def test_a_good_one_is_no_difference_and_is_not_swept(tmp_path):
    output = Location.of(tmp_path / "out")
    engine = InLine()
    engine.map(job(output / "ingest"), [[[1]]], chunks_of)
    engine.settle()
    write_record(output, TOY)
    (output / f"_{RECORD}.1.tmp").create(b"half")
    assert list(verify(output)) == []
    assert [item.path for item in find_leftovers(output, 0.0, 1e12)] == [f"_{RECORD}.1.tmp"]
    assert list(verify(output / "ingest")) == []
