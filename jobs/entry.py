"""What every entry point shares: the four errors become one line and exit code 2, lines go to the user."""

import sys
from collections.abc import Callable

from rich.console import Console

from etl.errors import StillhouseError

OUT = Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)


def report(line: str) -> None:
    """One line for the user."""
    OUT.print(line, markup=False)


def main_of(run: Callable[[], int]) -> int:
    """The exit code of a job; bad input is a message without a traceback, everything else keeps its traceback."""
    try:
        return run()
    except StillhouseError as error:
        ERR.print(f"{type(error).__name__}: {error}", markup=False, style="red" if sys.stderr.isatty() else None)
        return 2
