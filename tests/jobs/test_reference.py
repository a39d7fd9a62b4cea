"""The generated pages of the reference: as the code makes them, and with every key."""

from pathlib import Path

import pytest

from etl.keys import models_of
from jobs.reference import CONFIGURATIONS, pages

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"
PAGES = pages()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_as_the_code_makes_it(name):
    assert (FOLDER / name).read_text("utf-8") == PAGES[name], "run `make reference`, and commit what it writes"


def test_every_key_is_there_and_explained():
    lines = PAGES["configuration.md"].splitlines()
    for root in (root for roots in CONFIGURATIONS.values() for root in roots):
        for model in models_of(root):
            assert f"### {model.name}" in lines
            silent = [key.name for key in model.keys if not key.doc and key.name not in ("kind", "shape")]
            assert not silent, f"{model.name} does not say what {silent} are; give each a docstring"


def test_every_command_is_there():
    assert "## ingest\n" in PAGES["commands.md"]
    assert "| `--engine spark\\|local\\|beam` |" in PAGES["commands.md"]
