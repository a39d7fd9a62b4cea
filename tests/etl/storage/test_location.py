"""Create-only, atomic replacement, and the thin rest, on a local disk and in memory."""

import os
import pickle
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
    with pytest.raises(DataError, match=r"x\.parquet is gone"):
        (folder / "x.parquet").open_parquet()
