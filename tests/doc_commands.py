"""The commands that README and docs print, block by block, and the page's note on a block that no test runs.

A block of commands is fenced as `sh`. The line before it may read `Not run here: REASON.` (nobody has run it for this
page) or `Not run by a test: REASON.` (too long for one). A usage line, with `[` or `…` in it, is no command.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((PROJECT / "docs").rglob("*.md")),
]
_ASSIGNMENT = re.compile(r"[A-Z_]+=")
_MARK = re.compile(r"^Not run (?:here|by a test): (.+)$")
_SHELL = {"&&", "||", "|", ";", ">", ">>", "<", "&"}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    """Of its first command, from 1."""
    text: str
    reason: str | None
    """Why no test runs it."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def lines(self) -> list[str]:
        """One command each; comments and the bodies of here-documents are left out."""
        text = re.sub(r"(<<-?\s*'?(\w+)'?[^\n]*\n).*?^\2$", r"\1", self.text, flags=re.MULTILINE | re.DOTALL)
        found, begun = [], ""
        for line in text.replace("\\\n", " ").splitlines():
            begun += line
            if begun.count("'") % 2 or begun.count('"') % 2:
                begun += "\n"
                continue
            if begun.strip() and not begun.lstrip().startswith("#"):
                found.append(begun.strip())
            begun = ""
        return found


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that are fenced as `sh`."""
    found = []
    lines = page.read_text("utf-8").splitlines()
    start, before = None, ""
    for number, line in enumerate(lines):
        if start is not None and line == "```":
            mark = _MARK.match(before)
            text = "\n".join(lines[start + 1 : number]) + "\n"
            found.append(Block(str(page.relative_to(PROJECT)), start + 2, text, mark and mark[1]))
            start, before = None, ""
        elif start is None and line == "```sh":
            start = number
        elif start is None and line.strip():
            before = line
    return found


def indented_commands(page: Path) -> list[str]:
    """Lines outside of fences that look like a command of ours, usage lines apart."""
    fenced, found = False, []
    for line in page.read_text("utf-8").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and line.startswith("    ") and not re.search(r"[\[…]", line):
            words = line.split()
            if len(words) > 1 and words[0] in ("stillhouse", "make", "spark-submit"):
                found.append(line.strip())
    return found


def words_of(line: str) -> list[list[str]]:
    """The words of each program that a line starts, without variables, redirections and comments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    programs: list[list[str]] = [[]]
    skip = False
    for word in lexer:
        if skip:
            skip = False
        elif word in ("&&", "||", "|", ";", "&"):
            programs.append([])
        elif word in _SHELL:
            skip = True
        elif programs[-1] or not _ASSIGNMENT.match(word):
            programs[-1].append(word)
    return [words for words in programs if words]
