"""Arrow rows in a Beam pipeline: the coders by which they travel, and steps in a pipeline of the user's own.

`ApplySteps` runs steps inside such a pipeline, without a recipe; `ToArrow` makes its elements. Importing this module
registers coders for `pa.RecordBatch` and `pa.Table`.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import Coder
from apache_beam.coders.typecoders import registry

from etl.errors import SchemaError
from etl.pipeline import open_steps
from etl.schema import PROMPT, VERDICT
from etl.step import BatchFn, Step

_IPC_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")
"""Compression saves a third of hashes and row keys, and two thirds of text; it costs less than sending these bytes."""


def no_rows(schema: pa.Schema) -> pa.RecordBatch:
    """A batch without rows."""
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


class _ArrowCoder(Coder):
    """Rows as an Arrow IPC stream, their schema included."""

    def encode(self, value: pa.RecordBatch | pa.Table) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema, options=_IPC_OPTIONS) as writer:
            writer.write(value)
        data: bytes = sink.getvalue().to_pybytes()
        return data

    def is_deterministic(self) -> bool:
        return False


class RecordBatchCoder(_ArrowCoder):
    """Coder of Arrow record batches; importing this module registers it for `pa.RecordBatch`."""

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        with pa.ipc.open_stream(encoded) as reader:
            return reader.read_next_batch()

    def to_type_hint(self) -> Any:
        return pa.RecordBatch


class TableCoder(_ArrowCoder):
    """Coder of Arrow tables; importing this module registers it for `pa.Table`."""

    def decode(self, encoded: bytes) -> pa.Table:
        with pa.ipc.open_stream(encoded) as reader:
            return reader.read_all()

    def to_type_hint(self) -> Any:
        return pa.Table


registry.register_coder(pa.RecordBatch, RecordBatchCoder)
registry.register_coder(pa.Table, TableCoder)


class ApplySteps(beam.PTransform[Any, Any]):
    """Steps over a PCollection of Arrow record batches or tables: the same elements with the steps' columns.

    Rows, their order and their columns are unchanged. The steps' columns follow, then `verdict` (unless it was there
    already): null, or struct<step, reason, value> of the step that would drop the row. Each worker opens the steps
    once.

        schema = pa.schema([PROMPT.field("messages")])
        rows | ToArrow(schema) | ApplySteps([LanguageStep(keep=["en"])]) | beam.FlatMap(pa.RecordBatch.to_pylist)

    Args:
        steps: run in this order on each row; none of them looks at another row.

    Raises:
        SchemaError: on a worker, when a batch lacks a column that a step reads or has it in another type than
            `etl.schema` says, or when it has one that a step adds.
    """

    def __init__(self, steps: Iterable[Step]) -> None:
        super().__init__()
        self._steps = tuple(steps)

    def expand(self, batches: Any) -> Any:
        kind = batches.element_type if batches.element_type in (pa.RecordBatch, pa.Table) else Any
        return batches | beam.ParDo(_ApplySteps(self._steps)).with_output_types(kind)


class _ApplySteps(beam.DoFn):
    def __init__(self, steps: tuple[Step, ...]) -> None:
        self._steps = steps
        read = {name for step in steps for name in (*step.needed, *step.may_read)}
        self._reads = sorted(read & set(PROMPT.names))

    def setup(self) -> None:
        self._run: BatchFn = open_steps(self._steps)

    def process(self, element: Any) -> Iterator[Any]:
        if isinstance(element, pa.Table):
            done = [self._apply(batch) for batch in element.to_batches() or [no_rows(element.schema)]]
            yield pa.Table.from_batches(done)
        else:
            yield self._apply(element)

    def _apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        names = batch.schema.names
        if "verdict" not in names:
            batch = batch.append_column(pa.field("verdict", VERDICT), pa.nulls(batch.num_rows, VERDICT))
        schema = batch.schema
        for step in self._steps:
            schema = step.output_schema(schema)
        for name in self._reads:
            if name in names:
                batch = _typed(batch, name)
        done = self._run(batch)
        return (
            done
            if "verdict" in names
            else done.select([*(name for name in done.schema.names if name != "verdict"), "verdict"])
        )


def _typed(batch: pa.RecordBatch, name: str) -> pa.RecordBatch:
    """The batch with a column of PROMPT in its declared type."""
    wanted = PROMPT.field(name).type
    column = batch.column(name)
    if column.type == wanted:
        return batch
    try:
        place = batch.schema.get_field_index(name)
        return batch.set_column(place, batch.schema.field(place).with_type(wanted), column.cast(wanted))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise SchemaError(f"column '{name}' is {column.type}, but the steps read it as {wanted}: {error}") from error


class ToArrow(beam.PTransform[Any, Any]):
    """Turns a PCollection of dictionaries or `beam.Row`s into one of Arrow record batches.

    Args:
        schema: schema of the batches; a row's other fields are left out, absent ones are null.
        max_rows: maximum rows of a batch.
    """

    def __init__(self, schema: pa.Schema, max_rows: int = 1024) -> None:
        super().__init__()
        self._schema = schema
        self._max_rows = max_rows

    def expand(self, rows: Any) -> Any:
        schema = self._schema

        def to_batch(items: list[Any]) -> pa.RecordBatch:
            dictionaries = [item if isinstance(item, dict) else item._asdict() for item in items]
            return pa.RecordBatch.from_pylist(dictionaries, schema=schema)

        batched = rows | beam.BatchElements(max_batch_size=self._max_rows)
        return batched | "to_arrow" >> beam.Map(to_batch).with_output_types(pa.RecordBatch)
