import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.training.packs import toy_pack
from training.record.watchdog import (
    HANG_EXIT_CODE,
    Beat,
    Watchdog,
    WatchdogConfig,
    beats,
    behind,
    write_nan,
)

PROJECT = Path(__file__).resolve().parents[3]


STUCK = "threading.Event().wait(60)"


def run(folder, *body, hang_timeout_s=0.5):
    """A process of rank 1 that beats at step 17 and then does what the lines of `body` say."""
    script = f"""
import ctypes, threading
from pathlib import Path
from training.record.watchdog import Watchdog, WatchdogConfig
with Watchdog(WatchdogConfig(hang_timeout_s={hang_timeout_s}), Path({str(folder)!r}), 1, 2) as watchdog:
    watchdog.beat(17, "forward_backward")
    {"; ".join(body)}
print("ended", flush=True)
"""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_hang_names_rank_step_and_phase_shows_all_stacks_and_ends_the_process(tmp_path):
    found = run(tmp_path, f"threading.Thread(target=lambda: {STUCK}, daemon=True).start()", STUCK)
    assert found.returncode == HANG_EXIT_CODE
    assert "ended" not in found.stdout
    for text in (found.stderr, (tmp_path / "rank-00001.txt").read_text()):
        assert "no progress for 0.5 s; rank 1 at step 17 in phase forward_backward since 20" in text
        # The main thread, the one that it started, and the watchdog's own.
        assert text.count("Thread 0x") + text.count("Current thread 0x") >= 3
        assert 'File "<string>", line 7 in <module>' in text


def test_a_native_call_that_holds_the_interpreters_lock_is_ended_too(tmp_path):
    found = run(tmp_path, "ctypes.PyDLL(None).sleep(60)")
    assert found.returncode == 1
    text = (tmp_path / "rank-00001.txt").read_text()
    assert beats(tmp_path, 2)[0].step == 17
    assert "Timeout" in text
    assert 'File "<string>", line 7 in <module>' in text


def test_signs_of_life_keep_the_process_going(tmp_path):
    """One between two looks of the watch, for twice the timeout: it looks four times in each."""
    found = run(
        tmp_path,
        "wait, looked = watchdog._over.wait, threading.Semaphore(0)",
        "watchdog._over.wait = lambda timeout: (looked.release(), wait(timeout))[1]",
        "[(looked.acquire(), watchdog.phase('data')) for _ in range(8)]",
        hang_timeout_s=1.5,
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "ended\n", "")
    (beat,) = beats(tmp_path, 2)
    assert (beat.rank, beat.step, beat.phase) == (1, 17, "data")


def test_the_rank_that_stopped_first_is_the_one_behind():
    standing = [Beat(0, 9, "optimizer", 50.0), Beat(1, 9, "data", 40.0), Beat(2, 9, "optimizer", 45.0)]
    assert behind(standing).rank == 1
    assert behind([*standing, Beat(3, 8, "optimizer", 60.0)]).rank == 3


def test_the_report_of_a_waiting_rank_names_the_other(tmp_path):
    with Watchdog(WatchdogConfig(), tmp_path, 2, 3) as larger_run:
        larger_run.beat(3, "data")
    with Watchdog(WatchdogConfig(), tmp_path, 0, 2) as other:
        other.beat(16, "data")
        found = run(tmp_path, STUCK)
    assert "rank 0 at step 16 in phase data since" in found.stderr.splitlines()[0]
    assert [(beat.rank, beat.step) for beat in beats(tmp_path, 2)] == [(0, 16), (1, 17)]


def test_the_documents_of_a_nan_are_kept(tmp_path):
    packs = [toy_pack([2, 3], 8, {}, id_hash=np.array([255, 2**64 - 1], np.uint64)), toy_pack([], 8, {})]
    path = write_nan(tmp_path / "watchdog", 3, {"step": 7, "fault": "the loss of rank 3 is nan"}, packs)
    assert path.name == "nan-step-00000007-rank-00003.json"
    found = json.loads(path.read_text())
    assert found["id_hash_of_packs"] == [["00000000000000ff", "ffffffffffffffff"], []]
    assert (found["step"], found["rank"], found["fault"]) == (7, 3, "the loss of rank 3 is nan")


def test_a_rank_that_came_later_to_an_earlier_place_of_the_step_is_behind(tmp_path):
    with Watchdog(WatchdogConfig(), tmp_path, 0, 2) as first, Watchdog(WatchdogConfig(), tmp_path, 1, 2) as second:
        first.beat(3, "forward_backward")
        first.progress()
        second.beat(3, "forward_backward")
        found = beats(tmp_path, 2)
        assert behind(found).rank == 1
        assert [(beat.step, beat.phase, beat.count) for beat in found] == [
            (3, "forward_backward", 1), (3, "forward_backward", 0)
        ]  # fmt: skip
        second.progress()
        assert behind(beats(tmp_path, 2)).rank == 0
        first.beat(4, "data")
        assert behind(beats(tmp_path, 2)).rank == 1
