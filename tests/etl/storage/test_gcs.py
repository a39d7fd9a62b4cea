"""What commits rest on, on a GCS emulator: conditional writes, one version a read, locks, errors."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from etl.errors import ConfigError
from etl.run.run import run_recipe
from etl.storage.location import Location
from etl.storage.lock import RunLock
from etl.storage.sweep import find_leftovers, remove_leftovers
from etl.storage.verify import verify
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.toys import make_recipe, mixed_rows, write_jsonl
from tests.etl.storage.stores import (
    check_create_never_overwrites,
    check_lock_is_told_when_it_is_lost,
    check_read_sees_one_version,
    check_stale_is_found_and_swept,
)
from tests.services.gcs import gcs_server

# gcsfs hands aiohttp bodies of more than 1 MB as bytes.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with gcs_server(tmp_path_factory.mktemp("gcs")) as running:
        running.bucket("tests")
        yield running


@pytest.fixture
def folder(server, request):
    place = Location.of(f"gs://tests/{request.node.name}", server.options)
    yield place
    place.remove_tree()


def test_create_never_overwrites(folder):
    check_create_never_overwrites(folder)


def test_a_read_sees_one_version(folder):
    check_read_sees_one_version(folder)


def test_a_lock_is_told_when_it_is_lost(folder):
    check_lock_is_told_when_it_is_lost(folder)


def test_stale_is_found_and_swept(folder):
    check_stale_is_found_and_swept(folder)


def test_one_of_many_wins_a_race(folder):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda runner: (folder / "one").create(f"{runner}".encode() * 1000), range(8)))
    assert (folder / "one").read() == f"{won.index(True)}".encode() * 1000
    assert sum(won) == 1


def test_a_large_file_goes_in_pieces(folder, tmp_path):
    data = bytes(range(256)) * (80 << 10)
    (tmp_path / "big").write_bytes(data)
    (folder / "big").upload(tmp_path / "big")
    with (folder / "big").open() as file:
        assert file.read() == data


def test_a_missing_bucket_is_told(server):
    place = Location.of("gs://no-such-bucket/out", server.options)
    looks = (
        RunLock(place).__enter__,
        lambda: list(verify(place)),
        lambda: place.replace(b""),
        lambda: place.create(b""),
    )
    for look in looks:
        with pytest.raises(ConfigError, match=r"gs://no-such-bucket/out: there is no bucket 'no-such-bucket'; create"):
            look()


def test_a_recipe_reads_and_writes_gcs(server, folder, tmp_path):
    (folder / "in/a.jsonl").upload(write_jsonl(tmp_path / "a.jsonl", mixed_rows(40)))
    storage = {"gcs": server.options}
    digests = [
        run_recipe(recipe, InProcessEngine(), lambda line: None).rows.base.result().manifest.content_digest
        for recipe in (
            make_recipe(f"{folder.url}/out", {"toy": f"{folder.url}/in"}, storage=storage),
            make_recipe(tmp_path / "out", {"toy": tmp_path / "a.jsonl"}),
        )
    ]
    assert digests[0] == digests[1]
    (folder / "out/ingest/stray").create(b"x")
    assert [item.kind for item in verify(folder / "out")] == ["orphan"]
    remove_leftovers(folder, find_leftovers(folder, 0, time.time() + 10))
    assert list(verify(folder / "out")) == []
