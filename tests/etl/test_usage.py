"""What a task and a process tree use: CPU-seconds of whoever is at work, peak memory, children."""

import contextlib
import subprocess
import sys
import threading
import time

import pytest

from etl import usage
from etl.usage import TaskMeter, TreeMeter, look_at_memory


@pytest.fixture
def cpu(monkeypatch):
    """The CPU-seconds of this process, as the test says."""
    clock = [10.0]
    monkeypatch.setattr(usage, "_own_cpu_s", lambda: clock[0])
    return clock


@pytest.fixture
def memory(monkeypatch):
    """Resident bytes of this process now, and its record, as the test says."""
    held = {"now": 100, "record": 500}
    monkeypatch.setattr(usage, "_resident_bytes", lambda: held["now"])
    monkeypatch.setattr(usage, "_peak_bytes", lambda: held["record"])
    return held


def test_cpu_is_that_of_the_blocks_and_of_nothing_between_them(cpu):
    meter = TaskMeter()
    for spent_s in (1.0, 0.25):
        with meter:
            cpu[0] += spent_s
        cpu[0] += 100.0
    assert meter.usage().cpu_s == 1.25


def test_tasks_of_one_process_share_its_cpu_evenly_while_both_are_at_work(cpu):
    first, second = TaskMeter(), TaskMeter()
    with first:
        cpu[0] += 1.0
        with second:
            cpu[0] += 4.0
        cpu[0] += 2.0
    assert (first.usage().cpu_s, second.usage().cpu_s) == (5.0, 2.0)


def test_a_block_that_fails_ends_as_any_other(cpu):
    meter, other = TaskMeter(), TaskMeter()
    with contextlib.suppress(ZeroDivisionError), meter:
        cpu[0] += 1.0 / 1
        cpu[0] += 1.0 / 0
    with other:
        cpu[0] += 1.0
    assert (meter.usage().cpu_s, other.usage().cpu_s) == (1.0, 1.0)


def test_the_peak_is_the_record_where_the_task_raised_it(memory):
    meter = TaskMeter()
    with meter:
        memory["record"] = 900
    assert meter.usage().peak_bytes == 900


def test_the_peak_below_an_older_record_is_what_was_seen(memory):
    meter = TaskMeter()
    with meter:
        memory["now"] = 300
        look_at_memory()
        memory["now"] = 200
    assert meter.usage().peak_bytes == 300


def test_who_is_not_at_work_sees_nothing(memory):
    meter = TaskMeter()
    with meter:
        pass
    memory["now"] = 400
    look_at_memory()
    memory["now"] = 100
    assert meter.usage().peak_bytes == 100


def test_the_time_of_the_blocks_is_added_up(monkeypatch):
    times = iter([1.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr(usage.time, "perf_counter", lambda: next(times))
    meter = TaskMeter()
    for _ in range(2):
        with meter:
            pass
    assert meter.usage().wall_s == 2.5


def test_a_real_task_is_measured():
    """By CPU of every thread, and by a block of memory that nothing in this process was as large as."""
    meter = TaskMeter()
    with meter:
        began = time.process_time()
        thread = threading.Thread(target=sum, args=(range(2_000_000),))
        thread.start()
        thread.join()
        least = time.process_time() - began
    used = meter.usage()
    assert used.cpu_s >= least > 0
    assert used.peak_bytes > 1 << 20


CHILD = "import time\nwhile time.process_time() < 0.3: pass\n"


def test_a_child_counts_while_it_runs_and_when_it_has_ended():
    meter = TreeMeter()
    waits = CHILD + "print('spent', flush=True)\ninput()\n"
    with subprocess.Popen([sys.executable, "-c", waits], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        running = meter.lap()
        child.communicate(b"\n")
    ended = meter.lap()
    assert running.cpu_s >= 0.28
    assert ended.cpu_s < 0.28
    assert running.wall_s > 0
    whole = TreeMeter()
    subprocess.run([sys.executable, "-c", CHILD], check=True)
    assert whole.lap().cpu_s >= 0.28
