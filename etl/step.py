"""A step: one narrow transform that is its own configuration.

A subclass is a frozen pydantic model. It reads from YAML, pickles to the workers, hashes into the fingerprint and
prints; there is no second class for its options and none for an engine. `open()` runs on the worker, loads what the
step needs (a model, a vocabulary) and returns the function that does the work, one Arrow record batch at a time. The
function returns a batch of the same length and order; a filter drops nothing, it fills `verdict`.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from etl.errors import SchemaError
from etl.foreign import Kinded
from etl.schema import VERDICT

BatchFn = Callable[[pa.RecordBatch], pa.RecordBatch]


class Step(Kinded):
    """A transform from a record batch to a record batch of the same length.

    `reads` are the columns that it needs, `adds` the columns that it appends; a step that can drop rows lists
    `verdict` in neither: every batch has the `verdict` column, and `drop` fills it.
    """

    version: ClassVar[int] = 1
    """Raised when the same configuration and input would give another output; part of the fingerprint."""
    reads: ClassVar[tuple[str, ...]] = ()
    adds: ClassVar[pa.Schema] = pa.schema([])
    slow: ClassVar[bool] = False
    """True for model inference: a stage with a slow step checkpoints ranges of at most 1,000 rows."""

    def open(self) -> BatchFn:
        """Load what the step needs on this worker and return its function."""
        raise NotImplementedError(type(self).__name__)

    def artefacts(self) -> dict[str, str]:
        """Name and sha256 of each file that the output depends on, for the fingerprint."""
        return {}

    def identity(self) -> dict[str, Any]:
        """Everything that decides what the step writes."""
        return {
            "kind": self.kind,
            "version": self.version,
            **self.fingerprinted(),
            "artefacts": self.artefacts(),
            **self.code(),
        }

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema after this step.

        Raises:
            SchemaError: a column that the step reads is absent, or one that it adds is already there.
        """
        missing = [name for name in self.reads if name not in schema.names]
        if missing:
            raise SchemaError(
                f"step '{self.kind}' reads {missing}, but only {schema.names} are there at that point; "
                "put the step that adds them earlier in the recipe"
            )
        twice = [name for name in self.adds.names if name in schema.names]
        if twice:
            raise SchemaError(f"step '{self.kind}' adds {twice}, which an earlier step has added already")
        return pa.schema([*schema, *self.adds])


def live(batch: pa.RecordBatch) -> pa.BooleanArray:
    """True for the rows that no step has dropped."""
    return pc.is_null(batch.column("verdict"))


def append(batch: pa.RecordBatch, columns: pa.Schema, arrays: list[pa.Array]) -> pa.RecordBatch:
    """The batch with new columns at its end, cast to the declared types."""
    for field, array in zip(columns, arrays, strict=True):
        batch = batch.append_column(field, array.cast(field.type))
    return batch


def drop(batch: pa.RecordBatch, step: str, mask: pa.BooleanArray, reason: str, value: pa.Array) -> pa.RecordBatch:
    """Give the live rows where `mask` is true (null counts as false) the verdict (step, reason, value)."""
    hit = pc.and_(live(batch), pc.fill_null(mask, False))
    size = batch.num_rows
    fresh = pa.StructArray.from_arrays(
        [pa.repeat(pa.scalar(step), size), pa.repeat(pa.scalar(reason), size), value.cast(pa.string())],
        fields=list(VERDICT),
        mask=pc.invert(hit),
    )
    merged = pc.if_else(hit, fresh, batch.column("verdict"))
    return batch.set_column(batch.schema.get_field_index("verdict"), "verdict", merged)
