"""What entry points share: the four errors become one line and exit code 2, lines go to the user, recipes are named."""

import argparse
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


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a job that runs a recipe: `conf`, its name, and `set`, a list of overrides."""
    parser.add_argument("--conf", required=True, help="recipe: a shipped name, a path or a URI")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override; @FILE is its text")
