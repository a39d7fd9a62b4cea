"""A step: one narrow transform that is its own configuration.

A subclass is a frozen pydantic model. It reads from YAML, pickles to the workers, hashes into the fingerprint and
prints; there is no second class for its options and none for an engine. `open()` runs on the worker, loads what the
step needs (a model, a vocabulary) and returns the function that does the work, one Arrow record batch at a time. The
function returns a batch of the same length and order; a filter drops nothing, it fills `verdict`.

Options that every step has are handled outside that function (`etl.pipeline.open_steps`): `name` is the prefix of its
columns, `sources` and `skill_buckets` select its rows. Subclasses need not know of them.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import field_validator

from etl.config import Config, Name, nearest
from etl.errors import SchemaError
from etl.foreign import Kinded
from etl.schema import VERDICT, Skill

BatchFn = Callable[[pa.RecordBatch], pa.RecordBatch]

OF_THE_INPUT: Final = "a column of the input must be listed under `fields` in the description of its source"
"""The end of a message about a missing column."""
RUN: Final = "run:"
"""Prefix of an artefact that a stage of the same run makes, in place of a URI."""


def column(name: str | None, base: str) -> str:
    """NAME_COLUMN, or the column itself if there is no name."""
    return base if name is None else f"{name.replace('-', '_')}_{base}"


def prefixed(name: str | None, columns: pa.Schema) -> pa.Schema:
    """The columns called NAME_COLUMN, or the columns themselves if there is no name."""
    return pa.schema([field.with_name(column(name, field.name)) for field in columns])


class Selected(Config):
    """Base of everything that works on rows and can be limited to some of them; a row must meet both conditions."""

    sources: tuple[str, ...] | None = None
    """Apply it only to rows of these sources of the recipe; null: to all."""
    skill_buckets: tuple[Skill, ...] | None = None
    """Apply it only to rows of these skill buckets; null: to all."""

    @field_validator("sources", "skill_buckets")
    @classmethod
    def _some(cls, values: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Sorted, so that the order in the file does not change the fingerprint."""
        if values == ():
            raise ValueError("an empty list selects no row; leave it out, or write null, to select every row")
        return values and tuple(sorted(set(values)))

    @property
    def label(self) -> str:
        """Its name in verdicts, accounting and messages."""
        raise NotImplementedError(type(self).__name__)

    @property
    def selects_by(self) -> tuple[str, ...]:
        """The columns that decide whether a row is selected."""
        chosen = {"source_dataset": self.sources, "skill_bucket": self.skill_buckets}
        return tuple(column for column, values in chosen.items() if values is not None)

    def selected(self, batch: pa.RecordBatch) -> pa.BooleanArray | None:
        """True for the rows that it works on, with or without a verdict: bool [rows]; None if it takes all rows."""
        masks = [
            pc.is_in(batch.column(column), value_set=pa.array(values, pa.string()))
            for column, values in (("source_dataset", self.sources), ("skill_bucket", self.skill_buckets))
            if values is not None
        ]
        if not masks:
            return None
        return masks[0] if len(masks) == 1 else pc.and_(*masks)

    def check_sources(self, known: Collection[str]) -> None:
        """Check that the sources exist.

        Args:
            known: names of the recipe's sources.

        Raises:
            ValueError: `sources` names another one; the message has the nearest.
        """
        for source in self.sources or ():
            if source not in known:
                names = sorted(known)
                raise ValueError(
                    f"'{self.label}': there is no source '{source}'; {nearest(source, names)}"
                    f"the recipe's sources are {', '.join(names)}"
                )


@dataclass(frozen=True)
class Offer:
    """A model that a stage of this run has trained on some of the rows."""

    uri: str
    sha256: str
    """Digest of the model file."""
    fraction: float
    """Fraction of the rows that it was trained on, chosen by id."""
    seed: int
    """Seed of that choice."""


class Step(Selected, Kinded):
    """A transform from a record batch to a record batch of the same length.

    `reads` are the columns that it needs, `may_read` those that it can do without, `adds` the columns that it appends.
    A step that can drop rows lists `verdict` in none of them: every batch has that column, and `drop` fills it. Its
    function gets a batch of `id`, `verdict` and the columns that it reads, and uses the names of `adds` whatever the
    step is called.
    """

    name: Name | None = None
    """Distinguishes steps of one kind: verdicts give this name, and columns are called NAME_COLUMN."""
    version: ClassVar[int] = 1
    """Increased when the same configuration and input would give another output; part of the fingerprint."""
    reads: ClassVar[tuple[str, ...]] = ()
    may_read: ClassVar[tuple[str, ...]] = ()
    """Further columns of PROMPT for its function; null if the rows do not have them."""
    reads_namesake: ClassVar[tuple[str, ...]] = ()
    """Columns in `reads` that another kind of step adds; a named step reads them from the step of the same name."""
    adds: ClassVar[pa.Schema] = pa.schema([])
    slow: ClassVar[bool] = False
    """True for model inference: a stage with a slow step checkpoints ranges of at most 1,000 rows."""

    @property
    def label(self) -> str:
        """The name, else the kind. A step that reads from another step of its name is called NAME-KIND."""
        kind = self.kind.rpartition(":")[2]
        if self.name is None:
            return kind
        return f"{self.name}-{kind}" if self.reads_namesake else self.name

    @property
    def added(self) -> pa.Schema:
        """`adds` under the names that the columns have in a table: NAME_COLUMN if the step has a name."""
        return prefixed(self.name, self.adds)

    @property
    def inputs(self) -> dict[str, str]:
        """Column of a table -> the name by which the step's function reads it."""
        return {column(self.name, name) if name in self.reads_namesake else name: name for name in self.reads}

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns of a table that must exist: those that the step reads and those that select its rows."""
        return tuple(dict.fromkeys([*self.inputs, *self.selects_by]))

    def open(self) -> BatchFn:
        """Load what the step needs on this worker and return its function."""
        raise NotImplementedError(type(self).__name__)

    def artefacts(self) -> dict[str, str]:
        """Name and sha256 of each file that the output depends on, for the fingerprint."""
        return {}

    def asks(self) -> tuple[str, ...]:
        """Names of the artefacts that stages of the same run make for it: the text after `run:`."""
        return ()

    def findings(self) -> dict[str, dict[str, Any]]:
        """Entries for `findings` in the manifest of its dataset: key -> column that it adds -> value in JSON types."""
        return {}

    def given(self, offered: Mapping[str, Offer]) -> Self:
        """The step with the artefacts that it needs.

        Args:
            offered: by name, at least those of `asks`.
        """
        return self

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
            SchemaError: a column that the step reads is missing, or one that it adds exists already.
        """
        missing = [name for name in self.needed if name not in schema.names]
        if missing:
            raise SchemaError(
                f"step '{self.label}' reads {missing}, but only {schema.names} exist at that point; put the step "
                f"that adds them earlier in the recipe; {OF_THE_INPUT}"
            )
        added = self.added
        twice = [name for name in added.names if name in schema.names]
        if twice:
            raise SchemaError(
                f"step '{self.label}' adds {twice}, which an earlier step has added already; give one of them a "
                "`name`, which becomes the prefix of its columns"
            )
        return pa.schema([*schema, *added])


def live(batch: pa.RecordBatch) -> pa.BooleanArray:
    """True for rows that no step has dropped."""
    return pc.is_null(batch.column("verdict"))


def append(batch: pa.RecordBatch, columns: pa.Schema, arrays: list[pa.Array]) -> pa.RecordBatch:
    """The batch with new columns at its end, cast to the declared types."""
    for field, array in zip(columns, arrays, strict=True):
        batch = batch.append_column(field, array.cast(field.type))
    return batch


def drop(batch: pa.RecordBatch, step: str, mask: pa.BooleanArray, reason: str, value: pa.Array) -> pa.RecordBatch:
    """Give the live rows where `mask` is true (null counts as false) the verdict (step, reason, value)."""
    hit = pc.and_(live(batch), pc.fill_null(mask, False))
    if not hit.true_count:
        return batch
    size = batch.num_rows
    fresh = pa.StructArray.from_arrays(
        [pa.repeat(pa.scalar(step), size), pa.repeat(pa.scalar(reason), size), value.cast(pa.string())],
        fields=list(VERDICT),
        mask=pc.invert(hit),
    )
    merged = pc.if_else(hit, fresh, batch.column("verdict"))
    return batch.set_column(batch.schema.get_field_index("verdict"), "verdict", merged)


def on_selected(owner: Selected, function: BatchFn, rows: pa.RecordBatch, batch: pa.RecordBatch) -> pa.RecordBatch:
    """The function's result for a batch in which unselected rows appear as dropped.

    Args:
        owner: says which rows are selected, and whose function it is.
        function: gives a batch of the same length and order.
        rows: the whole rows, by which they are selected.
        batch: those of their columns that the function gets.

    Returns:
        The function's batch; a row that is not selected has the verdict that it had, and null in new columns.

    Raises:
        SchemaError: the function has returned another number of rows.
    """
    selected = owner.selected(rows)
    if selected is None:
        return _of_same_length(owner, function(batch), batch)
    others = pc.invert(selected)
    done = function(drop(batch, owner.label, others, "not_selected", pa.nulls(batch.num_rows, pa.string())))
    _of_same_length(owner, done, batch)
    columns = [_merged(others, batch, name, done.column(name)) for name in done.schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=done.schema)


def _merged(others: pa.BooleanArray, before: pa.RecordBatch, name: str, column: pa.Array) -> pa.Array:
    """A column after a function that must not change the other rows: only verdicts and new columns can differ."""
    if name not in before.schema.names:
        return pc.if_else(others, pa.scalar(None, column.type), column)
    return pc.if_else(others, before.column(name), column) if name == "verdict" else before.column(name)


def _of_same_length(owner: Selected, done: pa.RecordBatch, batch: pa.RecordBatch) -> pa.RecordBatch:
    if done.num_rows != batch.num_rows:
        raise SchemaError(
            f"'{owner.label}' turned {batch.num_rows} rows into {done.num_rows}; steps mark rows and must not "
            "remove any"
        )
    return done
