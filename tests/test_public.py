"""What people import keeps its name and its signature, which tests/frozen/signatures.json holds."""

import re
from pathlib import Path

import pytest

from tests.frozen import signatures, tables

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = (
    "concepts/deduplication",
    "concepts/models",
    "concepts/semantic",
    "how-to/dataflow",
    "how-to/rescoring",
    "reference/contract",
    "reference/library",
)
_IMPORT = re.compile(r"^\s*from ((?:etl|training)[\w.]*) import (.+)$", re.MULTILINE)
_NAME = re.compile(r"`((?:etl|training)(?:\.\w+)+)[.:](\w+)(?=[(`])")


@pytest.fixture(scope="module")
def made():
    return signatures.table()


def test_signatures_are_as_stored(made):
    found = tables.compare("signatures", tables.stored("signatures"), made)
    assert not found, "\n".join(map(str, ["not as in tests/frozen/signatures.json:", *found]))


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_for_python_is_frozen(page):
    text = (DOCS / f"{page}.md").read_text("utf-8")
    imported = [(module, name) for module, names in _IMPORT.findall(text) for name in names.split(", ")]
    # A bare module, such as etl.mixture.cluster_caps, is named with its contents after it.
    named = [(module, name) for module, name in _NAME.findall(text) if not _is_module(f"{module}.{name}")]
    assert {f"{module}:{name}" for module, name in [*imported, *named]} <= set(signatures.NAMES)


def _is_module(name: str) -> bool:
    path = DOCS.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def test_a_renamed_argument_is_told():
    name = "etl.stages.run:run_recipe"
    stored = tables.stored("signatures")
    renamed = {**stored, name: stored[name].replace("recipe:", "of:")}
    (found,) = tables.compare("signatures", stored, renamed)
    assert str(found).startswith(f"{name}: '(recipe: Recipe")
