"""Text in columns of a terminal, in which an ideograph takes two and a combining mark none."""

from rich.cells import cell_len as width

__all__ = ["left", "right", "width"]


def left(text: str, columns: int) -> str:
    """The whole text, with spaces behind it up to a number of columns."""
    return text + " " * (columns - width(text))


def right(text: str, columns: int) -> str:
    """The whole text, with spaces before it up to a number of columns."""
    return " " * (columns - width(text)) + text
