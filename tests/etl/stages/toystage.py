"""A stage in one file: what adding one takes beside its line in a recipe's union."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc

from etl.accounting import judged
from etl.rows import Rows, RowsRef
from etl.schema import aligned
from etl.stages.context import Context
from etl.stages.stage import Stage
from etl.step import append, drop, prefixed
from etl.storage.build import Chunk

COUNTS = pa.schema([("num_messages", pa.int32())])


@dataclass(frozen=True)
class CountMessages:
    """The number of messages of each row of a split; rows of more than `most` are dropped."""

    rows: RowsRef
    most: int
    step: str
    schema: pa.Schema

    def __call__(self, split: int) -> Iterator[Chunk]:
        for batch in self.rows.read(split, ["id", "source_dataset", "messages", "verdict"]):
            count = pc.list_value_length(batch.column("messages"))
            done = drop(batch, self.step, pc.greater(count, self.most), "too_many_messages", count)
            added = pa.schema([field for field in self.schema if field.name not in ("id", "verdict")])
            yield judged([self.step], batch, append(done, added, [count]), self.schema)


class Toy(Stage):
    """Writes DIR/toy: rows of more than `most` messages get a verdict."""

    kind: Literal["toy"] = "toy"
    tables: ClassVar[Mapping[str, str]] = {"toy": "TOY"}
    most: int = 2

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        return pa.schema([*schema, *prefixed(self.name, COUNTS)])

    def run(self, context: Context, rows: Rows) -> Rows:
        schema = aligned(context.columns(COUNTS))
        job = context.job("toy", "TOY", schema, {"most": self.most}, rows.tables(["messages", "verdict"]), rows)
        work = CountMessages(rows.ref, self.most, self.label, schema)
        return rows.with_side(context.map(job, rows.splits, work), schema)
