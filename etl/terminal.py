"""What foreign text may do to the screen: nothing. Control characters are shown as escapes, values are cut short.

File names, hosts, answers of servers and values of a configuration end in lines for people. A terminal obeys what such
a text holds: ESC sequences clear it or set its title, bidirectional overrides show a name as another one, lone
surrogates cannot be encoded at all. Every line of ours goes through a `Terminal`, so nobody else has to think of it.
Costs one regular expression a line.
"""

import logging
import re
import reprlib
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""All control characters but the line feed, separators of lines, bidirectional overrides, surrogates."""
_MAX_CHARS = 200


def printable(text: str) -> str:
    """The text with control characters as escapes, such as `\\x1b`; line feeds stay."""
    return _UNSEEN.sub(lambda found: repr(found.group())[1:-1], text)


def one_line(text: str) -> str:
    """The text as `printable` has it, with line feeds as escapes, too."""
    return printable(text).replace("\n", "\\n")


def message(text: str) -> str:
    """The text as `printable` has it; lines after the first are indented, so that none of them passes for another."""
    first, *more = printable(text).split("\n")
    return "\n".join([first, *(line if line.startswith(" ") else f"  {line}" for line in more)])


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxlong, self.maxother = 4, _MAX_CHARS, 60, _MAX_CHARS
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 8

    def repr_Plain(self, value: Any, level: int) -> str:  # named after the class of etl/yaml_text.py
        return self.repr1(value.value, level)


_SHORT = _Short()


def shown(value: object) -> str:
    """The value as Python writes it, for an error; of a long one some hundred characters."""
    text = _SHORT.repr(value)
    return text if len(text) <= 2 * _MAX_CHARS else f"{text[:_MAX_CHARS]} ... {text[-_MAX_CHARS // 2 :]}"


class Terminal(Console):
    """A rich Console on which text is text: no markup, no emoji codes, no control characters but its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of what is shown, those of text printable."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


class PrintableFormatter(logging.Formatter):
    """For a handler of logging that writes to the screen."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a message."""
        return message(super().format(record))
