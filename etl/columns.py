"""Text in columns of a terminal: an ideograph takes two columns, a combining mark none."""

from rich.cells import cell_len as width
from rich.cells import set_cell_size

__all__ = ["cut", "left", "right", "width"]


def left(text: str, columns: int) -> str:
    """The whole text, padded with spaces on the right to a number of columns."""
    return text + " " * (columns - width(text))


def right(text: str, columns: int) -> str:
    """The whole text, padded with spaces on the left to a number of columns."""
    return " " * (columns - width(text)) + text


def cut(text: str, columns: int) -> str:
    """The text if it has no more columns; else its beginning and an ellipsis."""
    if width(text) <= columns:
        return text
    return f"{set_cell_size(text, columns - 1).rstrip()}…" if columns > 0 else ""
