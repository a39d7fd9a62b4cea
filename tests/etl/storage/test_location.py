"""Create-only writes, atomic replacement, and what little else there is, on a local disk and in memory."""

import errno
import io
import os
import pickle
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.errors import DataError, SourceError
from etl.storage import location
from etl.storage.location import Location


def files_below(folder: Location) -> list[str]:
    return [path for path, _ in folder.walk()]


def test_create_never_overwrites(folder):
    assert (folder / "deep/one.json").create(b"first")
    assert not (folder / "deep/one.json").create(b"second")
    assert (folder / "deep/one.json").read() == b"first"
    assert files_below(folder) == ["deep/one.json"]


def test_replace_overwrites(folder):
    (folder / "one").replace(b"first")
    (folder / "one").replace(b"2")
    assert (folder / "one").read() == b"2"
    assert files_below(folder) == ["one"]


def test_upload_copies_a_local_file(folder, tmp_path):
    (tmp_path / "made").write_bytes(b"x" * 100_000)
    (folder / "a/b/part").upload(tmp_path / "made")
    assert list(folder.walk()) == [("a/b/part", 100_000)]
    with (folder / "a/b/part").open() as file:
        assert file.read() == b"x" * 100_000
    assert (tmp_path / "made").exists()


def test_a_file_that_is_taken_is_there_whole_and_no_longer_needed(folder, tmp_path):
    (tmp_path / "made").write_bytes(b"x" * 100_000)
    (folder / "a/b/part").take(tmp_path / "made")
    assert list(folder.walk()) == [("a/b/part", 100_000)]
    with (folder / "a/b/part").open() as file:
        assert file.read() == b"x" * 100_000


def test_removing_is_no_error_when_there_is_nothing(folder):
    (folder / "none").remove()
    folder.remove_tree()
    assert list(folder.walk()) == []
    (folder / "a/b").create(b"")
    (folder / "a").remove_tree()
    assert not (folder / "a/b").exists()


def test_walk_is_sorted_and_relative(folder):
    for name in ("b", "a/z", "a/b/c", "_x"):
        (folder / name).create(name.encode())
    assert list(folder.walk()) == [("_x", 2), ("a/b/c", 5), ("a/z", 3), ("b", 1)]
    assert list((folder / "a").walk()) == [("b/c", 5), ("z", 3)]


def test_reading_what_is_not_there(folder):
    with pytest.raises(FileNotFoundError):
        (folder / "none").read()


def test_one_of_two_threads_wins_a_race(tmp_path):
    place = Location.of(tmp_path)
    start = threading.Barrier(2)
    won: dict[tuple[int, int], bool] = {}

    def race(runner: int) -> None:
        for lap in range(50):
            start.wait()
            won[lap, runner] = (place / f"{lap}").create(f"{runner}".encode() * 1000)

    runners = [threading.Thread(target=race, args=(runner,)) for runner in range(2)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    for lap in range(50):
        (winner,) = [runner for runner in range(2) if won[lap, runner]]
        assert (place / f"{lap}").read() == f"{winner}".encode() * 1000
    assert len(files_below(place)) == 50


class Killed(BaseException):
    """What no code catches."""


def kill(*_):
    raise Killed


@pytest.mark.parametrize(
    ("last_call", "write"),
    [
        ("os.link", lambda place, _: place.create(b"new")),
        ("os.replace", lambda place, _: place.replace(b"new")),
        ("os.replace", lambda place, made: place.upload(made)),
        ("shutil.copyfile", lambda place, made: place.upload(made)),
    ],
)
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_write_that_does_not_end_shows_nothing(tmp_path, monkeypatch, last_call, write, before):
    (tmp_path / "made").write_bytes(b"new")
    place = Location.of(tmp_path / "data/object")
    if before is not None:
        place.replace(before)
    module, name = last_call.split(".")
    monkeypatch.setattr(getattr(location, module), name, kill)
    with pytest.raises(Killed):
        write(place, tmp_path / "made")
    assert files_below(Location.of(tmp_path / "data")) == ([] if before is None else ["object"])
    assert before is None or place.read() == before


def test_unfinished_files_have_a_name_that_readers_of_datasets_skip(tmp_path, monkeypatch):
    seen = []
    link = os.link
    monkeypatch.setattr(location.os, "link", lambda old, new: (seen.append(Path(old).name), link(old, new)))
    Location.of(tmp_path / "data/part.parquet").create(b"x")
    assert all(name.startswith("_") and not name.endswith(".parquet") for name in seen)
    assert len(seen) == 1


def test_replacing_is_atomic_to_a_reader(tmp_path):
    place = Location.of(tmp_path / "object")
    contents = {bytes([byte]) * 200_000 for byte in b"ab"}
    place.replace(b"a" * 200_000)
    done = threading.Event()

    def swap() -> None:
        for lap in range(60):
            place.replace(b"ab"[lap % 2 : lap % 2 + 1] * 200_000)
        done.set()

    writer = threading.Thread(target=swap)
    writer.start()
    while not done.is_set():
        assert place.read() in contents
    writer.join()


def test_what_a_user_wrote_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Location.of("out/").url == f"{tmp_path}/out"
    assert Location.of(Path("out")).url == f"{tmp_path}/out"
    assert Location.of("~/out").url == f"{tmp_path}/home/out"
    assert Location.of("s3://bucket/key/").url == "s3://bucket/key"
    place = Location.of("out", {"anon": True})
    assert Location.of(place) is place
    assert str(place / "a/b") == f"{tmp_path}/out/a/b"
    assert (place / "a/b").name == "b"
    assert (place / "a/b").options == {"anon": True}


def test_pickles_to_url_and_options(folder):
    (folder / "one").create(b"1")
    data = pickle.dumps(folder / "one")
    assert len(data) < 300
    again = pickle.loads(data)
    assert again == folder / "one"
    assert again.read() == b"1"


def test_options_are_not_shown():
    assert "hush" not in repr(Location.of("s3://bucket", {"secret": "hush"}))


@pytest.mark.parametrize("write", ["create", "replace", "upload"])
def test_a_disk_that_is_full_leaves_nothing(tmp_path, monkeypatch, write):
    (tmp_path / "made").write_bytes(b"new")
    place = Location.of(tmp_path / "data/object")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(location.shutil, "copyfile", full)
    with pytest.raises(DataError, match=r"no space to write .*/object .*free some and run again"):
        getattr(place, write)(tmp_path / "made" if write == "upload" else b"new")
    assert files_below(Location.of(tmp_path / "data")) == []


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    def refuses(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "/data")

    monkeypatch.setattr(Path, "mkdir", refuses)
    with pytest.raises(
        DataError, match=r"no permission to write .*/a \(.*Permission denied.*\); give user \d+ permission"
    ):
        Location.of(tmp_path / "a").create(b"")


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "data").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot write .*/data/object"):
        Location.of(tmp_path / "data/object").create(b"")
    with pytest.raises(NotADirectoryError):
        Location.of(tmp_path / "data/object").read()


def test_a_link_whose_answer_was_lost_is_ours(tmp_path, monkeypatch):
    link = os.link

    def forgets(old, new):
        link(old, new)
        raise FileExistsError(new)

    monkeypatch.setattr(location.os, "link", forgets)
    assert Location.of(tmp_path / "object").create(b"x")
    assert files_below(Location.of(tmp_path)) == ["object"]


@pytest.mark.parametrize("single_writer", [False, True])
def test_a_store_that_renames_files_into_place(monkeypatch, tmp_path, folder, single_writer):
    monkeypatch.setattr(location, "_RENAMING", frozenset({"memory"}))
    place = Location(folder.url, single_writer=single_writer)
    (tmp_path / "made").write_bytes(b"made")
    assert (place / "a/b").create(b"first")
    assert not (place / "a/b").create(b"second")
    (place / "a/b").replace(b"third")
    (place / "a/c").upload(tmp_path / "made")
    assert {path: (place / path).read() for path in files_below(place)} == {"a/b": b"third", "a/c": b"made"}


def test_a_single_writer_still_never_overwrites(folder):
    place = Location(folder.url, single_writer=True) / "object"
    assert place.single_writer
    assert place.create(b"first")
    assert not place.create(b"second")
    assert pickle.loads(pickle.dumps(place)).single_writer


def test_an_object_of_the_same_bytes_is_ours_on_a_store(folder):
    (folder / "object").create(b"first")
    assert (folder / "object").create(b"first") is not folder.is_local


def test_a_file_is_read_as_it_was_planned(folder):
    place = folder / "object"
    place.create(b"abc\ndef\n")
    stamp = place.stamp()
    if not folder.is_local:
        assert stamp == ""
        return
    with place.open(stamp) as file:
        assert file.readlines() == [b"abc\n", b"def\n"]
    os.utime(place.path, ns=(1, 1))
    for read in (place.open, place.open_parquet):
        with pytest.raises(SourceError, match="object changed while it was read"):
            read(stamp)


@settings(max_examples=50)
@given(st.binary(max_size=60), st.lists(st.tuples(st.integers(-5, 70), st.integers(-1, 70)), max_size=8))
def test_reading_a_store_piece_by_piece_is_reading_a_file(data, moves):
    place = Location.of("memory://pieces/object")
    place.replace(data)
    expected = io.BytesIO(data)
    with place.open() as file:
        for offset, size in moves:
            whence = io.SEEK_END if offset < 0 else io.SEEK_SET
            offset = max(offset, -len(data))
            assert file.seek(offset, whence) == expected.seek(offset, whence)
            assert file.read(size) == expected.read(size)
            assert file.readline() == expected.readline()


def test_entries_tell_when_objects_were_written(folder):
    (folder / "a/b").create(b"123")
    (entry,) = folder.entries()
    assert (entry.path, entry.bytes) == ("a/b", 3)
    assert entry.modified_unix_s is not None
    assert abs(entry.modified_unix_s - time.time()) < 60


@pytest.fixture
def parquet_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"n": list(range(1000))}), sink)
    return sink.getvalue().to_pybytes()


def test_open_parquet(folder, parquet_bytes):
    (folder / "x.parquet").create(parquet_bytes)
    with (folder / "x.parquet").open_parquet() as file:
        assert file.read()["n"].to_pylist() == list(range(1000))


@pytest.mark.parametrize("size", [0, 3, 11, 500, -1])
def test_a_damaged_parquet_file_is_a_source_error(folder, parquet_bytes, size):
    (folder / "x.parquet").create(parquet_bytes[:size])
    with pytest.raises(SourceError, match=r"x\.parquet is not a readable Parquet file"):
        (folder / "x.parquet").open_parquet()


def test_a_missing_parquet_file_is_a_data_error(folder):
    with pytest.raises(DataError, match=r"x\.parquet is missing"):
        (folder / "x.parquet").open_parquet()
