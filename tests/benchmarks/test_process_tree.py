"""The sampler of the chain benchmark sees what wait4 does not."""

import sys

from tests.benchmarks import process_tree
from tests.benchmarks.process_tree import Process, descendants, read_pss, run_measured

BURN = "import time\nwhile time.process_time() < 0.5: pass\n"
IGNORED = f"""
import os, signal, subprocess, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if os.fork() == 0:
    os.execv(sys.executable, [sys.executable, "-S", "-c", {BURN!r}])
try:
    os.wait()
except ChildProcessError:
    pass
"""
ORPHANED = f"""
import os, sys, time
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    held = bytearray(b"x" * 80_000_000)
    os.write(write, b".")
    exec({BURN!r})
    os._exit(0)
os.read(read, 1)
time.sleep(0.25)
"""


def measured(code, log):
    with log.open("w") as messages:
        return run_measured([sys.executable, "-S", "-c", code], messages)


def test_a_child_that_nobody_waits_for_is_counted(tmp_path):
    use = measured(IGNORED, tmp_path / "log")
    assert use.exit_code == 0
    assert use.cpu_s_by_kind["workers"] >= 0.3
    assert use.cpu_s == sum(use.cpu_s_by_kind.values())


def test_a_child_that_outlives_the_command_is_counted_to_its_end(tmp_path):
    use = measured(ORPHANED, tmp_path / "log")
    assert use.exit_code == 0
    assert use.cpu_s >= 0.3
    assert use.peak_bytes >= 80_000_000


def test_a_page_that_processes_share_counts_once_in_the_proportional_sum(tmp_path, monkeypatch):
    both_seen, seen = tmp_path / "both seen", set()

    def read_and_release(pid):
        found = read_pss(pid)
        seen.add(pid)
        if len(seen) == 2:
            both_seen.touch()
        return found

    monkeypatch.setattr(process_tree, "read_pss", read_and_release)
    wait = f"while not os.path.exists({str(both_seen)!r}): time.sleep(0.01)"
    code = f"import os, time\nheld = bytearray(b'x' * 80_000_000)\nos.fork()\n{wait}"
    use = measured(code, tmp_path / "log")
    assert use.peak_bytes >= 160_000_000
    assert 80_000_000 <= use.peak_pss_bytes < 120_000_000


def test_the_larger_sum_counts_children_too_short_to_be_sampled(tmp_path):
    burn = "import time\nwhile time.process_time() < 0.03: pass\n"
    code = f"import subprocess, sys\nfor _ in range(6): subprocess.run([sys.executable, '-S', '-c', {burn!r}])"
    assert measured(code, tmp_path / "log").cpu_s >= 6 * 0.03


def test_exit_codes_and_output_are_the_command_s(tmp_path):
    answers = tmp_path / "answers"
    code = "import sys; print('said'); print('failed', file=sys.stderr); sys.exit(3)"
    with answers.open("w") as out, (tmp_path / "log").open("w") as messages:
        use = run_measured([sys.executable, "-c", code], messages, out)
    assert (use.exit_code, answers.read_text()) == (3, "said\n")
    assert (tmp_path / "log").read_text() == "failed\n"


def test_descendants_of_roots_that_are_there():
    parents = {1: 0, 5: 1, 6: 5, 7: 6, 8: 1}
    table = {pid: Process("x", parent, 0.0, 0, 0) for pid, parent in parents.items()}
    assert descendants(table, {5, 99}) == {5, 6, 7}
