"""Each server starts, does what the tests want of it, and is gone afterwards."""

import contextlib
import os
import subprocess
import sys
import threading

import fsspec
import pytest

from etl.storage.location import Location
from tests.services.beam import beam_job_service
from tests.services.gcs import gcs_server
from tests.services.latelist import late_listing
from tests.services.process import free_ports, is_listening, running
from tests.services.proxy import Fault, Harm, fault_proxy, operation_of
from tests.services.s3 import S3


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def no_retries(server: S3):
    """A client that shows each fault, and gives up on an answer after a second."""
    config = {"retries": {"max_attempts": 0}, "read_timeout": 1}
    store = fsspec.filesystem(
        "s3", **server.options, config_kwargs=config, use_listings_cache=False, skip_instance_cache=True
    )
    store.retries = 1
    return store


def test_s3_keeps_objects_and_knows_its_users(s3):
    bucket = s3.bucket("kept")
    store = s3.file_system()
    store.pipe_file(f"{bucket}/a/b", b"12345")
    assert store.cat_file(f"{bucket}/a/b") == b"12345"
    assert store.find(bucket) == ["kept/a/b"]
    with pytest.raises(PermissionError):
        S3(s3.endpoint_url, secret="wrong").file_system().cat_file(f"{bucket}/a/b")


def test_s3_creates_an_object_once(s3):
    """One of 8 conditional PUTs of one name wins."""
    bucket = s3.bucket("once")
    store = s3.file_system()
    won = []

    def create(number):
        with contextlib.suppress(OSError):
            store.pipe_file(f"{bucket}/name", b"%d" % number, mode="create")
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [b"%d" % number for number in won] == [store.cat_file(f"{bucket}/name")]


def test_gcs_keeps_objects(tmp_path):
    with gcs_server(tmp_path) as server:
        place = Location.of(f"{server.bucket('kept')}/a/b", server.options)
        place.replace(b"12345")
        assert place.read() == b"12345"
        assert [path for path, _ in Location.of("gs://kept/a", server.options).walk()] == ["b"]
    assert not is_listening(port_of(server.endpoint_url))


@pytest.mark.slow
def test_beam_job_service_answers(tmp_path):
    with beam_job_service(tmp_path) as endpoint:
        assert is_listening(port_of(endpoint))
    assert not is_listening(port_of(endpoint))


def test_operations():
    assert operation_of("GET", "/b/key?x-id=GetObject") == "GET"
    assert operation_of("GET", "/b?list-type=2&prefix=a%2F") == "LIST"
    assert operation_of("POST", "/b?delete") == "DELETE"
    assert operation_of("POST", "/b/key?uploads") == "POST"


def test_a_proxy_passes_requests_on(s3):
    bucket = s3.bucket("passed")
    with fault_proxy(s3.endpoint_url) as proxy:
        store = s3.at(proxy.url).file_system()
        store.pipe_file(f"{bucket}/a", b"x" * 70_000)
        assert store.cat_file(f"{bucket}/a") == b"x" * 70_000
        assert store.info(f"{bucket}/a")["size"] == 70_000
        store.rm_file(f"{bucket}/a")
        assert not store.exists(f"{bucket}/a")
        assert {operation for operation, _ in proxy.seen} >= {"PUT", "GET", "HEAD", "DELETE"}
        assert proxy.fired == []
    assert not is_listening(port_of(proxy.url))


@pytest.mark.parametrize("harm", Harm)
def test_a_proxy_harms_the_request_that_a_rule_names(s3, harm):
    bucket = s3.bucket("harmed")
    s3.file_system().pipe_file(f"{bucket}/a", b"old")
    # aiohttp itself sends a request again when a connection that it had used before was reset, hence twice.
    with fault_proxy(s3.endpoint_url, [Fault(harm, "PUT", "/a", nth=2, times=2)]) as proxy:
        store = no_retries(s3.at(proxy.url))
        store.pipe_file(f"{bucket}/a", b"first")
        with pytest.raises(Exception, match=r".+"):
            store.pipe_file(f"{bucket}/a", b"second")
        assert 1 <= len(proxy.fired) <= 2
        assert store.cat_file(f"{bucket}/a") == (b"second" if harm is Harm.RESET_AFTER else b"first")


def test_a_late_listing_store(tmp_path):
    folder = late_listing(tmp_path / "store", "data", lag=5)
    assert (folder / "a").create(b"1")
    assert not (folder / "a").create(b"2")
    assert (folder / "a").read() == b"1"
    assert list(folder.walk()) == []
    folder.fs.settle()
    assert list(folder.walk()) == [("a", 1)]
    (folder / "a").remove()
    assert not (folder / "a").exists()
    assert list(folder.walk()) == [("a", 1)]
    folder.fs.settle()
    assert list(folder.walk()) == []


def test_a_server_that_ends_early_is_told(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no luck')"]
    with pytest.raises(RuntimeError, match="no luck"), running(command, tmp_path / "log", lambda: False):
        raise AssertionError("it never ran")


def test_a_server_is_stopped_when_the_test_fails(tmp_path):
    (port,) = free_ports(1)
    code = f"import socket; s = socket.create_server(('127.0.0.1', {port})); s.accept()"
    with (
        pytest.raises(ZeroDivisionError),
        running([sys.executable, "-c", code], tmp_path / "log", lambda: is_listening(port)) as process,
    ):
        raise ZeroDivisionError
    assert isinstance(process, subprocess.Popen)
    assert process.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
