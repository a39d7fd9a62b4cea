"""Sends the lines of a run to the user, to the log, or to both, and owns the live line that moves while it works.

A line for the user is written as it is, one at a time, and never across the live line. Internals are shown to a user
who asked for them (`-v`). Both are also in the log, with the time, if libraries write to one (etl/library_log.py).
"""

import sys
import textwrap
from collections.abc import Callable

from etl.console import OUT
from etl.library_log import log_line, screen
from etl.live import LiveLine, columns_of, is_terminal
from etl.terminal import Terminal, one_line


class Voice:
    """Writes lines; a plain function of one line makes a voice without a terminal.

    Args:
        write: gets each line for the user.
        is_verbose: whether the user sees internals.
        live: the line that moves; None for none.
        columns: returns the columns of the user's terminal, or None if lines are written as they are, however long.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        is_verbose: bool = False,
        live: LiveLine | None = None,
        columns: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._write = write
        self._is_verbose = is_verbose
        self.live = live
        self._columns = columns

    @property
    def columns(self) -> int | None:
        """Columns of the user's terminal; None if there is none."""
        return self._columns()

    def __call__(self, line: str) -> None:
        """A line for the user; only the terminal may break it, so it can be copied whole."""
        log_line(line)
        self._show(line)

    def wrapped(self, line: str) -> None:
        """Prose for the user: on a terminal it is broken between words and indented from its second line on."""
        log_line(line)
        columns = self.columns
        if columns is None:
            self._show(line)
            return
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        for piece in textwrap.wrap(line, max(columns, 40), subsequent_indent=indent, break_on_hyphens=False):
            self._show(piece)

    def detail(self, line: str) -> None:
        """A line about internals."""
        log_line(line)
        if self._is_verbose:
            self._show(line)

    def _show(self, line: str) -> None:
        if self.live is None:
            self._write(line)
            return
        with self.live.aside():
            self._write(line)


def voice_of(is_verbose: bool = False, to_stderr: bool = False) -> Voice:
    """The voice of a command line, on standard output or, if that is left to a result, on standard error.

    Args:
        is_verbose: whether the user sees internals.
        to_stderr: whether standard output is left to a result.
    """
    live = LiveLine(screen)

    def write(line: str) -> None:
        terminal = Terminal(file=screen(), soft_wrap=True) if to_stderr else OUT
        terminal.print(one_line(line))

    def columns() -> int | None:
        stream = screen() if to_stderr else sys.stdout
        return columns_of(stream) if is_terminal(stream) else None

    return Voice(write, is_verbose=is_verbose, live=live, columns=columns)
