"""The supervisor with ranks that are small scripts, each run in a process of its own, since it takes over signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from etl.errors import ConfigError
from training.launch.supervisor import Ranks, supervise

PROJECT = Path(__file__).resolve().parents[3]
DEADLINE_S = 30.0
SUPERVISOR = """
import sys
from training.launch.supervisor import Ranks, supervise
sys.exit(supervise([sys.executable, sys.argv[1]], Ranks(int(sys.argv[2])), float(sys.argv[3])))
"""
TRAINS = """
import os, sys, time
from pathlib import Path
from training.launch.stop import Stop
folder, rank = Path(os.environ["TOY_FOLDER"]), os.environ["RANK"]
with Stop().listening() as stop:
    (folder / f"ready-{rank}").write_text(str(os.getpid()))
    while not stop.is_set:
        time.sleep(0.01)
    (folder / f"checkpoint-{rank}").write_text("whole")
"""
LOADS = """
import os, time
from pathlib import Path
Path(os.environ["TOY_FOLDER"], "ready-" + os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep(600)
"""
IGNORES = """
import os, signal, subprocess, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path(os.environ["TOY_FOLDER"], "ready-" + os.environ["RANK"]).write_text(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""
CRASHES = """
import os, sys, time
from pathlib import Path
folder, rank = Path(os.environ["TOY_FOLDER"]), os.environ["RANK"]
(folder / f"ready-{rank}").write_text(str(os.getpid()))
while rank == "0" or not (folder / "ready-0").exists():
    time.sleep(0.01)
print("a line of progress", file=sys.stderr)
sys.exit("the disk of rank one is full")
"""
TELLS = """
import json, os, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
print(json.dumps({name: os.environ.get(name) for name in names}))
print("on stderr", file=sys.stderr)
"""


def until(holds):
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def start(tmp_path):
    """Starts the supervisor with a script for its ranks; all are ended after the test."""
    started = []

    def begin(script, nproc, grace_s=DEADLINE_S):
        path = tmp_path / "rank.py"
        path.write_text(script)
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, str(path), str(nproc), str(grace_s)],
            env={**environment, "PYTHONPATH": str(PROJECT), "TOY_FOLDER": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()
    for pid in pids(tmp_path):
        if not is_gone(pid):
            os.kill(pid, signal.SIGKILL)


def pids(folder):
    return [int(pid) for path in folder.glob("ready-*") for pid in path.read_text().split()]


def wait_for_ranks(folder, count):
    until(lambda: len(pids(folder)) == count)
    return pids(folder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 0)])
def test_a_signal_lets_the_ranks_save_and_ctrl_c_is_130(start, tmp_path, number, code):
    process = start(TRAINS, 2)
    ranks = wait_for_ranks(tmp_path, 2)
    process.send_signal(number)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2
    assert all(map(is_gone, ranks))


def test_a_rank_that_ignores_the_signal_is_killed_with_its_children_after_the_grace(start, tmp_path):
    process = start(IGNORES, 2, grace_s=0.3)
    ranks = wait_for_ranks(tmp_path, 4)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 137
    lost = "rank 0, 1 still ran 0.3 s after the signal and was killed; unsaved progress is lost, complete checkpoints"
    assert lost in told
    until(lambda: all(map(is_gone, ranks)))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_training_has_begun_saves_nothing_and_says_so(start, tmp_path, number, code):
    process = start(LOADS, 2)
    ranks = wait_for_ranks(tmp_path, 2)
    process.send_signal(number)
    _, told = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code
    assert f"{number.name} before training had started: nothing to save" in told
    assert "ended with" not in told
    assert all(map(is_gone, ranks))


def test_a_second_signal_does_not_wait_for_the_grace(start, tmp_path):
    process = start(IGNORES, 1)
    ranks = wait_for_ranks(tmp_path, 2)
    process.send_signal(signal.SIGINT)
    assert "SIGINT" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 137
    until(lambda: all(map(is_gone, ranks)))


def test_a_rank_that_crashes_takes_the_others_down_and_is_named(start, tmp_path):
    process = start(CRASHES, 2)
    _, told = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    last = told.partition("stillhouse: ")[2]
    assert last.startswith("rank 1 ended with exit code 1; the others were stopped")
    assert last.endswith("  a line of progress\n  the disk of rank one is full\n")
    assert "[rank 1] the disk of rank one is full\n" in told
    assert all(map(is_gone, wait_for_ranks(tmp_path, 2)))


def test_a_rank_that_is_killed_gives_the_code_of_a_shell(start, tmp_path):
    process = start(TRAINS, 2)
    ranks = wait_for_ranks(tmp_path, 2)
    os.kill(int((tmp_path / "ready-1").read_text()), signal.SIGKILL)
    _, told = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 137
    assert "rank 1 ended with SIGKILL" in told
    assert all(map(is_gone, ranks))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_ranks_die_with_a_supervisor_that_is_killed(start, tmp_path):
    process = start(TRAINS, 2)
    ranks = wait_for_ranks(tmp_path, 2)
    process.kill()
    process.communicate()
    until(lambda: all(map(is_gone, ranks)))
    assert not list(tmp_path.glob("checkpoint-*"))


def test_ranks_know_their_place_and_only_rank_0_speaks_without_its_name(start):
    process = start(TELLS, 2)
    said, told = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    lines = {line.startswith("[rank 1] "): json.loads(line.removeprefix("[rank 1] ")) for line in said.splitlines()}
    ports = {lines[is_second].pop("MASTER_PORT") for is_second in (False, True)}
    assert len(ports) == 1
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    assert lines == {
        False: {"RANK": "0", "LOCAL_RANK": "0", **common},
        True: {"RANK": "1", "LOCAL_RANK": "1", **common},
    }
    assert sorted(told.splitlines()) == ["[rank 1] on stderr", "on stderr"]


def test_ranks_of_several_nodes():
    second = Ranks(per_node=4, nodes=2, node_rank=1, master_addr="10.0.0.1", master_port=29500)
    second.check()
    found = second.environment(local_rank=2, port=29500)
    assert (found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"]) == ("6", "2", "8")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.1", "29500")


@pytest.mark.parametrize(
    "ranks",
    [Ranks(0), Ranks(1, 2, 2, "10.0.0.1", 1), Ranks(1, 2), Ranks(1, 2, 0, "10.0.0.1"), Ranks(1, 2, 0, "127.0.0.1", 1)],
)
def test_numbers_that_do_not_fit_are_refused(ranks):
    with pytest.raises(ConfigError, match=r"--nproc|--master"):
        ranks.check()


def test_a_command_that_cannot_be_started_is_told():
    with pytest.raises(ConfigError, match="cannot start /nowhere/python"):
        supervise(["/nowhere/python"], Ranks(1), 1.0)
