"""Keeps foreign text from controlling the terminal: control characters are shown as escapes, long values are truncated.

File names, hosts, server responses and values of a configuration end up in lines for people. A terminal executes what
such text contains: ESC sequences clear the screen or set its title, bidirectional overrides disguise a name, and lone
surrogates cannot be encoded. All our lines are printed by a `Terminal`, so no other code has to handle this. Costs one
regular expression per line.
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
    """The text with control characters as escapes, such as `\\x1b`; line feeds are kept."""
    return _UNSEEN.sub(lambda found: repr(found.group())[1:-1], text)


def one_line(text: str) -> str:
    """The text as from `printable`, with line feeds as escapes as well."""
    return printable(text).replace("\n", "\\n")


def message(text: str) -> str:
    """The text as from `printable`, with lines after the first indented, so that none can pose as a line of ours."""
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
    """The value as Python's repr, for an error; a long one is truncated to some hundred characters."""
    text = _SHORT.repr(value)
    return text if len(text) <= 2 * _MAX_CHARS else f"{text[:_MAX_CHARS]} ... {text[-_MAX_CHARS // 2 :]}"


class Terminal(Console):
    """A rich Console on which text is text: no markup, no emoji codes, no control characters but its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments to show, with printable text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


class PrintableFormatter(logging.Formatter):
    """For a handler of logging that writes to the screen."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a message."""
        return message(super().format(record))
