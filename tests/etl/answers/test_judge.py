"""The process that compares answers: what it survives, that it ends, and what of this a worker notices."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest

from etl.answers.judge import MAX_LETTERS, Judge
from etl.errors import ConfigError


@pytest.fixture(scope="module")
def judge():
    with Judge() as one:
        yield one


def child_of(judge):
    return judge._child._process.pid


def ended(pid):
    """Whether a process is gone, after waiting for it."""
    for _ in range(400):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_plain_pairs_start_no_process():
    judge = Judge()
    assert judge.compare("$1,234$", "1234") == ("equal", "")
    assert judge.compare("1234", "1235") == ("different", "")
    assert judge.compare("", "5") == ("unparseable", "empty")
    assert judge._child is None


def test_other_pairs_are_judged_by_one_process(judge):
    assert judge.compare(r"\frac12", "0.5") == ("equal", "")
    first = child_of(judge)
    assert judge.compare("x^2", "x*x") == ("equal", "")
    assert judge.compare("1,2", "12") == ("different", "")
    assert judge.compare(r"\frac{", "12") == ("unparseable", "syntax")
    assert child_of(judge) == first


def test_a_pair_that_takes_for_ever_is_unparseable_and_the_next_one_is_judged():
    with Judge(cpu_s=0.5) as judge:
        assert judge.compare(r"\frac12", "0.5").outcome == "equal"
        first = child_of(judge)
        assert judge.compare(r"9^{9^{9^{9}}} + 1", r"9^{9^{9^{9}}} + 2") == ("unparseable", "time")
        assert ended(first)
        assert judge.compare(r"\frac12", "0.5").outcome == "equal"


def test_a_process_that_was_killed_between_two_pairs_is_replaced(judge):
    judge.compare(r"\frac12", "0.5")
    first = child_of(judge)
    os.kill(first, signal.SIGKILL)
    judge._child._process.wait()
    assert judge.compare(r"\frac12", "0.5").outcome == "equal"
    assert child_of(judge) != first


def test_what_is_too_long_for_an_answer_is_not_read():
    judge = Judge()
    long = "1+" * MAX_LETTERS
    assert judge.compare(long, "5") == ("unparseable", "length")
    assert judge.compare(long, long) == ("equal", "")


def in_a_worker(judge, queue):
    queue.put(judge.compare(r"\frac12", "0.5"))


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_daemonic_worker_has_a_process_of_its_own(judge, method):
    judge.compare(r"\frac12", "0.5")
    mine = child_of(judge)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=in_a_worker, args=(judge, queue), daemon=True)
    worker.start()
    assert queue.get(timeout=100) == ("equal", "")
    worker.join()
    assert child_of(judge) == mine
    assert judge.compare("x^2", "x*x").outcome == "equal"


def test_a_copy_starts_anew(judge):
    judge.compare(r"\frac12", "0.5")
    assert pickle.loads(pickle.dumps(judge))._child is None


PROGRAM = """
import os, sys
from etl.answers.judge import Judge
judge = Judge()
assert judge.compare("x^2", "x*x").outcome == "equal"
print(judge._child._process.pid, *sorted({"sympy", "math_verify"} & set(sys.modules)), flush=True)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_it_ends_with_its_parent_which_loads_no_algebra(end):
    done = subprocess.run([sys.executable, "-c", PROGRAM, end], capture_output=True, text=True, check=False)
    assert done.returncode == (-9 if end == "kill" else 0), done.stderr
    (pid,) = done.stdout.split()
    assert ended(int(pid))


def test_an_interrupted_pair_is_not_answered_in_place_of_the_next_one(judge, monkeypatch):
    judge.compare(r"\frac12", "0.5")
    first = judge._child

    def interrupted(wall_s):
        raise KeyboardInterrupt

    monkeypatch.setattr(first, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        judge.compare(r"\frac13", "0.5")
    assert judge.compare(r"\frac12", "0.5").outcome == "equal"


def test_without_math_verify_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'stillhouse\[answers\]'"):
        Judge()


def test_the_process_answers_lines_of_json_and_says_what_it_lacks(tmp_path):
    (tmp_path / "math_verify.py").write_text("import absent")
    command = [sys.executable, "-P", "-m", "etl.answers.child", "5", str(2 << 30)]
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        command,
        input='["x", "y"]\n',
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert json.loads(done.stdout) == ["missing", "No module named 'absent'"]
