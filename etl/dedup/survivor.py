"""Decides which of several duplicates is kept: a number for each row, where smaller is better.

The high half is the place of the row's source in a stated priority, the low half an order-preserving form of a score.
Ties are decided by the caller's next sort key: the row's digest among equal contents, the id among similar ones.
"""

from collections.abc import Collection
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I64
from etl.config import Config
from etl.errors import SchemaError
from etl.hashing import ordered_bits
from etl.step import OF_THE_INPUT

_LAST: Final = np.uint32(0xFFFFFFFF)


class Survivor(Config):
    """Which row of a group of duplicates is kept: by source, then by score, then the smallest id."""

    sources: tuple[str, ...] = ()
    """Sources of the recipe in order of preference, best first; unlisted ones come after them and are equal."""
    score: str | None = None
    """Numeric column that an earlier stage wrote; rows without a value come last."""
    highest: bool = True
    """Whether the row with the highest or the lowest score is kept."""

    @property
    def reads(self) -> list[str]:
        """The columns that `preference` needs."""
        return ["source_dataset", *([self.score] if self.score else [])]

    def check(self, schema: pa.Schema) -> None:
        """Refuse a score column that does not exist.

        Raises:
            SchemaError: naming the column and those that exist.
        """
        if self.score is None:
            return
        if self.score not in schema.names:
            raise SchemaError(
                f"survivor.score: no earlier stage adds the column '{self.score}'; the columns are {schema.names}; "
                f"{OF_THE_INPUT}"
            )
        kind = schema.field(self.score).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise SchemaError(f"survivor.score: column '{self.score}' is {kind}, but numbers are needed")

    def check_sources(self, where: str, known: Collection[str]) -> None:
        """Refuse a priority that names an unknown source.

        Raises:
            ValueError: naming the source and the known ones.
        """
        unknown = sorted(set(self.sources) - set(known))
        if unknown:
            raise ValueError(f"{where}.survivor.sources names {unknown}; the recipe's sources are {sorted(known)}")

    def preference(self, batch: pa.RecordBatch) -> I64:
        """The number of each row, int64 [rows] >= 0; the smallest of a group is kept."""
        place = np.full(batch.num_rows, len(self.sources), np.int64)
        if self.sources:
            found = pc.index_in(batch.column("source_dataset"), value_set=pa.array(self.sources, pa.string()))
            place = pc.fill_null(found, len(self.sources)).to_numpy(zero_copy_only=False).astype(np.int64)
        return place << np.int64(32) | self._by_score(batch)

    def _by_score(self, batch: pa.RecordBatch) -> I64:
        if self.score is None:
            return np.zeros(batch.num_rows, np.int64)
        column = batch.column(self.score).cast(pa.float32(), safe=False)
        known = pc.and_(column.is_valid(), pc.invert(pc.fill_null(pc.is_nan(column), True)))
        bits = ordered_bits(pc.if_else(known, column, pa.scalar(0, pa.float32())).to_numpy(zero_copy_only=False))
        bits = ~bits if self.highest else bits
        return np.where(known.to_numpy(zero_copy_only=False), np.minimum(bits, _LAST - 1), _LAST).astype(np.int64)
