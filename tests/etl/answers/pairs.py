"""The table of pairs that were decided by hand."""

import re
from pathlib import Path

OUTCOMES = {"=": "equal", "!": "different", "?": "unparseable"}


def hand_decided():
    """(outcome, answer, expected) of every line of pairs.tsv."""
    lines = (Path(__file__).parent / "pairs.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("# ")]
    return [(OUTCOMES[mark], _letters(answer), _letters(expected)) for mark, answer, expected in rows]


def _letters(text):
    return re.sub(r"<U\+([0-9A-F]{4})>", lambda found: chr(int(found[1], 16)), text)
