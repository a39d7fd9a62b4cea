"""The line that shows the progress of some work: repainted on a terminal; without one, a plain line now and then.

On a terminal it is cut to the width, so that it fits on one line, and disappears when other lines are written or the
work ends. Without one (a log, a pipe, a cluster's driver) it is written whole, at most once per `pause_s`, so that a
long silence never looks like a hang. Several threads may use it. Costs one write per repaint.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from etl.columns import cut
from etl.terminal import one_line

PAUSE_S = 30.0
"""Seconds between two plain lines."""
_ERASE = "\r\x1b[2K"
_COLUMNS = 80
"""Width of a terminal that does not report one."""


class LiveLine:
    """One line about work in progress.

    Args:
        stream: returns the stream at each use, since a program may redirect it meanwhile.
        clock: returns seconds.
        pause_s: without a terminal, the least time between a line and the next one of this kind.
    """

    def __init__(
        self, stream: Callable[[], TextIO], clock: Callable[[], float] = time.monotonic, pause_s: float = PAUSE_S
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.RLock()
        self._is_shown = False
        self._last_s = clock()
        self.pause_s = pause_s

    @property
    def moves(self) -> bool:
        """Whether the stream is a terminal on which a line can be repainted, or leads to one."""
        leads_there = os.environ.get("TTY_INTERACTIVE") == "1"  # rich's variable; a supervisor sets it for its ranks
        return (leads_there or is_terminal(self._stream())) and os.environ.get("TERM", "dumb") != "dumb"

    def show(self, text: str) -> None:
        """Show the current progress."""
        line, stream = one_line(text), self._stream()
        with self._lock:
            if self.moves:
                # The last column is left empty: some terminals begin a new line as soon as it is written.
                stream.write(f"{_ERASE}{cut(line, columns_of(stream) - 1)}")
                self._is_shown = True
            elif self._clock() - self._last_s >= self.pause_s:
                stream.write(f"{line}\n")
                self._last_s = self._clock()
            stream.flush()

    def clear(self) -> None:
        """Remove the line from the screen."""
        with self._lock:
            if self._is_shown:
                stream = self._stream()
                stream.write(_ERASE)
                stream.flush()
                self._is_shown = False

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Inside, what others write to standard error and output does not mix with the line."""
        with contextlib.ExitStack() as stack:
            if self.moves:
                stack.enter_context(contextlib.redirect_stderr(cast(TextIO, _Aside(sys.stderr, self))))
                stack.enter_context(contextlib.redirect_stdout(cast(TextIO, _Aside(sys.stdout, self))))
            yield

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, other lines can be written, to this stream or another one of the same screen."""
        with self._lock:
            self.clear()
            yield
            self._last_s = self._clock()


class _Aside:
    """A stream that removes the live line from the screen before each write."""

    def __init__(self, stream: TextIO, line: LiveLine) -> None:
        self._stream = stream
        self._line = line

    def write(self, text: str) -> int:
        with self._line.aside():
            return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is shown on a terminal."""
    return not stream.closed and stream.isatty()


def columns_of(stream: TextIO) -> int:
    """Columns of a terminal; for a stream that leads to one, the variable COLUMNS has them."""
    try:
        found = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        found = 0
    told = os.environ.get("COLUMNS", "")
    return found or (int(told) if told.isdecimal() else 0) or _COLUMNS


def duration(seconds: float) -> str:
    """A duration such as `0.4 s`, `12 s`, `3m 05s`, `2h 07m`, `3d 04h`."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes}m {rest:02d}s"
    days, hours = divmod(hours, 24)
    return f"{days}d {hours:02d}h" if days else f"{hours}h {minutes:02d}m"


def amount(number: float) -> str:
    """A number rounded for a quick look: `7`, `4,871`, `49k`, `1.2M`, `13M`."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            scaled = number / (1e3 if sign == "k" else size)
            return f"{scaled:.1f}{sign}" if scaled < 9.95 else f"{scaled:,.0f}{sign}"
    return f"{number:,.0f}"


def rate(number: float, seconds: float) -> str:
    """An amount per second; `-` if no time has passed."""
    if seconds <= 0:
        return "-"
    found = number / seconds
    return f"{found:.1f}" if 0 < found < 9.95 else amount(found)
