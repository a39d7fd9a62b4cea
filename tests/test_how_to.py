"""The files that the how-to pages print: configurations are read, the job script of Slurm runs."""

import os
import signal
import subprocess
import time

import pytest
import typer

from etl import conf
from etl.run.recipe import Recipe
from jobs.cli import app
from tests.acme import FILE, FILES, HOW_TO, NAME, importable
from training.config import TrainConfig

RECIPES = sorted(name for name, text in FILES.items() if name.endswith(".yaml") and "\nsources:" in text)
TRAININGS = sorted(name for name, text in FILES.items() if name.endswith(".yaml") and "\noptimizer:" in text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of a reader who has written down every file of the pages."""
    root = tmp_path_factory.mktemp("how_to")
    (root / NAME).mkdir()
    (root / NAME / "__init__.py").touch()
    for name, text in FILES.items():
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_every_configuration_of_the_pages_is_read(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with importable(folder, NAME):
        recipes = [conf.load(Recipe, name, "recipes", ["output=out"]) for name in RECIPES]
        trainings = [conf.load(TrainConfig, name, "training", []) for name in TRAININGS]
    assert len(recipes) == 5
    assert [config.model.factory for config in trainings] == [
        "acme_filters.students:build",
        "training.models.gpt_oss:build",
    ]


SRUN = """#!/bin/bash
trap 'kill -TERM $task' TERM
SLURM_NODEID=1 "${@:2}" &
task=$!
while kill -0 $task 2>/dev/null; do wait $task; code=$?; done
exit $code
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo node7; echo node8; else echo "$@" >> calls; fi
"""
TRAINER = """#!/bin/bash
trap 'echo saved >> calls; exit $CODE' TERM
echo "$@" > words
if [ -n "$COMPLETE" ]; then exit 0; fi
while true; do sleep 0.02; done
"""


@pytest.fixture
def slurm(tmp_path):
    """Starts the script of the page with stand-ins for Slurm and the trainer."""
    ((_, script),) = FILE.findall((HOW_TO / "slurm.md").read_text("utf-8"))
    (tmp_path / "student.sbatch").write_text(script)
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("stillhouse", TRAINER)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2"}
    given = {"CONF": "mine.yaml", "OUTPUT": "out", "ROOT": "s3://bucket/student"}
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def start(**more):
        environment = {**os.environ, "PATH": path, **job, **given, **more}
        return subprocess.Popen(["bash", "student.sbatch"], cwd=tmp_path, env=environment)

    return start


def test_the_job_of_slurm_gives_each_node_its_words_and_ends_where_training_does(slurm, tmp_path):
    assert slurm(COMPLETE="yes").wait(timeout=30) == 0
    assert not (tmp_path / "calls").exists()
    name, *words = (tmp_path / "words").read_text().split()
    given = typer.main.get_command(app).commands[name].make_context(name, words).params
    expected = {"name": "mine.yaml", "nproc": 8, "nnodes": 2, "node_rank": 1, "grace": 600.0}
    assert given | expected | {"master_addr": "node7", "master_port": 32345} == given
    assert given["set_"] == ["output=out", "checkpoint.root=s3://bucket/student"]


@pytest.mark.parametrize(("code", "calls"), [("0", "saved\nrequeue 12345\n"), ("137", "saved\n")])
def test_the_job_of_slurm_is_queued_again_after_a_signal_if_training_has_saved(slurm, tmp_path, code, calls):
    script = slurm(CODE=code)
    deadline = time.monotonic() + 30
    while not (tmp_path / "words").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    script.send_signal(signal.SIGTERM)
    assert script.wait(timeout=30) == int(code)
    assert (tmp_path / "calls").read_text() == calls
