"""What commits rest on, the same on every remote store: conditional writes, one version a read, locks."""

import time

import pyarrow as pa
import pytest

from etl.errors import DataError, SourceError
from etl.storage.location import Location
from etl.storage.lock import LOCK, RunLock, live_holder
from etl.storage.opened import Run
from etl.storage.record import RunRecord, StageRecord, write_record
from etl.storage.stale import stale_below
from etl.storage.sweep import find_stale, remove_leftovers
from tests.datasets import write_dataset


def check_create_never_overwrites(folder: Location) -> None:
    place = folder / "deep/one.json"
    assert place.create(b"first")
    assert not place.create(b"second")
    assert place.create(b"first")
    assert place.read() == b"first"
    place.replace(b"third")
    (entry,) = folder.entries()
    assert (entry.path, entry.bytes) == ("deep/one.json", 5)
    assert entry.modified_unix_s is not None
    assert abs(entry.modified_unix_s - time.time()) < 600
    place.remove()
    place.remove()
    assert place.size() is None


def check_read_sees_one_version(folder: Location) -> None:
    place = folder / "object"
    place.replace(b"a" * (9 << 20))
    stamp = place.stamp()
    with place.open(stamp) as file:
        assert file.read(4) == b"aaaa"
        place.replace(b"b" * (9 << 20))
        with pytest.raises(SourceError, match="object changed while it was read"):
            file.read()
    with pytest.raises(SourceError, match="object changed while it was read"):
        place.open(stamp)


def check_lock_is_told_when_it_is_lost(folder: Location) -> None:
    with RunLock(folder) as lock:
        with pytest.raises(DataError, match="is held by process"), RunLock(folder):
            pass
        lock.check()
        assert live_holder(folder) is not None
        (folder / LOCK).remove()
        with pytest.raises(DataError, match="no longer holds"):
            lock.check()
    assert list(folder.walk()) == []


def check_stale_is_found_and_swept(folder: Location) -> None:
    """What no stage of the record owns, at both depths, and nothing else of the output."""
    for name in ("ingest", "near", "rounds/near-0", "inner/near"):
        write_dataset(folder / name, name, "WORDS", {"": pa.table({"word": ["a"]})})
    stage = StageRecord(label="ingest", kind="ingest", folders={"ingest": "PROMPT"})
    for output in (folder, folder / "inner"):
        write_record(output, RunRecord(name="toy", stages=(stage,), recipe={}))
    assert stale_below(Run.open(folder)) == ("near", "rounds/near-0")
    remove_leftovers(folder, find_stale(folder, time.time()))
    assert Run.open(folder).committed == ("ingest", "inner/near")
    assert stale_below(Run.open(folder)) == ()
