"""The tutorials: their commands run in the order of the pages in one folder, and what the pages say of the results.

One run serves all tests. Commands that need torch and blocks of Python run in this process, which loads torch once; the
others run in a shell, as a reader types them. A line that a page shows is one that was printed, decimals within 5 %;
`…` stands for what a page leaves out.
"""

import ast
import contextlib
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
from typer.testing import CliRunner

from etl.storage.dataset import Dataset
from jobs.cli import app
from tests.environment import PROJECT

# DeepSpeed and what it imports late use deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")

TUTORIALS = PROJECT / "docs" / "tutorials"
PAGES = ("own-data", "student", "distil", "notebook")
"""In the order in which a reader takes them."""
DONE = {
    "git clone REPOSITORY stillhouse": "the tests run in a checkout",
    "make -C stillhouse venv": "the tests run in what it makes",
    "source stillhouse/.venv/bin/activate": "the tests run with its Python, whose folder is put on PATH",
}
"""What the environment of these tests has done already, and how."""
IN_PROCESS = ("train", "rescore", "export", "evaluate")
"""Commands that load torch, which takes longer than their work here."""
LOSS = "stillhouse train demo --set data.corpus=mine_corpus/corpus --set output=student"
"""The command at which a newcomer sees the loss of a trained student."""
NOT_RUN = re.compile(r"^Not run here: .+$")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    text: str
    before: str
    """The line of text before it."""


@dataclass(frozen=True)
class Ran:
    """A command, or a cell of a notebook, with what it printed and what its page shows of that."""

    page: str
    command: str
    printed: str
    shown: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    text = (TUTORIALS / f"{page}.md").read_text("utf-8")
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(one[1], one[2], _line_before(text[: one.start()])) for one in found]


def _line_before(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def steps(page: str) -> Iterator[tuple[str, str, str]]:
    """(language, command or cell, what the page shows of its output), in their order."""
    found = blocks(page)
    for block, after in zip(found, [*found[1:], None], strict=True):
        if block.language in ("sh", "python") and not NOT_RUN.match(block.before):
            each = commands(block.text) if block.language == "sh" else [block.text]
            shown = after.text if after is not None and after.language == "text" else ""
            for command in each:
                yield block.language, command, shown if command == each[-1] else ""


def commands(text: str) -> list[str]:
    """The commands of a block: a line each, with continuations and the bodies of here-documents."""
    return re.findall(r".*<<'EOF'\n(?:.*\n)*?EOF\n|(?:.*\\\n)*.+\n", text)


# --- running ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def own_tables() -> Iterator[None]:
    """A database of its own for what a page asks: a view of another test may have the name of a page's variable."""
    before = duckdb.default_connection()
    duckdb.set_default_connection(duckdb.connect())
    try:
        yield
    finally:
        duckdb.set_default_connection(before)


def run(command: str) -> str:
    """What a command prints; it has to succeed."""
    words = [] if "<<" in command else shlex.split(command.replace("\\\n", " "))
    if words[:1] == ["stillhouse"] and words[1] in IN_PROCESS:
        ended = CliRunner().invoke(app, words[1:])
        assert ended.exit_code == 0, f"{command}{ended.output}{ended.exception!r}"
        return ended.output
    body = re.fullmatch(r"python - <<'EOF'\n(.*)EOF\n", command, re.DOTALL)
    if body is not None:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(body[1], {})
        return said.getvalue()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, f"{command}{done.stdout}"
    return done.stdout


def run_cell(cell: str, names: dict[str, Any]) -> str:
    """What a notebook shows of a cell: its last expression."""
    *others, last = ast.parse(cell).body
    exec(compile(ast.Module(others, []), "cell", "exec"), names)
    if not isinstance(last, ast.Expr):
        exec(compile(ast.Module([last], []), "cell", "exec"), names)
        return ""
    return str(eval(compile(ast.Expression(last.value), "cell", "eval"), names))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tutorials")


@pytest.fixture(scope="module")
def ran(folder: Path) -> list[Ran]:
    """All commands of all pages, run in one folder."""
    found: list[Ran] = []
    cells: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch, own_tables():
        patch.chdir(folder)
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", str(PROJECT))
        patch.setenv("COLUMNS", "120")
        patch.setenv("STILLHOUSE_RUN", str(folder / "mine_corpus"))
        patch.setenv("STILLHOUSE_STUDENT", str(folder / "student"))
        for page in PAGES:
            for language, command, shown in steps(page):
                if language == "python":
                    printed = run_cell(command, cells)
                else:
                    printed = "" if command.strip() in DONE else run(command)
                found.append(Ran(page, command.strip(), printed, shown))
    return found


# --- what the pages show ----------------------------------------------------------------------------------------------


def agree(shown: str, printed: str) -> bool:
    """Whether a line of a page is one that was printed: equal, but for `…`, spaces and the last digits of decimals."""
    decimal = r"-?\d+\.\d+(?:e[-+]\d+)?"
    words = " ".join(re.sub(decimal, "\0", shown).split())
    pattern = re.escape(words).replace("…", ".*?").replace("\0", f"({decimal})")
    found = re.fullmatch(pattern, " ".join(printed.split()))
    return found is not None and all(
        math.isclose(float(one), float(other), rel_tol=0.05, abs_tol=1e-3)
        for one, other in zip(re.findall(decimal, shown), found.groups(), strict=True)
    )


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_what_its_commands_print(ran, page):
    for one in (one for one in ran if one.page == page):
        printed = iter(one.printed.splitlines())
        for line in one.shown.splitlines():
            if line.strip() != "…":
                assert any(agree(line, other) for other in printed), f"{line!r} of {one.command}\n\n{one.printed}"


def test_a_line_agrees_in_all_but_what_a_page_leaves_out():
    assert agree("loss 12.2 -> 7.16  …/student", "loss 12.21 ->  7.0 /tmp/a/student")
    assert not agree("loss 12.2 -> 7.16", "loss 12.21 -> 6.0")
    assert not agree("17 steps", "18 steps")


def test_from_a_clone_to_the_loss_of_a_student_are_at_most_15_commands(ran):
    path = [one.command for one in ran]
    assert path.index(LOSS) + 1 == 15
    assert "15 commands" in (TUTORIALS / "own-data.md").read_text("utf-8")
    assert "command 15" in (TUTORIALS / "student.md").read_text("utf-8")


# --- what came out ----------------------------------------------------------------------------------------------------


def test_the_corpus_holds_each_kept_row_once_and_the_others_have_their_reason(ran, folder):
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text("utf-8").splitlines()[:-1]]
    dropped = duckdb.sql(f"select source_example_id, reason from '{folder}/mine_corpus/dropped/*.parquet'").fetchall()
    reasons = Counter(reason for _, reason in dropped)
    by_language = {name for name, reason in dropped if reason == "language_not_kept"}
    judged = [row for row in rows if row["id"] not in by_language and row["answer"]]
    distinct = {(row["question"], row["answer"]) for row in judged}
    corpus = Dataset.open(str(folder / "mine_corpus" / "corpus")).manifest
    assert reasons == {
        "blank_answer": 1,
        "language_not_kept": 179,
        "exact_duplicate": len(judged) - len(distinct),
        "near_duplicate": len(distinct) - corpus.rows_out,
    }
    assert corpus.rows_out == 246
    assert Dataset.open(str(folder / "mine_corpus" / "quarantine")).manifest.rows_out == 1


def test_the_description_is_the_one_that_the_page_shows(ran, folder):
    (shown,) = [block.text for block in blocks("own-data") if block.language == "yaml"]
    assert (folder / "mine" / "mine.yaml").read_text("utf-8") == shown


def records(student: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (student / "metrics.jsonl").read_text("utf-8").splitlines()]


def test_the_student_resumes_and_its_loss_falls_as_far_as_the_page_says(ran, folder):
    of_steps = [record for record in records(folder / "student") if "loss" in record]
    assert [record["step"] for record in of_steps] == list(range(1, len(of_steps) + 1))
    (shown,) = [one.shown for one in ran if one.command == LOSS]
    first, last, held_out = map(float, re.findall(r"loss ([\d.]+) -> ([\d.]+), held out [\d.]+ -> ([\d.]+)", shown)[0])
    losses = [record["loss"] for record in of_steps]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[0] == pytest.approx(math.log(201_088), abs=0.2) == pytest.approx(first, abs=0.2)
    assert losses[-1] <= 1.05 * last
    evaluated = [record["held_out"] for record in records(folder / "student") if "held_out" in record]
    assert evaluated[-1] <= 1.05 * held_out < 0.75 * evaluated[0]


def test_the_smaller_student_learns_from_the_teacher(ran, folder):
    evaluated = [record["held_out"] for record in records(folder / "y") if "held_out" in record]
    assert evaluated[-1] < evaluated[0] - 0.5
    found = json.loads((folder / "compared" / "evaluation.json").read_text("utf-8"))["results"]["held_out"]
    assert found["x"]["kl"] == pytest.approx(0, abs=1e-6)
    assert 0 < found["model"]["kl"] < math.log(201_088)
    assert found["model"]["loss"] == pytest.approx(evaluated[-1], rel=0.02)


def test_the_cells_of_the_page_are_those_of_the_notebook():
    notebook = json.loads((PROJECT / "notebooks" / "look_at_a_run.ipynb").read_text("utf-8"))
    cells = ["".join(cell["source"]) + "\n" for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [block.text for block in blocks("notebook") if block.language == "python"] == cells
