"""One run at a time: a lock is refused, released, taken over from a dead run by one only, and reported when lost."""

import json
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest

from etl.errors import ConfigError, DataError
from etl.storage import lock
from etl.storage.location import Location
from etl.storage.lock import LOCK, STALE_S, Holder, RunLock, last_holder, live_holder, why_not_a_link
from etl.storage.manifest import to_json
from tests.etl.storage.races import race_for_locks

R, S, T = ("a" * 32, "b" * 32, "c" * 32)
"""Names of runs."""


def held_by(folder: Location, **changes) -> Holder:
    """A lock that someone has left: this process, a moment ago, unless given otherwise."""
    someone = Holder.me().model_copy(update={"run": R, **changes})
    (folder / LOCK).create(to_json(someone))
    return someone


def holder(folder: Location) -> Holder:
    found = last_holder(folder)
    assert found is not None
    return found[1]


def links(folder: Location) -> list[str]:
    return [path for path, _ in folder.walk() if path.startswith("_lock")]


@pytest.fixture(scope="module")
def dead_pid():
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def impatient(monkeypatch):
    """Silence counts after a moment."""
    monkeypatch.setattr(lock, "STALE_S", 0.05)
    monkeypatch.setattr(lock, "_LOOK_S", 0.01)


def test_a_lock_says_who_holds_it_and_goes_on_exit(folder):
    with RunLock(folder) as held:
        assert (holder(folder).pid, holder(folder).host) == (os.getpid(), socket.gethostname())
        held.check()
        assert live_holder(folder) == holder(folder)
    assert list(folder.walk()) == []
    assert live_holder(folder) is None
    with RunLock(folder):
        pass


def test_a_lock_goes_when_the_run_fails(folder):
    with pytest.raises(ZeroDivisionError), RunLock(folder):
        raise ZeroDivisionError
    assert list(folder.walk()) == []


def test_a_second_run_is_refused_and_the_first_keeps_its_lock(folder):
    with RunLock(folder) as held:
        mine = holder(folder).run
        started_s = time.monotonic()
        told = rf"is held by process {os.getpid()} on {socket.gethostname()} since 20.* UTC; .*remove .*{LOCK}"
        with pytest.raises(DataError, match=told), RunLock(folder):
            raise AssertionError("the second run has begun")
        assert time.monotonic() - started_s < STALE_S / 2
        assert holder(folder).run == mine
        held.check()
    assert links(folder) == []


def test_outputs_do_not_share_a_lock(folder):
    with RunLock(folder / "one"), RunLock(folder / "two"):
        pass


def test_a_dead_process_of_this_machine_loses_its_lock(folder, dead_pid):
    held_by(folder, pid=dead_pid)
    with RunLock(folder) as held:
        assert holder(folder).pid == os.getpid()
        assert len(links(folder)) == 2
        held.check()
    assert links(folder) == []


def test_a_process_number_that_is_used_again_is_no_sign_of_life(folder):
    held_by(folder, started="1")
    with RunLock(folder):
        assert holder(folder).run != R


def test_a_chain_of_dead_takeovers_is_followed_to_its_end(folder, dead_pid):
    held_by(folder, pid=dead_pid)
    for run, before in ((S, R), (T, S)):
        link = Holder.me().model_copy(update={"run": run, "pid": dead_pid})
        (folder / f"_lock-{before}.json").create(to_json(link))
    with RunLock(folder) as held:
        assert len(links(folder)) == 4
        with pytest.raises(DataError, match="is held by process"), RunLock(folder):
            pass
        held.check()
    assert links(folder) == []


@pytest.mark.parametrize("process", ["dead there", "alive here"])
def test_a_process_of_another_machine_keeps_its_lock_while_its_heart_beats(folder, dead_pid, process):
    pid = dead_pid if process == "dead there" else os.getpid()
    held_by(folder, pid=pid, host="elsewhere", machine="m", beat_unix_s=time.time() - STALE_S / 2)
    with pytest.raises(DataError, match=f"is held by process {pid} on elsewhere"), RunLock(folder):
        pass


@pytest.mark.parametrize("late_s", [120, -120])
def test_a_silent_lock_of_another_machine_is_watched_and_then_taken_over(folder, impatient, late_s):
    held_by(folder, machine="m", beat_unix_s=time.time() - late_s)
    with RunLock(folder):
        assert holder(folder).run != R
    assert links(folder) == []


@pytest.mark.parametrize("late_s", [3600, -3600])
def test_a_clock_that_is_wrong_takes_no_lock_from_the_living(folder, monkeypatch, late_s):
    someone = held_by(folder, machine="m", host="elsewhere", beat_unix_s=time.time() - late_s)
    monkeypatch.setattr(lock, "STALE_S", 60)

    def beat(_: float) -> None:
        later = someone.model_copy(update={"beat_unix_s": someone.beat_unix_s + 10})
        (folder / LOCK).replace(to_json(later))

    monkeypatch.setattr(lock.time, "sleep", beat)
    with pytest.raises(DataError, match="is held by"), RunLock(folder):
        pass


NOBODY = {"run": R, "host": "h", "machine": "m", "pid": 1, "started": "1", "since_unix_s": 0.0, "beat_unix_s": 0.0}
"""A link as it should be."""


def forged(**changes) -> bytes:
    return json.dumps({**NOBODY, **changes}).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"null",
        b"\xff\xfe\xff",
        b"[" * 300,
        b'{"run": "r", "host": "h"}',
        forged(run="x/../../victim/package"),
        forged(run="r"),
        forged(run="A" * 32),
        forged(pid="x"),
        forged(pid=2**70),
        forged(pid=-1),
        forged(beat_unix_s="x"),
        forged(beat_unix_s=float("nan")),
        forged(beat_unix_s=float("inf")),
        forged(since_unix_s=1e30),
        forged(since_unix_s="x"),
        forged(host="\x1b]0;owned\x07"),
        forged(more=1),
        forged().replace(b"0.0", b"1e400", 1),
        forged().replace(b"{", b'{"pid": 2, ', 1),
    ],
)
def test_what_no_run_has_written_holds_up_nobody_leads_nowhere_and_stays(folder, text):
    victim = folder / "victim/package.json"
    victim.create(b"precious")
    output = folder / "out"
    (output / LOCK).create(text)
    for _ in range(2):
        with RunLock(output) as held:
            assert holder(output).pid == os.getpid()
            held.check()
        assert links(output) == [LOCK]
    assert live_holder(output) is None
    assert (output / LOCK).read() == text
    assert why_not_a_link(output / LOCK)
    assert sorted(path for path, _ in folder.walk()) == ["out/_lock.json", "victim/package.json"]
    assert victim.read() == b"precious"


@pytest.mark.parametrize("runs", [[R, R], [R, S, R], [R, S, S]])
def test_links_that_lead_back_are_nobodys(folder, impatient, runs):
    names = [LOCK, *(f"_lock-{run}.json" for run in runs)]
    for name, run in zip(names, runs, strict=False):
        (folder / name).create(forged(run=run))
    assert live_holder(folder) is None
    for _ in range(2):
        with RunLock(folder) as held:
            assert holder(folder).pid == os.getpid()
            held.check()
    assert len(links(folder)) < len(runs)


def test_a_chain_without_an_end_is_refused(folder, monkeypatch):
    monkeypatch.setattr(lock, "_MAX_LINKS", 5)
    before = LOCK
    for number in range(10):
        (folder / before).create(forged(run=f"{number:032x}"))
        before = f"_lock-{number:032x}.json"
    with pytest.raises(DataError, match="more than 5 links of a lock; remove"), RunLock(folder):
        pass


def beaten(monkeypatch) -> threading.Event:
    """Make hearts beat at once; the event is set after a beat."""
    event = threading.Event()
    beat = RunLock._beat_once

    def told(self: RunLock) -> None:
        beat(self)
        event.set()

    monkeypatch.setattr(lock, "BEAT_S", 0.001)
    monkeypatch.setattr(RunLock, "_beat_once", told)
    return event


def test_the_heart_beats(folder, monkeypatch):
    event = beaten(monkeypatch)
    with RunLock(folder):
        began = holder(folder)
        # The first beat may have begun before that; the second did not.
        for _ in range(2):
            event.clear()
            assert event.wait(30)
        now = holder(folder)
        assert now.run == began.run
        assert now.beat_unix_s > began.beat_unix_s
    assert links(folder) == []


def test_a_heart_goes_on_when_a_beat_fails(folder, monkeypatch):
    event = beaten(monkeypatch)
    replace_object, failures = Location.replace, []

    def fails_once(place: Location, data: bytes) -> None:
        if not failures:
            failures.append(place)
            raise DataError("the store is out to lunch")
        replace_object(place, data)

    monkeypatch.setattr(Location, "replace", fails_once)
    with RunLock(folder) as held:
        assert event.wait(30)
        held.check()
    assert failures


def take_over(folder: Location) -> None:
    """What another run does when it takes this one for dead."""
    other = Holder.me().model_copy(update={"run": S, "machine": "m"})
    (folder / f"_lock-{holder(folder).run}.json").create(to_json(other))


def replace_head(folder: Location) -> None:
    """What another run does after somebody has removed the lock."""
    (folder / LOCK).remove()
    held_by(folder, machine="m")


def test_a_lock_that_was_removed_is_lost(folder):
    with RunLock(folder) as held:
        (folder / LOCK).remove()
        with pytest.raises(DataError, match=f"process {os.getpid()} .* no longer holds .*{LOCK}"):
            held.check()


@pytest.mark.parametrize("lose", [take_over, replace_head])
def test_who_lost_the_lock_is_told_stops_beating_and_leaves_it_alone(folder, lose):
    with RunLock(folder) as held:
        lose(folder)
        before = {path: (folder / path).read() for path in links(folder)}
        with pytest.raises(DataError, match="no longer holds"):
            held.check()
        held._beat_once()
    assert {path: (folder / path).read() for path in links(folder)} == before


def test_of_two_processes_that_start_at_once_one_gets_the_lock(tmp_path, dead_pid):
    folders = [Location.of(tmp_path / str(lap)) for lap in range(60)]
    for folder in folders[::2]:
        held_by(folder, pid=dead_pid)
    outcomes = race_for_locks(folders)
    assert outcomes == [Counter(held=1, refused=1)] * len(folders)
    assert all(links(folder) == [] for folder in folders)


class Overwrites(Location):
    """A store that does not look at the condition of a conditional write."""

    def create(self, data: bytes) -> bool:
        self.replace(data)
        return True

    def __truediv__(self, relative: str) -> Location:
        return Overwrites(f"{self.url}/{relative}", self.options, self.single_writer)


def test_a_store_that_overwrites_what_it_should_create_is_refused(folder):
    if folder.is_local:
        pytest.skip("a local disk is known to create")
    careless = Overwrites(folder.url)
    with pytest.raises(ConfigError, match=r"cannot create objects conditionally.*single_writer: true"):
        RunLock(careless).__enter__()
    assert list(folder.walk()) == []
    with RunLock(replace(careless, single_writer=True)):
        pass
