"""A step that adds columns of types that Arrow and Spark write differently; workers import it."""

import datetime
import decimal
from typing import ClassVar, Literal

import pyarrow as pa

from etl.step import Step, append

VALUES = {
    "at": (datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC), pa.timestamp("s", "Asia/Tokyo")),
    "seen": (datetime.datetime(2026, 1, 2, 3, 4, 5, 600_000), pa.timestamp("ms")),
    "took": (datetime.timedelta(seconds=90), pa.duration("s")),
    "day": (datetime.date(2026, 1, 2), pa.date32()),
    "price": (decimal.Decimal("12.50"), pa.decimal256(10, 2)),
    "word": ("w", pa.dictionary(pa.int8(), pa.string())),
    "counts": ([("a", [1, None])], pa.map_(pa.string(), pa.large_list(pa.int16()))),
    "code": (b"\x00\xff", pa.binary(2)),
}


class StampStep(Step):
    """Adds the same values to each row."""

    kind: Literal["stamp"] = "stamp"
    adds: ClassVar[pa.Schema] = pa.schema([(name, kind) for name, (_, kind) in VALUES.items()])

    def open(self):
        return self._apply

    def _apply(self, batch):
        return append(batch, self.adds, [pa.array([value] * batch.num_rows, kind) for value, kind in VALUES.values()])
