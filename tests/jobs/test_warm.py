"""`stillhouse warm`: what it prints and does, and that runs find nothing left to compile."""

import os
import subprocess
import sys
from functools import partial

import pytest

from etl.errors import ConfigError
from jobs import warm
from jobs.warm import Part
from tests import kernels
from tests.environment import PROJECT

RUNS = """
import contextlib, importlib, sys
from pathlib import Path

import numpy as np
from numba.extending import is_jitted

from etl.engines.local import LocalEngine
from etl.run.run import run_recipe
from tests.frozen import runs
from tests.training import toy_runs

folder = Path(sys.argv[1])
with runs._without_slow_parts(), contextlib.closing(LocalEngine()) as engine:
    for name in ("demo", "every_stage", "raw_text", "rounds", "twice"):
        run_recipe(runs.load(name, folder / name), engine, lambda line: None)

from training.data.digest import stream_digest
from training.data.stream.decisions import DecisionLog

config = toy_runs.configuration(folder / "demo" / "corpus", folder / "student", "data.pack_tokens=4096")
opening = lambda rank, ranks: config.streams.open_stage(config.stages[0], rank, ranks, DecisionLog.preview)
assert len(stream_digest(opening, 2, 6)) == 64

ours = [module for name, module in sorted(sys.modules.items()) if name.startswith(("etl.", "training."))]
found = {value for module in ours for value in vars(module).values() if is_jitted(value)}
assert len(found) > 120, len(found)
for kernel in sorted(found, key=str):
    name = f"{kernel.py_func.__module__}.{kernel.__name__}"
    if kernel.stats.cache_misses:
        print("compiled by a run:", name, list(kernel.stats.cache_misses))
    if not Path(kernel._cache._cache_file._index_path).exists():
        print("compiled by nothing:", name)
"""


@pytest.mark.slow
def test_runs_compile_nothing_after_it_and_it_has_compiled_every_kernel(tmp_path):
    kernels.link(kernels.warm(), tmp_path / "cache")
    (tmp_path / "runs.py").write_text(RUNS)
    environment = {**os.environ, "STILLHOUSE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "runs.py", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def write(name, folder):
    """Makes a part: a file named after it, which records what was there before."""
    (folder / name).write_text(" ".join(sorted(path.name for path in folder.iterdir())))


def publish(place, folder):
    place.write_text((folder / "first").read_text())
    print("a line of a library")  # noqa: T201  # what must not be seen


def fail(folder):
    raise ConfigError("the disk is full of apples; eat some")


def part(name, make, is_there=False, after=None, packages=()):
    return Part(name, "made", dict.fromkeys(packages, "score"), lambda: is_there, make, after)


@pytest.fixture
def parts(monkeypatch, tmp_path):
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))

    def use(*given):
        monkeypatch.setattr(warm, "PARTS", given)

    return use


def test_a_part_that_is_there_and_one_without_its_package_are_left_and_said(parts, capfd, tmp_path):
    parts(part("old", fail, is_there=True), part("absent", fail, packages=["no_such_package"]))
    assert warm.main([]) == 0
    out, err = capfd.readouterr()
    assert [line.split(maxsplit=1) for line in out.splitlines()] == [
        ["old", "made already"],
        ["absent", "skipped: no_such_package is not installed (pip install 'stillhouse[score]')"],
        ["all", f"is in {tmp_path / 'cache'}"],
    ]
    assert err == ""


def test_a_part_waits_for_the_one_whose_folder_it_reads_which_is_made_again_for_it(parts, capfd, tmp_path):
    published = tmp_path / "published"
    parts(
        part("second", partial(publish, published), after="first"),
        part("first", partial(write, "first"), is_there=True),
    )
    assert warm.main([]) == 0
    assert published.read_text() == ""
    out, err = capfd.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [["first", "made"], ["second", "made"], ["all", "is"]]
    assert "made already" in out
    assert err == ""


def refuse(folder):
    return "it has been made of air"


def test_a_part_that_is_not_to_be_made_here_says_why(parts, capfd):
    parts(part("useless", refuse))
    assert warm.main([]) == 0
    assert capfd.readouterr().out.splitlines()[0].split(maxsplit=1) == ["useless", "skipped: it has been made of air"]


def test_a_part_that_cannot_be_made_is_one_line_and_exit_code_2(parts, capfd):
    parts(part("broken", fail))
    assert warm.main([]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("ConfigError: the disk is full of apples; eat some")


def test_a_cache_that_cannot_be_written_is_exit_code_2(monkeypatch, capfd, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "file"))
    assert warm.main([]) == 2
    assert "STILLHOUSE_CACHE" in capfd.readouterr().err
