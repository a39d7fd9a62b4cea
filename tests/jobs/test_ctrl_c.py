"""Ctrl-C while `stillhouse run` is at work, in processes of its own: one line, exit code 130, nothing left behind."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from etl.console import run_app
from jobs.cli import app
from tests.etl.stages.toys import FILTER, make_recipe, mixed_rows, stage, write_parquet
from tests.faults.recipes import write_conf
from tests.progress_lines import without_progress

PROJECT = Path(__file__).resolve().parents[2]
STOPPED = "stopped by Ctrl-C; run the same command again to resume"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The file of a recipe of several stages."""
    folder = tmp_path_factory.mktemp("recipe")
    source = write_parquet(folder / "in.parquet", mixed_rows(60))
    stages = ["filter", "tokenize", "layout"]
    return write_conf(make_recipe("out", {"toy": source}, stages=stages, filter=FILTER), folder / "toy.yaml")


def start(recipe, output, flags):
    command = [sys.executable, "-m", "jobs.cli", "run", recipe, "--set", f"output={output}", "--engine", *flags]
    return subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_group(group):
    """Until no process of a group is left; the timeout of the test ends it otherwise."""
    with contextlib.suppress(ProcessLookupError):
        while any(_runs(pid, group) for pid in Path("/proc").iterdir() if pid.name.isdigit()):
            os.sched_yield()


def _runs(process, group):
    try:
        state, _, of = (process / "stat").read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return False
    return of == str(group) and state != "Z"


@pytest.mark.parametrize(
    "flags", [["local", "--processes", "2"], ["beam"], pytest.param(["spark"], marks=pytest.mark.spark)]
)
def test_one_line_and_no_process_and_the_next_run_goes_on(tmp_path, recipe, flags, capsys):
    process = start(recipe, tmp_path / "out", flags)
    assert any(line.startswith("1/4 ingest ") for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate()
    assert (process.returncode, without_progress(said)) == (130, [STOPPED])
    wait_for_group(process.pid)
    assert not (tmp_path / "out" / "_lock.json").exists()
    words = [str(recipe), "--set", f"output={tmp_path / 'out'}", "--engine", "local", "--processes", "1"]
    assert run_app(app, ["run", *words], "stillhouse") == 0
    assert any(line.startswith("1/4 ingest ") for line in capsys.readouterr().out.splitlines())
    assert stage(tmp_path / "out", "corpus").manifest.rows_out > 0
