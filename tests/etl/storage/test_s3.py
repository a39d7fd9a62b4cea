"""Everything that commits rest on, on a real S3 server: conditions, faults, pieces, locks, errors, secrets."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.errors import ConfigError, DataError, SourceError
from etl.run.run import run_recipe
from etl.storage import location, retry
from etl.storage.location import Location
from etl.storage.lock import LOCK, Holder, RunLock
from etl.storage.manifest import to_json
from etl.storage.sweep import find_leftovers, remove_leftovers
from etl.storage.verify import verify
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.toys import FILTER, make_recipe, mixed_rows, write_jsonl, write_parquet
from tests.etl.storage.builds import InLine, chunks_of, job
from tests.etl.storage.races import race_for_locks
from tests.etl.storage.stores import (
    check_create_never_overwrites,
    check_lock_is_told_when_it_is_lost,
    check_read_sees_one_version,
    check_stale_is_found_and_swept,
)
from tests.services.proxy import Fault, Harm, fault_proxy

ONE_TRY = {"config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 1}, "read_timeout": 1}}
"""No tries of botocore's own, so that a test sees ours."""


@pytest.fixture(scope="module")
def server(s3):
    s3.bucket("tests")
    return s3


@pytest.fixture(scope="module")
def proxy(server):
    with fault_proxy(server.endpoint_url) as between:
        yield between


@pytest.fixture
def folder(server, request):
    place = Location.of(f"s3://tests/{request.node.name.replace('[', '-').strip(']')}", server.options)
    yield place
    place.remove_tree()


@pytest.fixture
def faulty(proxy, folder, monkeypatch):
    """The same folder through the proxy, with short waits."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    proxy.arm([])
    yield Location(folder.url, {**folder.options, **ONE_TRY, "endpoint_url": proxy.url})
    proxy.arm([])


def test_create_never_overwrites(folder):
    check_create_never_overwrites(folder)


def test_one_of_many_wins_a_race(folder):
    # SeaweedFS makes those that meet wait for a second or two.
    start = threading.Barrier(4)

    def race(runner: int) -> list[bool]:
        won = []
        for lap in range(5):
            start.wait()
            won.append((folder / f"{lap}").create(f"{runner}".encode() * 1000))
        return won

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(race, range(4)))
    for lap in range(5):
        (winner,) = [runner for runner in range(4) if outcomes[runner][lap]]
        assert (folder / f"{lap}").read() == f"{winner}".encode() * 1000


def test_nothing_stale_is_read(folder):
    assert list(folder.walk()) == []
    assert (folder / "one").size() is None
    (folder / "one").replace(b"1")
    assert (folder / "one").size() == 1
    Location.of(folder.url, {**folder.options, "skip_instance_cache": True}).remove_tree()
    assert (folder / "one").size() is None
    assert list(folder.walk()) == []
    assert not (folder / "one").exists()


def test_a_prefix_is_no_folder(folder):
    for name in ("a/x", "ab/y", "a.z"):
        (folder / name).create(b"")
    assert [path for path, _ in (folder / "a").walk()] == ["x"]
    (folder / "a").remove_tree()
    assert [path for path, _ in folder.walk()] == ["a.z", "ab/y"]


def test_clearing_keeps_what_it_is_told_to(folder):
    for name in ("_plan.json", "_closed/b", "part", "_receipts/b/0"):
        (folder / name).create(b"x")
    folder.remove_children(keep=("_plan.json", "_closed"))
    assert [path for path, _ in folder.walk()] == ["_closed/b", "_plan.json"]


DOINGS = {
    "PUT create": ("PUT", lambda place: place.create(b"new")),
    "PUT replace": ("PUT", lambda place: place.replace(b"new")),
    "GET read": ("GET", lambda place: (place.parent / "old").read()),
    "GET open": ("GET", lambda place: (place.parent / "old").open().read()),
    "HEAD size": ("HEAD", lambda place: (place.parent / "old").size()),
    "LIST walk": ("LIST", lambda place: list(place.parent.walk())),
    "DELETE remove": ("DELETE", lambda place: (place.parent / "old").remove()),
}


class Place(Location):
    """An object that knows its folder."""

    @property
    def parent(self) -> Location:
        return Location(self.url.rpartition("/")[0], self.options)


@pytest.mark.parametrize("doing", DOINGS)
@pytest.mark.parametrize("harm", [Harm.SLOW_DOWN, Harm.RESET_BEFORE, Harm.RESET_AFTER])
def test_faults_that_pass_are_lived_through(folder, faulty, proxy, doing, harm):
    operation, do = DOINGS[doing]
    (folder / "old").replace(b"old")
    expected = {"PUT create": True, "GET read": b"old", "GET open": b"old", "HEAD size": 3, "LIST walk": [("old", 3)]}
    # A bound connection, so that the faults meet the operation and not the first contact.
    faulty.exists()
    proxy.arm([Fault(harm, operation, times=4)])
    assert do(Place(f"{faulty.url}/new", faulty.options)) == expected.get(doing)
    assert len(proxy.fired) == 4
    left = dict(folder.walk())
    assert left == {"DELETE remove": {}, "PUT create": {"new": 3, "old": 3}, "PUT replace": {"new": 3, "old": 3}}.get(
        doing, {"old": 3}
    )


@pytest.mark.parametrize("doing", ["PUT create", "GET read", "LIST walk"])
def test_a_server_that_does_not_answer_is_asked_again(folder, faulty, proxy, doing):
    operation, do = DOINGS[doing]
    (folder / "old").replace(b"old")
    faulty.exists()
    proxy.arm([Fault(Harm.NO_ANSWER, operation, times=2)])
    assert do(Place(f"{faulty.url}/new", faulty.options)) in (True, b"old", [("old", 3)])
    assert len(proxy.fired) == 2


def test_a_create_whose_answer_was_lost_is_known_by_its_bytes(folder, faulty, proxy):
    proxy.arm([Fault(Harm.RESET_AFTER, "PUT")])
    assert (faulty / "mine").create(b"mine")
    (folder / "theirs").create(b"theirs")
    proxy.arm([Fault(Harm.RESET_BEFORE, "PUT")])
    assert not (faulty / "theirs").create(b"mine")
    assert (folder / "theirs").read() == b"theirs"


def test_a_store_that_stays_busy_is_told(faulty, proxy, monkeypatch):
    monkeypatch.setattr(retry, "BUDGET_S", 0.3)
    faulty.exists()
    proxy.arm([Fault(Harm.SLOW_DOWN, "PUT", times=10**6)])
    with pytest.raises(DataError, match=r"cannot write s3://tests/.*/x: the store still fails after .*run again later"):
        (faulty / "x").replace(b"x")
    assert len(proxy.fired) >= 2


@pytest.fixture
def big(tmp_path, monkeypatch):
    """A file of three pieces."""
    monkeypatch.setattr(location, "_UPLOAD", {"s3": {"chunksize": 5 << 20, "max_concurrency": 2}})
    file = tmp_path / "big"
    file.write_bytes(os.urandom(11 << 20))
    return file


def test_a_large_file_goes_in_pieces(folder, faulty, proxy, big):
    proxy.arm([Fault(Harm.SLOW_DOWN, "PUT", "partNumber=2"), Fault(Harm.RESET_AFTER, "POST", "uploadId=")])
    (faulty / "big").upload(big)
    assert len(proxy.fired) == 2
    assert sum("partNumber=" in target for operation, target in proxy.seen) >= 3
    assert folder.ask("read", (folder / "big").read) == big.read_bytes()
    with (folder / "big").open() as file:
        assert file.read() == big.read_bytes()


def test_pieces_that_fail_leave_nothing(folder, faulty, proxy, big, monkeypatch):
    monkeypatch.setattr(retry, "BUDGET_S", 0.3)
    faulty.exists()
    proxy.arm([Fault(Harm.SLOW_DOWN, "PUT", "partNumber=3", times=10**6)])
    with pytest.raises(DataError, match="still fails"):
        (faulty / "big").upload(big)
    assert not (folder / "big").exists()
    assert find_leftovers(folder, 0, time.time() + 10) == []


def test_an_upload_that_a_kill_has_cut_off_is_swept(folder):
    bucket, key, _ = folder.fs.split_path(folder.path)
    for name in ("part", "deep/part"):
        folder.fs.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{key}/{name}")
    assert find_leftovers(folder, 3600, time.time()) == []
    found = find_leftovers(folder, 0, time.time() + 10)
    assert [(item.path, item.why) for item in found] == [
        ("deep/part", "an upload that was never finished"),
        ("part", "an upload that was never finished"),
    ]
    remove_leftovers(folder, found)
    assert find_leftovers(folder, 0, time.time() + 10) == []


def test_a_read_sees_one_version(folder):
    check_read_sees_one_version(folder)


def test_parquet_of_one_version(folder, tmp_path):
    pq.write_table(pa.table({"n": list(range(100_000))}), tmp_path / "x", row_group_size=10_000)
    (folder / "x.parquet").upload(tmp_path / "x")
    stamp = (folder / "x.parquet").stamp()
    with (folder / "x.parquet").open_parquet(stamp) as file:
        assert file.read()["n"].to_pylist() == list(range(100_000))
    with (folder / "x.parquet").open_parquet(stamp) as file:
        (folder / "x.parquet").replace((tmp_path / "x").read_bytes() + b" ")
        with pytest.raises(SourceError, match="changed while it was read"):
            file.read()
    with pytest.raises(SourceError, match="changed while it was read"):
        (folder / "x.parquet").open_parquet(stamp)


def closed_port() -> str:
    return "http://127.0.0.1:1"


ACCESS = {
    "a wrong secret": ({"secret": "wrong-XYZ"}, ConfigError, "does not accept the credentials"),
    "a wrong key": ({"key": "NOPE"}, ConfigError, "does not accept the credentials"),
    "no server": ({"endpoint_url": closed_port()}, ConfigError, "cannot be reached"),
    "no address": ({"endpoint_url": "127.0.0.1:1"}, ConfigError, "check the options under"),
    "a wrong option": ({"endpoint": "x"}, ConfigError, "check the options under"),
}


@pytest.mark.parametrize("mistake", ACCESS)
def test_a_mistake_is_told_before_work_begins(server, folder, monkeypatch, mistake):
    monkeypatch.setattr(retry, "FIRST_CONTACT_S", 0.1)
    changes, kind, text = ACCESS[mistake]
    options = {**folder.options, **ONE_TRY, **changes}
    with pytest.raises(kind, match=text) as raised, RunLock(Location(folder.url, options)):
        raise AssertionError("work has begun")
    assert str(raised.value).startswith(folder.url)
    assert server.secret not in str(raised.value)
    assert "wrong-XYZ" not in str(raised.value)


def test_a_missing_bucket_is_told_and_not_made(server):
    place = Location.of("s3://no-such-bucket/out", server.options)
    for look in (RunLock(place).__enter__, lambda: list(verify(place)), lambda: find_leftovers(place, 0, time.time())):
        with pytest.raises(ConfigError, match=r"s3://no-such-bucket/out: there is no bucket 'no-such-bucket'; create"):
            look()
    recipe = make_recipe("s3://tests/x", {"toy": "s3://no-such-bucket/*.jsonl"}, storage={"s3": server.options})
    with pytest.raises(ConfigError, match="there is no bucket 'no-such-bucket'"):
        run_recipe(recipe, InProcessEngine(), lambda line: None)
    assert not server.file_system().exists("no-such-bucket")
    assert list(Location.of("s3://tests/x", server.options).walk()) == []


def test_of_two_processes_that_start_at_once_one_gets_the_lock(folder):
    folders = [folder / str(lap) for lap in range(8)]
    dead = Holder.me().model_copy(update={"started": "1"})
    for place in folders[::2]:
        (place / LOCK).create(to_json(dead))
    assert race_for_locks(folders) == [Counter(held=1, refused=1)] * len(folders)
    assert list(folder.walk()) == []


def test_a_lock_is_told_when_it_is_lost(folder):
    check_lock_is_told_when_it_is_lost(folder)


def test_stale_is_found_and_swept(folder):
    check_stale_is_found_and_swept(folder)


def test_a_dataset_is_verified_and_swept(folder):
    engine = InLine()
    engine.map(job(folder / "toy"), [[[1, 2], [3]], [[4]]], chunks_of)
    engine.settle()
    assert list(verify(folder)) == []
    first, second = [path for path, _ in (folder / "toy").walk() if not path.startswith("_")]
    data = (folder / "toy" / first).read()
    (folder / "toy" / first).replace(data[:40] + b"!" + data[41:])
    (folder / "toy" / second).remove()
    (folder / "toy/stray").create(b"x")
    assert [(item.kind, item.path) for item in verify(folder)] == [
        ("changed", first),
        ("missing", second),
        ("orphan", "toy/stray".partition("/")[2]),
    ]
    remove_leftovers(folder, find_leftovers(folder, 0, time.time() + 10))
    assert [item.kind for item in verify(folder)] == ["changed", "missing"]


def test_a_recipe_reads_and_writes_s3_and_leaves_no_secret(server, folder, tmp_path, capfd):
    rows = mixed_rows(45)
    for name, write in (("a.jsonl", write_jsonl), ("b.parquet", write_parquet), ("c.jsonl", write_jsonl)):
        (folder / "in" / name).upload(write(tmp_path / name, rows[:30] if name[0] == "a" else rows[30:]))
    sections = {"stages": ["filter", "tokenize", "layout"], "filter": FILTER}
    lines: list[str] = []
    results = [
        run_recipe(recipe, InProcessEngine(), lines.append)
        for recipe in (
            make_recipe(
                f"{folder.url}/out",
                {"toy": f"s3a{folder.url[2:]}/in/[ab].*"},
                storage={"s3": server.options},
                **sections,
            ),
            make_recipe(tmp_path / "out", {"toy": tmp_path / "[ab].*"}, **sections),
        )
    ]
    digests = [result.corpus.manifest.content_digest for result in results]
    assert digests[0] == digests[1]
    assert list(verify(folder / "out")) == []
    written = b"".join((folder / "out" / path).read() for path, _ in (folder / "out").walk())
    assert len(written) > 10_000
    printed = "".join(capfd.readouterr()) + "".join(lines)
    assert server.secret.encode() not in written
    assert server.secret not in printed


def test_an_input_that_changes_after_the_plan_is_told(server, folder, tmp_path):
    (folder / "in/a.jsonl").upload(write_jsonl(tmp_path / "a.jsonl", mixed_rows(30)))

    class Meddler(InProcessEngine):
        def start(self, title: str, number: int) -> None:
            (folder / "in/a.jsonl").upload(write_jsonl(tmp_path / "a.jsonl", mixed_rows(30, seed=1)))

    recipe = make_recipe(f"{folder.url}/out", {"toy": f"{folder.url}/in"}, storage={"s3": server.options})
    with pytest.raises(SourceError, match=r"a\.jsonl changed while it was read"):
        run_recipe(recipe, Meddler(), lambda line: None)
    assert not (folder / "out/ingest/_manifest.json").exists()
    assert not (folder / "out" / LOCK).exists()


@pytest.mark.parametrize("chain", ["aws", "fsspec"])
def test_tools_find_endpoint_and_credentials_in_the_environment(server, folder, chain):
    engine = InLine()
    engine.map(job(folder / "toy"), [[[1]]], chunks_of)
    engine.settle()
    (folder / "toy/stray").create(b"x")
    names = {
        "aws": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"),
        "fsspec": ("FSSPEC_S3_KEY", "FSSPEC_S3_SECRET", "FSSPEC_S3_ENDPOINT_URL"),
    }
    given = dict(zip(names[chain], (server.key, server.secret, server.endpoint_url), strict=True))
    command = [sys.executable, "-m", "jobs.cli", "sweep", folder.url, "--older-than", "0s", "--delete"]
    done = subprocess.run(command, env=os.environ | given, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "toy/stray: no manifest names it" in done.stdout
    assert "1 leftover, 1 bytes: removed" in done.stdout
    assert server.secret not in done.stdout + done.stderr
    assert list(verify(folder)) == []
