"""The pool by itself: what a worker keeps, how many there are, how errors travel, and that no worker outlives a job."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass

import pyarrow as pa
import pytest

from etl.engine import worker_number
from etl.engines.pool import WorkerPool, may_fork
from etl.errors import ConfigError, DataError, SchemaError, SourceError
from etl.machine import usable_cpus
from tests.engines.blocked_shuffle import blocked, is_alive
from tests.environment import PROJECT
from tests.services.process import wait_until


@pytest.fixture(scope="module", autouse=True)
def _temporary(tmp_path_factory):
    """A folder for temporary files in which pools leave nothing."""
    folder = tmp_path_factory.mktemp("scratch")
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    yield
    assert list(folder.iterdir()) == []
    tempfile.tempdir = before


@pytest.fixture(scope="module")
def pool(_temporary):
    with contextlib.closing(WorkerPool(2)) as workers:
        yield workers


def workers_of(done):
    """Process by number, of what CountCalls gave."""
    return {number: pid for _, number, pid, _ in done}


def run(pool, task, calls, at_once=2):
    """What the calls gave, in the order in which it came."""
    done = []
    pool.run(task, calls, at_once, done.append)
    return done


@dataclass
class CountCalls:
    """Says where it is and how often it has been called there."""

    calls: int = 0

    def __call__(self, number):
        self.calls += 1
        return number, worker_number(), os.getpid(), self.calls


def test_a_task_keeps_its_state_for_a_job_and_a_worker_its_number_and_process(pool):
    jobs = [run(pool, CountCalls(), [(n,) for n in range(20)]) for _ in range(2)]
    for done in jobs:
        assert sorted(number for number, *_ in done) == list(range(20))
        for worker in (0, 1):
            counted = [calls for _, number, _, calls in done if number == worker]
            assert counted == list(range(1, len(counted) + 1))
    assert sorted(workers_of(jobs[0])) == [0, 1]
    assert workers_of(jobs[0]) == workers_of(jobs[1])


def test_no_more_calls_run_at_a_time_than_asked_for(pool):
    done = run(pool, CountCalls(), [(n,) for n in range(5)], at_once=1)
    assert [(number, worker, calls) for number, worker, _, calls in done] == [(n, 0, n + 1) for n in range(5)]


def test_a_job_without_calls_is_over(pool):
    assert run(pool, CountCalls(), []) == []


def test_no_more_workers_start_than_there_are_calls_and_the_next_job_after_the_end_starts_others():
    before = len(multiprocessing.active_children())
    with contextlib.closing(WorkerPool(3)) as pool:
        started, folders = [], []
        for num_calls in (1, 2, 1):
            done = run(pool, CountCalls(), [(n,) for n in range(num_calls)], at_once=3)
            started.append(len(multiprocessing.active_children()) - before)
            folders.append(pool.folder)
        assert started == [1, 2, 2]
        pool.close()
        assert len(multiprocessing.active_children()) == before
        assert not folders[-1].exists()
        again = run(pool, CountCalls(), [(0,)])
    assert set(workers_of(done).values()).isdisjoint(workers_of(again).values())
    assert len(multiprocessing.active_children()) == before


# --- errors --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FailAt:
    """Raises at one call."""

    number: int
    error: BaseException

    def __call__(self, number):
        if number == self.number:
            raise self.error
        return number


class OddError(Exception):
    """One that pickles and does not unpickle."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


class RaiseOdd:
    def __call__(self, number):
        raise OddError("a", "b")


@pytest.mark.parametrize("error", [ConfigError, SourceError, SchemaError, DataError])
def test_bad_input_is_raised_as_it_is_and_no_call_after_it_is_made(pool, error):
    done = []
    with pytest.raises(error, match=r"^call 2: make it 4$") as raised:
        pool.run(FailAt(2, error("call 2: make it 4")), [(n,) for n in range(6)], 1, done.append)
    assert done == [0, 1]
    assert not hasattr(raised.value, "__notes__")


def test_calls_at_work_are_over_before_an_error_is_raised_and_the_workers_are_kept(pool):
    before = workers_of(run(pool, CountCalls(), [(0,), (1,)]))
    done = []
    with pytest.raises(DataError, match=r"^first$"):
        pool.run(FailAt(0, DataError("first")), [(0,), (1,)], 2, done.append)
    assert done == [1]
    assert workers_of(run(pool, CountCalls(), [(0,), (1,)])) == before


def test_any_other_exception_comes_with_the_traceback_of_the_worker(pool):
    with pytest.raises(ZeroDivisionError, match=r"^by hand\n") as raised:
        run(pool, FailAt(1, ZeroDivisionError("by hand")), [(0,), (1,)])
    (note,) = raised.value.__notes__
    assert note.startswith("in a worker process:\nTraceback")
    assert "in __call__" in note


def test_an_exception_that_cannot_travel_is_raised_as_another_that_names_it(pool):
    with pytest.raises(RuntimeError, match=r"^OddError: a b\nin a worker process:\nTraceback"):
        run(pool, RaiseOdd(), [(0,)])


@dataclass(frozen=True)
class Die:
    """Ends its process, by a signal or with an exit code, beside a file of its own."""

    how: int

    def __call__(self):
        tempfile.mkstemp()
        if self.how < 0:
            os.kill(os.getpid(), -self.how)
        os._exit(self.how)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (-signal.SIGKILL, "SIGKILL; SIGKILL often means out of memory: use fewer processes"),
        (3, "exit code 3"),
    ],
)
def test_a_worker_that_dies_is_an_error_that_says_how_and_ends_the_others(pool, how, said):
    before = workers_of(run(pool, CountCalls(), [(0,), (1,)]))
    folder = pool.folder
    with pytest.raises(DataError, match=rf"^worker process {before[0]} died \({said}\); run again to resume$"):
        run(pool, Die(how), [()])
    assert not any(is_alive(pid) for pid in before.values())
    assert not folder.exists()


def test_workers_are_killed_when_the_parent_stops_in_a_job(pool):
    before = workers_of(run(pool, CountCalls(), [(0,), (1,)]))

    def stop(result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.run(CountCalls(), [(0,), (1,)], 2, stop)
    assert not any(is_alive(pid) for pid in before.values())
    assert workers_of(run(pool, CountCalls(), [(0,)]))[0] not in before.values()


@pytest.mark.parametrize("how", [(), ("fork",)])
def test_workers_end_with_a_parent_that_is_killed(tmp_path, how):
    with blocked(tmp_path, 2, *how) as (process, workers):
        assert len(workers) == 2
        process.kill()
        process.wait()
        wait_until(lambda: not any(is_alive(pid) for pid in workers), "the end of the workers")
        assert list(tmp_path.glob("stillhouse-*")) == []


# --- what a worker finds -------------------------------------------------------------------------------------------


def temporary_folder_and_threads():
    return tempfile.gettempdir(), pa.cpu_count(), os.environ["OMP_NUM_THREADS"]


def blocks_ctrl_c():
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize("given", [None, "5"])
def test_a_worker_has_a_folder_and_its_share_of_threads_and_the_parent_is_as_before(monkeypatch, given):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    share = max(1, usable_cpus() // 2)
    with contextlib.closing(WorkerPool(2)) as pool:
        assert run(pool, temporary_folder_and_threads, [()]) == [(str(pool.folder), share, given or str(share))]
    assert os.environ.get("OMP_NUM_THREADS") == given
    assert not blocks_ctrl_c()


TWO_WORKERS = """
from etl.engines.pool import WorkerPool
from tests.engines.test_pool import blocks_ctrl_c

pool = WorkerPool(2)
pool.run(blocks_ctrl_c, [(), ()], 2, print)
pool.close()
"""


def test_workers_of_the_first_pool_of_a_process_leave_ctrl_c_to_it():
    done = subprocess.run([sys.executable, "-c", TWO_WORKERS], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["True", "True"]), done.stderr


FORKED = """
import multiprocessing, os, sys
from threadpoolctl import threadpool_info
from etl.engines.pool import WorkerPool, may_fork
from tests.engines.test_pool import CountCalls, blocks_ctrl_c, run, temporary_folder_and_threads, workers_of

def threads_and_a_module():
    return max(library["num_threads"] for library in threadpool_info()), sys.modules.get("marked")

print(may_fork())
sys.modules["marked"] = "as in the parent"
pool = WorkerPool(2)
pool.fork()
children = {child.pid for child in multiprocessing.active_children()}
print(set(workers_of(run(pool, CountCalls(), [(n,) for n in range(20)])).values()) == children, len(children))
folder = str(pool.folder)
print([found[0] == folder for found in run(pool, temporary_folder_and_threads, [(), ()])])
print(run(pool, threads_and_a_module, [()], 1), run(pool, blocks_ctrl_c, [()], 1))
pool.close()
print(multiprocessing.active_children(), os.path.exists(folder), blocks_ctrl_c())
"""


def test_forks_share_the_imports_of_a_process_and_are_workers_as_others():
    done = subprocess.run([sys.executable, "-c", FORKED], cwd=PROJECT, capture_output=True, text=True, check=False)
    share = max(1, usable_cpus() // 2)
    assert done.stdout.splitlines() == [
        "True",
        "True 2",
        "[True, True]",
        f"[({share}, 'as in the parent')] [True]",
        "[] False False",
    ], done.stderr


def test_a_process_with_libraries_that_have_threads_does_not_fork(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", object())
    assert not may_fork()
