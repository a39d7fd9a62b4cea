"""Every command of README and docs: taken by the real parsers, and run here, by another test, or marked with a reason.

Pages whose blocks build on each other are run from top to bottom by tests of their own; what is left is run here in a
folder that holds a small run, where a word in capitals is replaced by what this test has for it.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from etl.console import AllowCode, ConfFlag, Overrides
from jobs.cli import app
from jobs.run_recipe import LabelFlag
from tests.acme import FILES
from tests.doc_commands import PAGES, PROJECT, blocks, indented_commands, words_of
from tests.training.corpora import write_corpus

RUN_WHOLE = {
    "docs/how-to/your-data.md": "tests/test_docs.py",
    "docs/tutorials/distil.md": "tests/test_tutorials.py",
    "docs/tutorials/notebook.md": "tests/test_tutorials.py",
    "docs/tutorials/own-data.md": "tests/test_tutorials.py",
    "docs/tutorials/student.md": "tests/test_tutorials.py",
}
"""Page -> the test that runs its blocks in order."""
RUN_ELSEWHERE = {
    r"make (venv|test|test-slow)\b": (".ci/run", "make test-slow"),
    r"make docs\b": ("tests/test_site.py", "mkdocs"),
    r"make demo\b": ("tests/jobs/test_demo.py", "demo"),
    r"make dist\b": ("tests/wheel.py", "wheel"),
    r"spark-submit --py-files dist/stillhouse.zip jobs/run_recipe.py --conf conf/recipes/demo.yaml": (
        "tests/jobs/test_spark_submit.py",
        "demo",
    ),
}
"""Command -> who runs it: a file, and what of it."""
STANDS_FOR = {"CONF": "training.yaml", "DIR": "out/made"}
"""What this test has for a word in capitals."""
TARGETS = set(re.findall(r"^([\w-]+):.*## ", (PROJECT / "Makefile").read_text("utf-8"), re.MULTILINE))
ALL = [block for page in PAGES for block in blocks(page)]
RUN_HERE = sorted({block.page for block in ALL if block.reason is None} - set(RUN_WHOLE))


def parse(words):
    """Raises where one of our programs does not take these words; others are not looked at."""
    if words[0] == "stillhouse":
        name, *rest = words[1:]
        typer.main.get_command(app).commands[name].make_context(name, rest)
    elif words[0] == "make":
        targets = words[3:] if words[1] == "-C" else words[1:]
        assert {word for word in targets if "=" not in word} <= TARGETS
    elif words[:2] == ["python", "-m"] and words[2].startswith(("jobs.", "training.")):
        _take(importlib.import_module(words[2])._job, words[3:])
    elif words[0] in ("spark-submit", "deepspeed"):
        scripts = [place for place, word in enumerate(words) if re.search(r"jobs/\w+\.py$", word)]
        if scripts:
            (place,) = scripts
            assert (PROJECT / "jobs" / Path(words[place]).name).exists()
            rescores = words[place].endswith("rescore.py")
            _take(importlib.import_module("jobs.rescore")._job if rescores else _recipe_job, words[place + 1 :])


def _recipe_job(name: ConfFlag, set_: Overrides, stage: LabelFlag = None, allow_code: AllowCode = False) -> None:
    """The options of jobs/run_recipe.py and of jobs/stage_KIND.py."""


def _take(function, words):
    single = typer.Typer(add_completion=False)
    single.command()(function)
    typer.main.get_command(single).make_context("job", words[: words.index("--")] if "--" in words else words)


@pytest.mark.parametrize("block", ALL, ids=str)
def test_every_command_is_one_that_its_program_takes(block):
    for line in block.lines:
        for words in words_of(line):
            parse(["0" if re.fullmatch("[A-Z]", word) else word for word in words])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_commands_are_in_blocks_that_these_tests_read(page):
    """The generated page of commands and the contract's synopsis are held by tests of their own."""
    assert page.name in ("commands.md", "contract.md") or indented_commands(page) == []


@pytest.mark.parametrize(("file", "part"), [*((name, "") for name in RUN_WHOLE.values()), *RUN_ELSEWHERE.values()])
def test_who_runs_the_others_is_there(file, part):
    assert part in (PROJECT / file).read_text("utf-8")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What a reader has: rows, a corpus, a training configuration, and the files that the pages print."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    (folder / "acme_filters" / "__init__.py").touch()
    training = (PROJECT / "conf" / "training" / "demo.yaml").read_text("utf-8")
    changed = training.replace("lanes: 4", "lanes: 32").replace("out/demo/corpus", "out/made/corpus")
    (folder / "training.yaml").write_text(changed, "utf-8")
    write_corpus(folder / "out" / "made" / "corpus")
    rows = [
        {
            "prompt": f"How is rye milled in step {number}?",
            "response": f"Between stones {number} and {number * 7 % 31}.",
        }
        for number in range(30)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


def script_of(page):
    """The commands of a page, without those that are run elsewhere or not at all."""
    lines = []
    for block in ALL:
        if block.page == page and block.reason is None:
            lines += [line for line in block.text.splitlines() if not re.match("|".join(RUN_ELSEWHERE), line)]
    return re.sub("|".join(rf"\b{word}\b" for word in STANDS_FOR), lambda found: STANDS_FOR[found[0]], "\n".join(lines))


@pytest.mark.parametrize("page", RUN_HERE)
def test_the_commands_of_a_page_run(page, inputs, tmp_path):
    folder = shutil.copytree(inputs, tmp_path / "folder")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script_of(page)],
        cwd=folder, env={**os.environ, "PATH": path}, text=True, capture_output=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
