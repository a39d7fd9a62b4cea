"""A prompt put together from several columns: `{instruction}`, a blank line, `{input}`.

A paragraph is what stands between blank lines. One whose columns are all empty is left out with its blank line, so the
Alpaca rows without an `input` need no second template; a paragraph without columns always stands. `{{` and `}}` are
braces. Arrow kernels over whole columns, nothing a row.
"""

import functools
import string
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from etl.sources.shapes.described import Columns

_BLANK: Final = r"^\s*$"
Piece = tuple[str, str | None]
"""Text, and the column that follows it."""


@functools.cache
def paragraphs(template: str) -> tuple[tuple[Piece, ...], ...]:
    """The pieces of each paragraph.

    Raises:
        ValueError: a brace has no partner, or a column has no name.
    """
    found = []
    for paragraph in template.split("\n\n"):
        pieces = []
        for text, name, spec, conversion in string.Formatter().parse(paragraph):
            if name is not None and (not name or spec or conversion):
                raise ValueError(f"'{template}' is no template; name a column between braces, such as {{instruction}}")
            pieces.append((text, name))
        found.append(tuple(pieces))
    return tuple(found)


def columns_in(template: str) -> tuple[str, ...]:
    """The columns that a template names, each once."""
    return tuple(dict.fromkeys(name for pieces in paragraphs(template) for _, name in pieces if name is not None))


def first_columns(template: str) -> tuple[str, ...]:
    """The columns of the first paragraph that has any: a row without them has no prompt."""
    return next((names for pieces in paragraphs(template) if (names := tuple(n for _, n in pieces if n))), ())


def filled(template: str, columns: Columns) -> pa.Array:
    """string [rows]: the template with the columns of each row; "" where no paragraph has any text."""
    parts = [_paragraph(pieces, columns) for pieces in paragraphs(template)]
    if len(parts) == 1:
        return pc.fill_null(parts[0], "")
    # A row in which all parts are null would be missing in what pyarrow joins, and its place be another row's.
    parts[0] = pc.if_else(functools.reduce(pc.and_, map(pc.is_null, parts)), "", parts[0])
    return pc.binary_join_element_wise(*parts, "\n\n", null_handling="skip")


def _paragraph(pieces: tuple[Piece, ...], columns: Columns) -> pa.Array:
    texts = [columns.text(name) for _, name in pieces if name is not None]
    written: list[pa.Array | pa.Scalar] = []
    for text, name in pieces:
        written += [pa.scalar(text)] * bool(text)
        if name is not None:
            written.append(pc.fill_null(columns.text(name), ""))
    if not texts:
        return pa.repeat(pa.scalar("".join(text for text, _ in pieces)), len(columns))
    there = functools.reduce(pc.or_, (_has_text(text) for text in texts))
    joined = pc.binary_join_element_wise(*written, "")
    return pc.if_else(there, joined, pa.scalar(None, pa.string()))


def _has_text(text: pa.Array) -> pa.Array:
    return pc.invert(pc.fill_null(pc.match_substring_regex(text, _BLANK), True))
