"""A source: where its files are (from the recipe) and how to read its rows (one YAML file per data set).

A data set is described by conf/sources/<name>.yaml; a new one of a known shape needs no code.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, RootModel, field_validator, model_validator

from etl import conf
from etl.config import Config
from etl.errors import ConfigError
from etl.sources.assemble.raw_rows import RawRows
from etl.sources.assemble.tree import Take, Tree
from etl.sources.fields import Fields
from etl.sources.formats.endings import compression_of, format_of
from etl.sources.shapes.columns import ColumnsShape
from etl.sources.shapes.dataset import DatasetShape
from etl.sources.shapes.described import RowsOf
from etl.sources.shapes.messages import MessagesShape
from etl.sources.shapes.pairs import PairsShape
from etl.sources.shapes.preference import PreferenceShape
from etl.sources.shapes.prompts import PromptsShape
from etl.sources.shapes.text import TextShape
from etl.sources.shapes.transcript import TranscriptShape
from etl.sources.shapes.verifiable import VerifiableShape
from etl.storage.location import Location
from etl.storage.remote import Storage, check_places, scheme_of


def _absolute(path: str) -> str:
    """The path from the root, its links as they are; `..` goes up from where a link leads."""
    whole = Path(path).expanduser().absolute()
    num_up = len(whole.parts) - whole.parts[::-1].index("..") if ".." in whole.parts else 0
    return str(Path(*whole.parts[:num_up]).resolve().joinpath(*whole.parts[num_up:]) if num_up else whole)


_Described = (
    ColumnsShape
    | MessagesShape
    | PairsShape
    | TranscriptShape
    | PreferenceShape
    | VerifiableShape
    | PromptsShape
    | TextShape
)
Shape = _Described | DatasetShape | RawRows
"""How the rows of a data set become conversations."""


class Description(RootModel[Annotated[_Described, Field(discriminator="shape")]]):
    """The whole of a file of conf/sources."""


TextRows = Literal["file", "line", "paragraph"]
"""What makes a row of plain text; blank lines separate paragraphs."""


HtmlText = Literal["raw", "resiliparse", "trafilatura"]
"""What to do with HTML: keep it, or extract its text with a library."""


_OF_ROWS = frozenset({"spec", "text_rows", "html", "id_column", "text_column", "rows", "take", "tables"})
"""Keys that say how to read raw rows."""
_OF_FILES = ("revision", "shards", "shuffle")
"""Keys that say which files to read, and in which order."""


class Source(Config):
    """One entry of a recipe's `sources`."""

    located: ClassVar[frozenset[str]] = frozenset(
        {"path", "table", "dataset", "tables", "options", "may_be_empty", "shards"}
    )

    spec: str | None = None
    """Name, path or URI of the YAML file that describes the data set; null for a `dataset` alone."""
    path: str | tuple[str, ...] | None = Field(default=None, min_length=1)
    """Files: a path, glob, folder or URL, or a list of them. .parquet, .jsonl, .json, .csv, .tsv, .arrow, .txt, .warc,
    .wet; also .gz, .zst, .bz2, .xz. Without it, the files that the description names on the Hugging Face hub.
    Folders `key=value` below the folder that a pattern starts with are columns of the rows."""
    revision: str | None = Field(default=None, min_length=1)
    """Without a path: the branch, tag or commit that is read of the hub's files; null for the description's."""
    shards: str | None = Field(default=None, min_length=1)
    """A text file that names the files, one a line: relative to `path`, which is a folder, or whole paths and URLs.
    Without a path they are relative to the data set on the hub, or where the description names none, to the list's own
    folder."""
    shuffle: int | None = Field(default=None, ge=0)
    """Seed of a shuffle of the files; null reads them in the order of their names. The manifest of `ingest` has the
    order."""
    table: str | None = Field(default=None, min_length=1)
    """In place of a path: a table of the Spark session's catalog, such as catalog.db.name."""
    dataset: str | None = Field(default=None, min_length=1)
    """In place of a path: folder or URL of a committed corpus, or of another dataset of prompts such as a run's
    `ingest`."""
    source_dataset: str | None = Field(default=None, min_length=1)
    """With `dataset`: read only rows of this `source_dataset`."""
    fields: Fields = {}
    """With `dataset`: its columns to keep, listed as in a description."""
    options: dict[str, Any] = Field(default={}, repr=False)
    """fsspec options for the path or dataset, such as endpoint_url; they override the recipe's `storage`."""
    text_rows: TextRows | None = None
    """What makes a row of plain text. If given, every file is read as plain text; else only .txt is, one row per
    file."""
    html: HtmlText = "resiliparse"
    """What to do with HTML in WARC files: keep it (raw), or extract its text with one of these libraries."""
    id_column: str | None = Field(default=None, min_length=1)
    """Column that names a row; overrides the description's."""
    text_column: str | None = Field(default=None, min_length=1)
    """Column of the document; overrides that of a description of raw text."""
    rows: RowsOf | None = None
    """Row for each turn of a conversation (`turn`) or for all of it (`conversation`); overrides the description's."""
    take: Take | None = None
    """Conversations to take from trees of messages: best_path, pairs or both; overrides the description's."""
    tables: dict[str, str | tuple[str, ...]] = {}
    """Data sets to join, where the description does: DATASET/SPLIT to their files, given as a `path` is."""
    limit: int | None = Field(default=None, ge=1)
    """Read only this many rows: the first ones in the order of files and positions, including bad ones. One task reads
    them and stops there."""
    may_be_empty: bool = False
    """Whether the run continues if the source gives no row, because its files have none or every row is dropped."""

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
        if [self.path, self.table, self.dataset].count(None) < 2:
            raise ValueError(
                "give either `path` (files), `dataset` (a committed corpus) or `table` (a table of Spark's catalog)"
            )
        if self.dataset is None and self.spec is None:
            raise ValueError(
                "`spec` is missing: the description of the rows, such as `chat` or a YAML file of your own"
            )
        return self

    @model_validator(mode="after")
    def _is_of_its_kind(self) -> "Source":
        if self.dataset is not None and (more := self.model_fields_set & _OF_ROWS):
            raise ValueError(f"`{min(more)}` is for raw rows; rows of a `dataset` are read as they are")
        if self.dataset is None and self.source_dataset is not None:
            raise ValueError("`source_dataset` selects rows of a `dataset`; without `dataset`, leave it out")
        if self.dataset is None and self.fields:
            raise ValueError("`fields` here are for a `dataset`; for raw rows, list them in the description")
        if self.table is not None and self.options:
            raise ValueError("`options` are for the files of a `path`; a table's are the Spark session's own settings")
        if self.table is not None and (self.text_rows is not None or "html" in self.model_fields_set):
            raise ValueError("`text_rows` and `html` are for the files of a `path`; a table has columns")
        given = [name for name in _OF_FILES if getattr(self, name) is not None]
        if given and (self.table is not None or self.dataset is not None):
            raise ValueError(f"`{given[0]}` is for files; a `table` and a `dataset` have an order of their own")
        if self.revision is not None and self.path is not None:
            raise ValueError(
                "`revision` is of the files that the description names; write that of a `path` into it, as in "
                "hf://datasets/OWNER/NAME@REVISION/GLOB"
            )
        if self.shards is not None and isinstance(self.path, tuple):
            raise ValueError("with `shards`, `path` is the one folder that the names are relative to")
        return self

    @property
    def patterns(self) -> tuple[str, ...]:
        """The paths, or the folder of a dataset; none for a table."""
        if self.dataset is not None:
            return (self.dataset,)
        return (self.path,) if isinstance(self.path, str) else self.path or ()

    def format_of(self, name: str) -> str | None:
        """Format of a file, by its name; None if this source does not read it."""
        return format_of(name) if self.text_rows is None else "text"

    def reading(self) -> dict[str, Any]:
        """The settings, other than files and shape, that decide how rows are read; defaults are left out."""
        decide = {"text_rows", "html", "limit", "shuffle", "source_dataset"}
        return self.model_dump(mode="json", include=decide, exclude_defaults=True)

    def can_be_cut(self, name: str) -> bool:
        """Whether a file can be read from the middle by bytes: lines of JSON or text that are not compressed."""
        has_lines = self.format_of(name) == "jsonl" or self.text_rows in ("line", "paragraph")
        return has_lines and compression_of(name) is None

    def locate(self, url: str, storage: Storage) -> Location:
        """A pattern or file of this source with its options: its own before those of `storage`, the recipe's.

        A local path stays what it is called, since what a link is called says how its file reads.
        """
        options = {**storage.get(scheme_of(url), {}), **self.options}
        return Location.of(url, options) if "://" in url else Location(_absolute(url), options)

    def table_of(self, path: str | tuple[str, ...]) -> "Source":
        """The files of a table that is joined, as a source of their own."""
        return Source(spec=self.spec, path=path, options=self.options)

    def assembled_at(self, folder: str) -> "Source":
        """The source of the rows that were made of its raw ones, which lie where the run writes."""
        return Source(spec=self.spec, path=folder)

    def shape(self) -> Shape:
        """The description of the data set.

        Raises:
            ConfigError: it is absent or wrong.
        """
        if self.spec is None:
            return DatasetShape(fields=self.fields)
        shape = conf.read(Description, self.spec, "sources").root
        if self.text_column is not None and not isinstance(shape, TextShape):
            raise ConfigError(
                f"text_column: '{self.text_column}' is for raw text, and conf/sources/{self.spec} has the shape "
                f"'{shape.shape}'; use spec: text"
            )
        named: dict[str, Any] = {"example_id": self.id_column, "text": self.text_column, "rows": self.rows}
        if self.take is not None:
            if not isinstance(shape.assemble, Tree):
                raise ConfigError(f"take: '{self.take}' is for trees of messages, and {self.spec} describes none")
            named["assemble"] = shape.assemble.model_copy(update={"take": self.take})
        changed = shape.model_copy(update={key: name for key, name in named.items() if name is not None})
        changed.check_turns()
        return changed
