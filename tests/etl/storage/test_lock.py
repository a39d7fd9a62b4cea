"""One run at a time: refused, given back, taken over from the dead."""

import json
import os
import socket
import subprocess
import threading
import time

import pytest

from etl.errors import DataError
from etl.storage import lock
from etl.storage.location import Location
from etl.storage.lock import LOCK, STALE_S, RunLock


def held_by(folder: Location, **changes) -> None:
    """A lock that someone has left: this process, a moment ago, unless told otherwise."""
    holder = {"run": "r", "host": socket.gethostname(), "pid": os.getpid(), "beat_unix_s": time.time()} | changes
    (folder / LOCK).create(json.dumps(holder).encode())


def holder(folder: Location) -> dict:
    return json.loads((folder / LOCK).read())


@pytest.fixture(scope="module")
def dead_pid():
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_lock_says_who_holds_it_and_goes_on_exit(folder):
    with RunLock(folder):
        assert {name: holder(folder)[name] for name in ("pid", "host")} == {
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
    assert not (folder / LOCK).exists()
    with RunLock(folder):
        pass


def test_a_lock_goes_when_the_run_fails(folder):
    with pytest.raises(ZeroDivisionError), RunLock(folder):
        raise ZeroDivisionError
    assert not (folder / LOCK).exists()


def test_a_second_run_is_refused_and_the_first_keeps_its_lock(folder):
    with RunLock(folder):
        mine = holder(folder)["run"]
        with pytest.raises(DataError, match=rf"is held by process {os.getpid()} on "), RunLock(folder):
            raise AssertionError("the second run has begun")
        assert holder(folder)["run"] == mine
    assert not (folder / LOCK).exists()


def test_of_two_runs_that_start_at_once_one_gets_the_lock(tmp_path):
    folder = Location.of(tmp_path)
    start, end = threading.Barrier(2), threading.Barrier(2)
    outcomes = []

    def run() -> None:
        start.wait()
        try:
            with RunLock(folder):
                outcomes.append("held")
                end.wait()
        except DataError:
            outcomes.append("refused")
            end.wait()

    runs = [threading.Thread(target=run) for _ in range(2)]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    assert sorted(outcomes) == ["held", "refused"]


def test_outputs_do_not_share_a_lock(folder):
    with RunLock(folder / "one"), RunLock(folder / "two"):
        pass


def test_a_dead_process_of_this_host_loses_its_lock(folder, dead_pid):
    held_by(folder, pid=dead_pid)
    with RunLock(folder):
        assert holder(folder)["pid"] == os.getpid()


def test_a_process_of_another_host_keeps_its_lock_while_its_heart_beats(folder, dead_pid):
    held_by(folder, pid=dead_pid, host="elsewhere", beat_unix_s=time.time() - STALE_S / 2)
    with pytest.raises(DataError, match=f"is held by process {dead_pid} on elsewhere"), RunLock(folder):
        pass


@pytest.mark.parametrize("host", ["elsewhere", socket.gethostname()])
def test_a_lock_without_a_heartbeat_is_taken_over(folder, host):
    held_by(folder, host=host, beat_unix_s=time.time() - STALE_S - 1)
    with RunLock(folder):
        assert holder(folder)["run"] != "r"
    assert not (folder / LOCK).exists()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b"\xff\xfe\xff"])
def test_a_lock_that_says_nothing_is_taken_over(folder, text):
    (folder / LOCK).create(text)
    with RunLock(folder):
        assert holder(folder)["pid"] == os.getpid()


def beaten(folder: Location, monkeypatch) -> threading.Event:
    """Make hearts beat at once; the event is set after the first beat."""
    event = threading.Event()
    beat = RunLock._beat_once

    def told(self: RunLock) -> None:
        beat(self)
        event.set()

    monkeypatch.setattr(lock, "BEAT_S", 0.001)
    monkeypatch.setattr(RunLock, "_beat_once", told)
    return event


def test_the_heart_beats(folder, monkeypatch):
    event = beaten(folder, monkeypatch)
    with RunLock(folder):
        began = holder(folder)
        # The first beat may have begun before that; the second did not.
        for _ in range(2):
            event.clear()
            assert event.wait(30)
        now = holder(folder)
        assert now["run"] == began["run"]
        assert now["beat_unix_s"] > began["beat_unix_s"]
    assert not (folder / LOCK).exists()


def test_who_lost_the_lock_leaves_that_of_the_other_alone(folder):
    with RunLock(folder):
        (folder / LOCK).remove()
        held_by(folder, run="other")
    assert holder(folder)["run"] == "other"


def test_who_lost_the_lock_stops_beating(folder, monkeypatch):
    held = RunLock(folder)
    held_by(folder, run="other")
    held._beat_once()
    assert holder(folder)["run"] == "other"
