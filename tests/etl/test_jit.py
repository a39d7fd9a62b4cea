"""Where compiled code is kept: by the source that made it, wherever that is, and by all that is compiled into it."""

import os
import subprocess
import sys

import pytest
from filelock import FileLock, Timeout
from numba.core.caching import FunctionCache

from etl import jit
from etl.hashing import xxh64_u64
from tests.environment import PROJECT

KERNEL = """
from etl.jit import njit

@njit
def times(x):
    return {factor} * x
"""
CALLED = """
from etl.jit import njit

FACTORS = (1, {factor})

@njit
def twice(x):
    return 2 * x
"""
CALLER = """
from etl.jit import njit
from etl.toy_called import {imported}

@njit
def times(x):
    return {expression}
"""
PROGRAM = """
import sys
import etl

etl.__path__.append(sys.argv[1])
from etl.toy_kernel import times

print(times(21), sum(times.stats.cache_hits.values()), sum(times.stats.cache_misses.values()))
"""


def result_hits_misses(folder, factor, cache, **environment):
    """In a process of its own, of a kernel in a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "toy_kernel.py").write_text(KERNEL.format(factor=factor))
    return run(folder, cache, **environment)


def run(folder, cache, **environment):
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(folder)]
    environment = {**os.environ, "STILLHOUSE_CACHE": str(cache), **environment}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


def test_code_is_compiled_once_for_equal_sources_wherever_they_lie(tmp_path):
    cache = tmp_path / "cache"
    assert result_hits_misses(tmp_path / "one", 2, cache) == (42, 0, 1)
    assert result_hits_misses(tmp_path / "other", 2, cache) == (42, 1, 0)
    assert len(list((cache / "numba" / jit.cpu()).iterdir())) == 1
    assert result_hits_misses(tmp_path / "one", 3, cache) == (63, 0, 1)
    assert len(list((cache / "numba" / jit.cpu()).iterdir())) == 2


def test_machines_with_other_cpus_share_a_cache_folder_and_no_code(tmp_path):
    cache = tmp_path / "cache"
    assert result_hits_misses(tmp_path / "one", 2, cache) == (42, 0, 1)
    for features in ("", "+sse2"):
        assert result_hits_misses(tmp_path / "one", 2, cache, NUMBA_CPU_FEATURES=features) == (42, 0, 1)
        assert result_hits_misses(tmp_path / "one", 2, cache, NUMBA_CPU_FEATURES=features) == (42, 1, 0)
    assert len(list((cache / "numba").iterdir())) == 3


def test_a_change_in_what_a_kernel_has_from_another_module_is_seen(tmp_path):
    """numba does not see one: what a kernel calls, and constants, are part of its code."""
    cache = tmp_path / "cache"

    def changed(imported, expression, before, after):
        (tmp_path / "toy_kernel.py").write_text(CALLER.format(imported=imported, expression=expression))
        (tmp_path / "toy_called.py").write_text(before)
        first = run(tmp_path, cache)[0]
        (tmp_path / "toy_called.py").write_text(after)
        return first, run(tmp_path, cache)[0]

    called = CALLED.format(factor=3)
    assert changed("twice", "twice(x)", called, called.replace("2 * x", "4 * x")) == (42, 84)
    assert changed("FACTORS", "FACTORS[1] * x", called, CALLED.format(factor=5)) == (63, 105)


def test_an_entry_is_written_under_a_lock(monkeypatch):
    """Else two processes that compile one kernel for two types leave the code of one under the name of the other."""
    tried = []

    def save(cache, sig, data):
        with pytest.raises(Timeout):
            FileLock(f"{cache.cache_path}/.lock").acquire(blocking=False)
        tried.append((sig, data))

    monkeypatch.setattr(FunctionCache, "save_overload", save)
    xxh64_u64._cache.save_overload("signature", "code")
    assert tried == [("signature", "code")]
