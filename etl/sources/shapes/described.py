"""What the description of every data set may say of its rows, whatever their shape.

A *shape* turns raw columns into conversations. It names the columns it reads as text (`texts`), as values of any kind
(`values`), and those without which no row can be read (`required`); `converse` then makes the messages of a batch. A
column is named by its name or by a path (etl/sources/paths.py).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, Literal, Protocol

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, BeforeValidator, Field

from etl.arrays import Bools
from etl.config import Config
from etl.errors import ConfigError
from etl.schema import SKILLS
from etl.sources.assemble.gather import Gather
from etl.sources.assemble.join import Join
from etl.sources.assemble.tree import Tree
from etl.sources.fields import Fields
from etl.sources.hub import Hub
from etl.sources.shapes.turns import Turns, Unfit
from etl.sources.shapes.usual import UsualMessages

SKILL_ALIASES: Final = {"reasoning": "B1", "math": "B2", "code": "B3", "chat": "B4", "knowledge": "B5"}
"""What people call the skill buckets."""


def _known_bucket(name: str) -> str:
    bucket = SKILL_ALIASES.get(name, name)
    if bucket not in SKILLS:
        known = ", ".join(f"{alias} ({bucket}, {SKILLS[bucket]})" for alias, bucket in SKILL_ALIASES.items())
        raise ValueError(f"'{name}' is no skill bucket; use {known}")
    return bucket


SkillBucket = Annotated[str, AfterValidator(_known_bucket)]


class SkillRule(Config):
    """The skill bucket of a row, by the value of a column, or else the default."""

    column: str | None = None
    """Column whose value decides."""
    by_value: dict[str, SkillBucket] = {}
    """Skill bucket by value."""
    default: SkillBucket
    """Skill bucket for every other value."""


def _rule(value: Any) -> Any:
    return {"default": value} if isinstance(value, str) else value


class Constant(Config):
    """The same text for every row, in place of a column."""

    constant: str
    """The text."""


Value = str | Constant
"""A column's name or path, or `{constant: TEXT}`."""


def columns_of(*values: Value | None) -> tuple[str, ...]:
    """The columns among some values, each once."""
    return tuple(dict.fromkeys(value for value in values if isinstance(value, str)))


class Columns(Protocol):
    """The raw columns of a batch of rows."""

    def __len__(self) -> int: ...

    def text(self, value: Value | None) -> pa.Array:
        """A column as text, or the constant: string [rows]; nulls where the rows have no such column."""
        ...

    def values(self, path: str) -> Sequence[Any]:
        """What stands at a path, as JSON values: [rows]; None where nothing does."""
        ...

    def usual_messages(self, path: str) -> pa.Array | None:
        """What the format has read by `Described.usual`: list<MESSAGE> [rows]; None where it has read nothing so.

        Rows without it are null, and `values` has them.
        """
        ...


@dataclass
class Conversations:
    """What a shape makes of a batch."""

    messages: pa.Array
    """list<MESSAGE> [rows]; empty where the row is lost."""
    tools: pa.Array | None = None
    """string [rows]: definitions of tools as JSON."""
    meta: dict[str, list[Any]] = field(default_factory=dict)
    """More for meta_json, by key: [rows] of JSON values, of JSON as bytes, or None where a row has none."""
    lost: list[tuple[int, str, str]] = field(default_factory=list)
    """(row, reason, detail) of the rows that could not be read."""
    dropped: dict[str, list[int]] = field(default_factory=dict)
    """By reason the rows that can be read and are no examples: ingest's own verdict."""

    def kept(self, good: Bools) -> "Conversations":
        """The rows that are good: bool [rows], those of `lost` not among them."""
        mask, places = pa.array(good), np.cumsum(good) - 1
        chosen = np.flatnonzero(good)
        return Conversations(
            self.messages.filter(mask),
            None if self.tools is None else self.tools.filter(mask),
            {key: [values[row] for row in chosen] for key, values in self.meta.items()},
            dropped={reason: [int(places[row]) for row in rows if good[row]] for reason, rows in self.dropped.items()},
        )


RowsOf = Literal["conversation", "turn"]
"""What a row is: a whole conversation, or each of its turns with what was said before it."""
Assembly = Annotated[Tree | Join | Gather, Field(discriminator="kind")]


class Described(Config):
    """What the description of every data set may say of its rows."""

    located: ClassVar[frozenset[str]] = frozenset({"hub"})

    hub: Hub | None = None
    """Where the data set lies on the Hugging Face hub: what is read where a recipe gives neither `path` nor `table`."""
    example_id: str | None = None
    """Column that names the row within its data set. Without it, `row_name` decides."""
    row_name: Literal["position", "content"] = "position"
    """Names rows without an `example_id`. position: file and position in it, stable as long as the file is unchanged.
    content: a hash of the conversation, the same in any file."""
    language: Value | None = None
    """Language of a row, as given by the data set."""
    license: Value | None = None
    """Licence of a row, as given by the data set."""
    subset: Value | None = None
    """Part of the data set that a row belongs to."""
    split_key: str | None = None
    """Column whose value decides between train and validation; null: the row's id."""
    skill_bucket: Annotated[SkillRule, BeforeValidator(_rule)]
    """One bucket for all rows, such as `math`, or a rule."""
    meta: tuple[str, ...] = ()
    """Columns to keep unchanged in meta_json; missing and null ones are left out."""
    fields: Fields = {}
    """Columns to keep as typed columns for later stages, by name: `string`, `bool`, `int`, `double`, or a mapping."""
    assemble: Assembly | None = None
    """How rows are made of several raw rows; what is made is read by the rest of the description."""
    rows: RowsOf = "conversation"
    """`turn` makes a row of each turn that the assistant answers, with all that was said before it."""

    def check_turns(self) -> None:
        """Refuse what would make the same turns twice.

        Raises:
            ConfigError: naming the keys.
        """
        if self.rows == "turn" and isinstance(self.assemble, Tree) and self.assemble.take == "both":
            raise ConfigError(
                "rows: turn cuts the best path at its answers, and take: both has its pairs; leave one out"
            )

    @property
    def has_answers(self) -> bool:
        """Whether rows have answers, so that one without is lost."""
        return True

    @property
    def said(self) -> tuple[str, ...]:
        """Columns of text that hold what is said; a number there is a mistake, in the others it may be a name."""
        return ()

    @property
    def written(self) -> tuple[str, ...]:
        """Columns of text that go into what is said, where a number is written out."""
        return ()

    @property
    def nested(self) -> tuple[str, ...]:
        """Columns of any kind that `converse` reads as JSON values."""
        return ()

    @property
    def usual(self) -> UsualMessages | None:
        """The column of `nested` that a format may read as messages itself; None where there is none."""
        return None

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns without which there is no conversation."""
        return ()

    @property
    def required(self) -> tuple[str, ...]:
        """Columns without which no row can be read."""
        return tuple(dict.fromkeys((*columns_of(self.example_id), *self.needed)))

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns read as text, the row's name first."""
        return columns_of(
            self.example_id, *self.said, *self.written, self.language, self.license, self.subset, self.split_key,
            self.skill_bucket.column,
        )  # fmt: skip

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are read at all."""
        return tuple(dict.fromkeys((*self.text_columns, *self.nested, *self.meta, *self.field_columns.values())))

    @property
    def field_columns(self) -> dict[str, str]:
        """By field the column or path that it is read from."""
        return {name: field.column or name for name, field in self.fields.items()}

    def converse(self, columns: Columns) -> Conversations:
        """The conversations of a batch.

        Args:
            columns: all those of `required` without nulls.
        """
        raise NotImplementedError(type(self).__name__)


def converse_rows(rows: Iterator[Any], write: Callable[[Turns, Any], None]) -> Conversations:
    """Conversations of nested records, one row at a time.

    Args:
        rows: what `write` takes of each row.
        write: adds the messages of a row, or raises Unfit.
    """
    turns = Turns()
    lost = []
    for number, row in enumerate(rows):
        try:
            write(turns, row)
        except Unfit as error:
            turns.take_back()
            lost.append((number, error.reason, error.detail))
        except RecursionError as error:
            turns.take_back()
            lost.append((number, "too_deep", str(error)))
        else:
            turns.close()
    return Conversations(turns.to_array(), lost=lost)
