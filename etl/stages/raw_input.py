"""The raw input of a run as its tasks read it, and its splits as a plan stores them.

A plan names a file by its place among the folders that the patterns start with, so it remains valid if the input is
moved. A stored plan is checked as untrusted input.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from etl.sources.fields import union
from etl.sources.files import InputFile, InputPiece, InputSplit
from etl.sources.raw import Bad, Tally
from etl.sources.read import read_split
from etl.sources.row_groups import Limits
from etl.sources.spec import Shape, Source
from etl.storage.remote import Storage


@dataclass(frozen=True)
class Raw:
    """The sources of a recipe with their descriptions, read on the driver."""

    sources: dict[str, Source]
    shapes: dict[str, Shape]
    roots: tuple[str, ...]
    """Folders that the patterns start with. A plan names a file by its place among them and its path below, so it
    remains valid if the input is moved."""
    stamps: dict[str, str]
    """By URL, the state that a hashed file must still have when it is read."""
    storage: Storage
    """The recipe's storage options, by scheme."""
    limits: Limits

    @classmethod
    def of(
        cls,
        sources: dict[str, Source],
        shapes: dict[str, Shape],
        files: dict[str, list[InputFile]],
        storage: Storage,
        limits: Limits,
    ) -> "Raw":
        """The files of some sources."""
        found = [file for of_source in files.values() for file in of_source]
        roots = tuple(dict.fromkeys(map(root_of, found)))
        stamps = {file.url: file.stamp for file in found if file.stamp}
        return cls(sources, shapes, roots, stamps, storage, limits)

    def to_plan(self, number: int, split: InputSplit) -> dict[str, Any]:
        """A split as the plan stores it."""
        tree = split.model_dump(mode="json")
        for piece, stored in zip(split.pieces, tree["pieces"], strict=True):
            del stored["file"]["url"]
            stored["file"]["root"] = self.roots.index(root_of(piece.file))
        return {"number": number, "input": tree}

    def is_piece(self, files: dict[str, list[InputFile]]) -> Callable[[Any], bool]:
        """Whether a split of a stored plan, which is untrusted, reads only pieces of these files."""
        listed = {
            (name, self.roots.index(root_of(file)), file.relative, file.bytes, file.etag, file.table, file.first_row)
            for name, found in files.items()
            for file in found
        }

        def check(split: Any) -> bool:
            try:
                planned = _PlannedSplit.model_validate(split).input
            except ValidationError:
                return False
            return all(is_listed(planned.source, piece) for piece in planned.pieces)

        def is_listed(source: str, piece: _PlannedPiece) -> bool:
            file = piece.file
            of = (source, file.root, file.relative, file.bytes, file.etag, file.table, file.first_row)
            return of in listed and 0 <= piece.start <= piece.end <= max(1, file.bytes)

        return check

    def from_plan(self, split: Any) -> InputSplit:
        """A split from its form in the plan."""
        planned = _PlannedSplit.model_validate(split).input
        return InputSplit(source=planned.source, pieces=tuple(map(self._piece, planned.pieces)))

    def _piece(self, planned: "_PlannedPiece") -> InputPiece:
        stored = planned.file.model_dump()
        url = f"{self.roots[stored.pop('root')]}/{planned.file.relative}"
        file = InputFile(url=url, stamp=self.stamps.get(url, ""), **stored)
        return InputPiece(file=file, start=planned.start, end=planned.end)

    def read(self, split: Any, tally: Tally | None = None) -> Iterator[tuple[str, pa.RecordBatch, list[Bad]]]:
        """The source of a split in its stored form, with each of its batches and their bad rows."""
        pieces = self.from_plan(split)
        name = pieces.source
        for batch, bad in read_split(self.sources[name], self.shapes[name], pieces, self.storage, self.limits, tally):
            yield name, batch, bad

    @property
    def fields(self) -> pa.Schema:
        """The fields of all sources.

        Raises:
            ConfigError: two sources disagree about a field.
        """
        return union({name: shape.fields for name, shape in self.shapes.items()})


class _PlannedFile(BaseModel, strict=True, extra="forbid"):
    """A file as the plan stores it."""

    root: int
    relative: str
    bytes: int
    etag: str
    # Plans from before format 2 of the manifests do not name them.
    table: str = ""
    first_row: int = 0


class _PlannedPiece(BaseModel, strict=True, extra="forbid"):
    """An InputPiece as the plan stores it."""

    file: _PlannedFile
    start: int
    end: int


class _PlannedInput(BaseModel, strict=True, extra="forbid"):
    """An InputSplit as the plan stores it."""

    source: str
    pieces: list[_PlannedPiece]


class _PlannedAlone(_PlannedPiece):
    """An InputSplit in an older plan, in which each had one piece."""

    source: str

    @property
    def pieces(self) -> list[_PlannedPiece]:
        return [self]


class _PlannedSplit(BaseModel, strict=True, extra="forbid"):
    """A split of ingest as the plan stores it."""

    number: int
    input: _PlannedInput | _PlannedAlone


def root_of(file: InputFile) -> str:
    """The folder that the pattern of a file starts with."""
    return file.url.removesuffix(f"/{file.relative}")
