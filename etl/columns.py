"""Text in columns of a terminal: an ideograph takes two columns, a combining mark none."""

from rich.cells import cell_len as width

__all__ = ["left", "right", "width"]


def left(text: str, columns: int) -> str:
    """The whole text, padded with spaces on the right to a number of columns."""
    return text + " " * (columns - width(text))


def right(text: str, columns: int) -> str:
    """The whole text, padded with spaces on the left to a number of columns."""
    return " " * (columns - width(text)) + text
