"""The commands that the how-to pages print, run as printed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from etl.storage.dataset import Dataset

PROJECT = Path(__file__).resolve().parents[1]
YOUR_DATA = PROJECT / "docs" / "how-to" / "your-data.md"


def sections(page):
    """Heading -> its blocks of shell commands, of those that have some."""
    parts = re.split(r"^## (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)[1:]
    blocks = {
        title: re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }
    return {title: found for title, found in blocks.items() if found}


def run(blocks, folder):
    """What the commands of a section print, from an empty folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=folder, env={**os.environ, "PATH": path}, text=True, capture_output=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(params=sections(YOUR_DATA))
def example(request, tmp_path):
    return request.param, tmp_path, run(sections(YOUR_DATA)[request.param], tmp_path)


KEPT = {
    "Your own JSON Lines": {"tickets_rows": 3},
    "An Alpaca file": {"alpaca_rows": 2},
    "Chat logs": {"chat_rows": 2, "sharegpt_rows": 1},
    "Preference pairs": {"pair_rows": 1},
    "When rows do not get in": {"other_rows": 0},
}
"""Rows that `stillhouse ingest` keeps, by section and output."""
CORPUS = {
    "Your own JSON Lines": {"mine_corpus": 3},
    "CSV": {"reviews_corpus": 2},
    "Raw text": {"notes_corpus": 3},
}


def test_an_example_runs_and_keeps_what_the_page_says(example):
    title, folder, printed = example
    accounts = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert [account["kept"] for account in accounts] == list(KEPT.get(title, {}).values())
    for account in accounts:
        assert account["rows_in"] + account["made"] == account["kept"] + account["dropped"] + account["quarantined"]
    corpora = {name: Dataset.open(folder / name / "corpus").manifest.rows_out for name in CORPUS.get(title, {})}
    assert corpora == CORPUS.get(title, {})
