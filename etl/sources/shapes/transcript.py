"""Rows that hold a whole conversation as one text: `\\n\\nHuman: …\\n\\nAssistant: …`, as Anthropic's HH has it.

A speaker's mark counts at the start of the text and behind `between`. Text before the first mark, or a text without
any, cannot be read. One regular expression a row, about 100 MB a CPU-second.
"""

import functools
import re
from typing import Any, Literal

from etl.config import Config
from etl.sources.shapes import dialogue
from etl.sources.shapes.described import Columns, Conversations, Described, Value, columns_of, converse_rows
from etl.sources.shapes.messages import Speaker
from etl.sources.shapes.turns import Turns, Unfit


class Marked(Config):
    """How a transcript marks who speaks."""

    marks: dict[str, Speaker | Literal["nobody"]] = {"Human:": "user", "Assistant:": "assistant", "System:": "system"}
    """The text before each turn, and its speaker; turns of `nobody` are dropped."""
    between: str = "\n\n"
    """The text before a mark that is not at the start of the transcript; may be empty."""

    def add(self, turns: Turns, text: str) -> None:
        """Add the messages of a transcript, white space round each removed.

        Raises:
            Unfit: it does not begin with a mark.
        """
        pieces = _split(self.between, tuple(self.marks)).split(text)
        if len(pieces) == 1 or pieces[0].strip():
            raise Unfit("no_speaker", f"the text does not begin with one of the marks {', '.join(self.marks)}")
        calls = dialogue.Calls()
        for mark, said in zip(pieces[1::2], pieces[2::2], strict=True):
            role = self.marks[mark]
            if role != "nobody" and (said.strip() or role != "system"):
                dialogue.add_message(turns, role, {}, said.strip(), calls)


@functools.cache
def _split(between: str, marks: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(marks, key=len, reverse=True)
    return re.compile(rf"(?:\A\s*|{re.escape(between)})({'|'.join(map(re.escape, longest_first))})")


class TranscriptShape(Marked, Described):
    """Rows with a whole conversation as one text."""

    shape: Literal["transcript"]
    text: str
    """Column of the transcript."""
    system: Value | None = None
    """Instructions before the conversation; an empty value makes no message."""

    @property
    def said(self) -> tuple[str, ...]:
        """The transcript and the instructions."""
        return columns_of(self.text, self.system)

    @property
    def needed(self) -> tuple[str, ...]:
        """The transcript."""
        return (self.text,)

    def converse(self, columns: Columns) -> Conversations:
        """The messages of each transcript."""

        def write(turns: Turns, row: tuple[Any, ...]) -> None:
            system, text = row
            turns.add_instructions(system)
            self.add(turns, text)

        rows = zip(columns.text(self.system).to_pylist(), columns.text(self.text).to_pylist(), strict=True)
        return converse_rows(rows, write)
