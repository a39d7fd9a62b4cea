"""What a source is: where its files lie (from the recipe) and how its rows read (one YAML file a data set).

A data set is described by conf/sources/<name>.yaml; a new one of a known shape needs no code.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, RootModel, field_validator, model_validator

from etl import conf
from etl.config import Config
from etl.errors import ConfigError
from etl.schema import SKILLS
from etl.storage.location import Location
from etl.storage.remote import Storage, check_places, scheme_of


def _absolute(path: str) -> str:
    """The path from the root, its links as they are; `..` goes up from where a link leads."""
    whole = Path(path).expanduser().absolute()
    num_up = len(whole.parts) - whole.parts[::-1].index("..") if ".." in whole.parts else 0
    return str(Path(*whole.parts[:num_up]).resolve().joinpath(*whole.parts[num_up:]) if num_up else whole)


def _known_bucket(name: str) -> str:
    if name not in SKILLS:
        known = ", ".join(f"{bucket} ({meaning})" for bucket, meaning in SKILLS.items())
        raise ValueError(f"'{name}' is no skill bucket; use {known}")
    return name


SkillBucket = Annotated[str, AfterValidator(_known_bucket)]


class SkillRule(Config):
    """The skill bucket of a row: by the value of a column, else the default."""

    column: str | None = None
    by_value: dict[str, SkillBucket] = {}
    default: SkillBucket


class Described(Config):
    """What the description of every data set may say of its rows."""

    example_id: str
    """Column that names the row within its data set."""
    language: str | None = None
    license: str | None = None
    subset: str | None = None
    split_key: str | None = None
    """Column whose value decides train or validation; the row's id when none is named."""
    skill_bucket: SkillRule
    meta: tuple[str, ...] = ()
    """Columns kept as they are in meta_json, those that a file lacks or that are null left out."""

    @property
    def required(self) -> tuple[str, ...]:
        """Columns without which no row can be read."""
        raise NotImplementedError(type(self).__name__)

    @property
    def prose(self) -> tuple[str, ...]:
        """Columns that hold what is said; a number there is a mistake, in the others it may be a name."""
        raise NotImplementedError(type(self).__name__)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns read as text."""
        named = (
            self.example_id, *self.prose, self.language, self.license, self.subset, self.split_key,
            self.skill_bucket.column,
        )  # fmt: skip
        return tuple(dict.fromkeys(name for name in named if name))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are read at all."""
        return tuple(dict.fromkeys((*self.text_columns, *self.meta)))


class ColumnsShape(Described):
    """Rows that hold prompt, reasoning and answer in columns of their own."""

    shape: Literal["columns"]
    user: str
    analysis: str | None = None
    """Column of the reasoning; an empty one makes no message."""
    final: str

    @property
    def required(self) -> tuple[str, ...]:
        """Columns without which no row can be read."""
        return (self.example_id, self.user, self.final)

    @property
    def prose(self) -> tuple[str, ...]:
        """Prompt, reasoning and answer."""
        return tuple(name for name in (self.user, self.analysis, self.final) if name)


class TextShape(Described):
    """Rows that each hold one raw document."""

    shape: Literal["text"]
    text: str

    @property
    def required(self) -> tuple[str, ...]:
        """Columns without which no row can be read."""
        return (self.example_id, self.text)

    @property
    def prose(self) -> tuple[str, ...]:
        """The document."""
        return (self.text,)


Shape = ColumnsShape | TextShape


class Description(RootModel[Annotated[Shape, Field(discriminator="shape")]]):
    """The whole of a file of conf/sources."""


class Source(Config):
    """One entry of a recipe's `sources`."""

    located: ClassVar[frozenset[str]] = frozenset({"path", "table", "options"})

    spec: str
    """Name, path or URI of the YAML file that describes the data set."""
    path: str | tuple[str, ...] | None = Field(default=None, min_length=1)
    """Files: a path, glob, folder or URL, or a list of them. .parquet, .jsonl, .json; also .gz, .zst, .bz2, .xz.
    Folders `key=value` below the folder that a pattern starts with are columns of the rows."""
    table: str | None = Field(default=None, min_length=1)
    """In place of a path: a table of the Spark session's catalog, such as catalog.db.name."""
    options: dict[str, Any] = Field(default={}, repr=False)
    """fsspec options for the path, such as endpoint_url; they win over the recipe's `storage`."""
    id_column: str | None = Field(default=None, min_length=1)
    """In place of what the description names: the column that names a row."""
    text_column: str | None = Field(default=None, min_length=1)
    """In place of what the description of raw text names: the column of the document."""

    @field_validator("options")
    @classmethod
    def _places_can_be_printed(cls, options: dict[str, Any]) -> dict[str, Any]:
        try:
            check_places("options", options)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return options

    @model_validator(mode="after")
    def _is_in_one_place(self) -> "Source":
        if (self.path is None) == (self.table is None):
            raise ValueError("give either `path` (files) or `table` (a table of Spark's catalog)")
        if self.table is not None and self.options:
            raise ValueError("`options` are for the files of a `path`; a table's are the Spark session's own settings")
        return self

    @property
    def patterns(self) -> tuple[str, ...]:
        """The paths; none for a table."""
        return (self.path,) if isinstance(self.path, str) else self.path or ()

    def locate(self, url: str, storage: Storage) -> Location:
        """A pattern or file of this source with its options: its own before those of `storage`, the recipe's.

        A local path stays what it is called, since what a link is called says how its file reads.
        """
        options = {**storage.get(scheme_of(url), {}), **self.options}
        return Location.of(url, options) if "://" in url else Location(_absolute(url), options)

    def shape(self) -> Shape:
        """The description of the data set.

        Raises:
            ConfigError: it is absent or wrong.
        """
        shape = conf.read(Description, self.spec, "sources").root
        if self.text_column is not None and not isinstance(shape, TextShape):
            raise ConfigError(
                f"text_column: '{self.text_column}' is for raw text, and conf/sources/{self.spec} has the shape "
                f"'{shape.shape}'; use spec: text"
            )
        named = {"example_id": self.id_column, "text": self.text_column}
        return shape.model_copy(update={key: name for key, name in named.items() if name is not None})
