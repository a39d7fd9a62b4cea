"""What a process loads: the command line no torch, engine or JVM; a training configuration no framework but torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.etl.stages.toys import FILTER, make_recipe, mixed_rows, write_parquet

PROJECT = Path(__file__).resolve().parents[1]
ENGINES = {"pyspark", "apache_beam"}
FRAMEWORKS = {"deepspeed", "peft", "transformers", "accelerate"}
HEAVY = {"torch", *FRAMEWORKS, *ENGINES}


def loaded(code, *arguments, exit_code=0):
    """Which of HEAVY a process has loaded when it has run some code."""
    program = f"import atexit, sys\natexit.register(lambda: print('loaded', *{HEAVY!r} & set(sys.modules)))\n{code}"
    command = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=False)
    assert done.returncode == exit_code, done.stderr
    return set(done.stdout.splitlines()[-1].split()) - {"loaded"}


@pytest.mark.parametrize("module", ["jobs.cli", "etl.stages", "etl.pipeline", "etl.sources.sample"])
def test_importing_loads_no_engine_and_no_torch(module):
    assert loaded(f"import {module}") == set()


def test_configuration_schedule_stream_and_dry_run_load_no_framework_but_torch():
    modules = ("training.config", "training.stages.schedule", "training.stages.stream", "training.stages.dry_run")
    assert loaded(f"import {', '.join(modules)}") <= {"torch"}


def test_a_dry_run_misses_the_corpus_before_it_loads_a_model(tmp_path):
    sets = (f"data.corpus={tmp_path / 'none'}", f"output={tmp_path / 'student'}")
    words = ["train", "demo", "--dry-run", *(word for pair in sets for word in ("--set", pair))]
    assert loaded("from jobs.cli import main; sys.exit(main())", *words, exit_code=2) <= {"torch"}


RUN = """
from etl import conf
from etl.run.recipe import Recipe
from etl.run.run import run_recipe
from tests.engines.inprocess import InProcessEngine
run_recipe(conf.load(Recipe, sys.argv[1], "recipes", []), InProcessEngine(), print)
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Recipe, output, and what the process that ran the one into the other had loaded."""
    folder = tmp_path_factory.mktemp("imports")
    source = write_parquet(folder / "a.parquet", mixed_rows(40))
    stages = ("filter", "dedup", "tokenize", "split", "layout")
    recipe = make_recipe(folder / "out", {"a": source}, stages=stages, filter=FILTER)
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe.model_dump(mode="json", exclude_unset=True)))
    return path, folder / "out", loaded(RUN, path)


def test_a_run_without_model_steps_loads_no_torch(output):
    assert output[2] == set()


@pytest.mark.parametrize("command", ["--help", "plan RECIPE", "verify OUT", "sweep OUT", "catalog OUT"])
def test_commands_that_look_at_a_run_load_no_torch(output, command):
    places = {"RECIPE": output[0], "OUT": output[1]}
    words = [places.get(word, word) for word in command.split()]
    assert loaded("from jobs.cli import main; sys.exit(main())", *words) == set()
