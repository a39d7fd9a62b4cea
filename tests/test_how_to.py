"""The files that the how-to pages of extensions print: their tests pass as they are, their configurations are read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from etl import conf
from etl.run.recipe import Recipe
from tests.acme import FILES, NAME, importable
from training.config import TrainConfig

PROJECT = Path(__file__).resolve().parents[1]
RECIPES = sorted(name for name, text in FILES.items() if name.endswith(".yaml") and "\nsources:" in text)
TRAININGS = sorted(name for name, text in FILES.items() if name.endswith(".yaml") and "\noptimizer:" in text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a reader has who has written down every file of the pages."""
    root = tmp_path_factory.mktemp("how_to")
    (root / NAME).mkdir()
    (root / NAME / "__init__.py").touch()
    for name, text in FILES.items():
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_the_tests_of_the_pages_pass(folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": f"{folder}{os.pathsep}{PROJECT}"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "6 passed" in done.stdout


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
