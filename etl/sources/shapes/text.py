"""Rows that each hold one raw document: pre-training text, pages, files of code.

The document becomes one message of the role `text`. Arrow kernels alone, nothing a row.
"""

from typing import Literal

import pyarrow as pa

from etl.messages import structs
from etl.schema import MESSAGE, TEXT_ROLE
from etl.sources.shapes.described import Columns, Conversations, Described


class TextShape(Described):
    """Rows with one raw document each."""

    shape: Literal["text"]
    text: str
    """Column of the document."""

    @property
    def needed(self) -> tuple[str, ...]:
        """The document."""
        return (self.text,)

    @property
    def said(self) -> tuple[str, ...]:
        """The document."""
        return (self.text,)

    def converse(self, columns: Columns) -> Conversations:
        """One message a row, of the role `text`."""
        size = len(columns)
        values = structs({"role": pa.repeat(TEXT_ROLE, size), "content": columns.text(self.text).cast(pa.string())})
        messages = pa.ListArray.from_arrays(pa.array(range(size + 1), pa.int32()), values, type=pa.list_(MESSAGE))
        return Conversations(messages)
