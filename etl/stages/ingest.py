"""Ingest: raw files to PROMPT, with a quarantine of what could not be read.

The one stage that reads raw input, and one of the two that write row data. The quarantine reads again only the splits
in which a row was bad, so a clean input costs nothing for it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from etl.digests import digest_of
from etl.engine import Table
from etl.errors import DataError, SourceError
from etl.laws import Growth, With
from etl.rows import Rows
from etl.schema import PROMPT, QUARANTINE
from etl.sources.files import InputFile, InputSplit, Listed, cut, list_source, part_files
from etl.sources.listing import told
from etl.sources.read import Bad, read_split
from etl.sources.row_groups import Limits
from etl.sources.spec import Shape, Source
from etl.stages.context import Context
from etl.storage.build import Chunk
from etl.storage.dataset import PLAN, Dataset
from etl.storage.manifest import Plan, sum_counts
from etl.storage.remote import Storage
from etl.storage.untrusted import read_object

INGEST_VERSION = 3
"""1 and 2 had no file and position. While it was 1, meta_json got another form for times in nanoseconds, durations,
nested bytes and whole numbers beyond 64 bits."""
QUARANTINE_VERSION = 2
"""1 had no source_example_id; `raw` of a line without a required value was what had been read of it."""
STEP = "ingest"
TABLES: Final = {"ingest": "PROMPT", "quarantine": "QUARANTINE"}
"""The folders that are always written -> the word of the table; a source that is a table of a catalog adds
tables/NAME."""


@dataclass(frozen=True)
class Raw:
    """The sources of a recipe with their descriptions, read on the driver."""

    sources: dict[str, Source]
    shapes: dict[str, Shape]
    roots: tuple[str, ...]
    """Folders that the patterns start with. A plan names a file by its place among them and its path below, so that it
    holds when the input lies elsewhere."""
    stamps: dict[str, str]
    """By URL, what a hashed file must still look like when it is read."""
    storage: Storage
    """The recipe's options by scheme."""
    limits: Limits

    def to_plan(self, piece: InputSplit) -> dict[str, Any]:
        """A split as the plan stores it."""
        tree = piece.model_dump(mode="json")
        del tree["file"]["url"]
        tree["file"]["root"] = self.roots.index(_root(piece.file))
        return tree

    def is_piece(self, files: dict[str, list[InputFile]]) -> Callable[[Any], bool]:
        """Whether a split of a stored plan, which anybody may have written, reads a piece of one of these files."""
        listed = {
            (name, self.roots.index(_root(file)), file.relative, file.bytes, file.etag, file.table, file.first_row)
            for name, found in files.items()
            for file in found
        }

        def check(split: Any) -> bool:
            try:
                piece = _PlannedSplit.model_validate(split).input
            except ValidationError:
                return False
            file = piece.file
            of = (piece.source, file.root, file.relative, file.bytes, file.etag, file.table, file.first_row)
            return of in listed and 0 <= piece.start <= piece.end <= max(1, file.bytes)

        return check

    def from_plan(self, tree: Any) -> InputSplit:
        file = dict(tree["file"])
        url = f"{self.roots[file.pop('root')]}/{file['relative']}"
        return InputSplit.model_validate({**tree, "file": {**file, "url": url, "stamp": self.stamps.get(url, "")}})

    def read(self, split: Any) -> Iterator[tuple[str, InputSplit, pa.RecordBatch, list[Bad]]]:
        """The batches of a split as the plan stores it."""
        piece = self.from_plan(split)
        name = piece.source
        for batch, bad in read_split(self.sources[name], self.shapes[name], piece, self.storage, self.limits):
            yield name, piece, batch, bad


class _PlannedFile(BaseModel, strict=True, extra="forbid"):
    """A file as the plan stores it."""

    root: int
    relative: str
    bytes: int
    etag: str
    # Plans before format 2 of the manifests do not name them.
    table: str = ""
    first_row: int = 0


class _PlannedInput(BaseModel, strict=True, extra="forbid"):
    """An InputSplit as the plan stores it."""

    source: str
    file: _PlannedFile
    start: int
    end: int


class _PlannedSplit(BaseModel, strict=True, extra="forbid"):
    """A split of ingest as the plan stores it."""

    number: int
    input: _PlannedInput


@dataclass(frozen=True)
class WritePrompts:
    """One split of raw input to PROMPT rows; counts the bad ones."""

    raw: Raw

    def __call__(self, split: Any) -> Iterator[Chunk]:
        for name, _, batch, bad in self.raw.read(split["input"]):
            lost = sum_counts({f"quarantined:{row.reason}": 1} for row in bad)
            rows = batch.num_rows + len(bad)
            counts = {"in": rows, "made": 0, "kept": batch.num_rows, **lost}
            where = {"quarantined": {str(split["number"]): len(bad)}} if bad else {}
            yield Chunk(batch, rows, {name: {STEP: counts}}, where)


@dataclass(frozen=True)
class WriteQuarantine:
    """The bad rows of one split, with file, position, reason and what stood there."""

    raw: Raw

    def __call__(self, split: Any) -> Iterator[Chunk]:
        for name, piece, _, bad in self.raw.read(split["input"]):
            rows = [
                {
                    "source": name,
                    "source_example_id": row.example_id,
                    "file": piece.file.called,
                    "position": row.position,
                    "reason": row.reason,
                    "detail": row.detail,
                    "raw": row.raw,
                }
                for row in bad
            ]
            counts = {"in": len(bad), "made": 0, "kept": len(bad)}
            accounting = {name: {"quarantine": counts}} if bad else {}
            yield Chunk(pa.RecordBatch.from_pylist(rows, schema=QUARANTINE), len(bad), accounting)


def _root(file: InputFile) -> str:
    return file.url.removesuffix(f"/{file.relative}")


def ingest(context: Context, sources: dict[str, Source], max_bad_fraction: float, max_row_bytes: int) -> Rows:
    """Write DIR/ingest and, for what could not be read, DIR/quarantine.

    Args:
        context: of the run.
        sources: of the recipe, by name.
        max_bad_fraction: share of a source's rows that may be quarantined before the run fails.
        max_row_bytes: length of a row above which it is quarantined.

    Raises:
        SourceError: an input is absent or damaged, or more than max_bad_fraction of a source was quarantined.
        ConfigError: the description of a data set is wrong.
    """
    storage = context.storage
    landed = {name: _land(context, name, source) for name, source in sources.items() if source.table is not None}
    listed = {name: _listed(name, source, landed.get(name), storage) for name, source in sources.items()}
    for name, found in listed.items():
        for line in told(found.left_out):
            context.tell_always(name, line)
    files = {name: found.files for name, found in listed.items()}
    roots = tuple(dict.fromkeys(_root(file) for found in files.values() for file in found))
    stamps = {file.url: file.stamp for found in files.values() for file in found if file.stamp}
    limits = Limits(max_row_bytes, context.cutting.max_row_group_bytes)
    raw = Raw(sources, {name: source.shape() for name, source in sources.items()}, roots, stamps, storage, limits)
    identity = {
        name: {"shape": shape.fingerprinted(), **({} if name in landed else _listing(files[name], shape))}
        for name, shape in raw.shapes.items()
    }
    splits = [
        {"number": number, "input": raw.to_plan(piece)}
        for number, piece in enumerate(
            piece
            for name, source in sources.items()
            for piece in cut(name, source, files[name], context.cutting.split_bytes, storage)
        )
    ]
    semantic = {"version": INGEST_VERSION, "max_row_bytes": max_row_bytes, "sources": identity}
    empty = {name: {STEP: {"in": 0, "made": 0, "kept": 0}} for name in sources}
    findings = {"inputs": {name: _findings(one) for name, one in listed.items() if name not in landed}}
    job = (
        context.job("ingest", "PROMPT", PROMPT, semantic, tuple(landed.values()))
        .with_inherited(empty)
        .with_findings(findings)
        .with_pieces(raw.is_piece(files))
    )

    def committed(ingested: Dataset) -> None:
        for name, one in listed.items():
            rows = ingested.manifest.account(name, STEP)["in"]
            count = len(one.files)
            size = f"{count:,} file{'s' * (count != 1)}, {_bytes(one.files):,} bytes"
            context.tell_always(name, f"{rows:>10,} rows in {size}")
        _quarantine(context, raw, max_bad_fraction, ingested, job.is_piece)

    return Rows.of(context.map(job, splits, WritePrompts(raw), then=committed))


def _listed(name: str, source: Source, landed: Dataset | None, storage: Storage) -> Listed:
    if landed is None:
        return list_source(name, source, storage)
    assert source.table is not None
    return Listed(part_files(landed, source.table), {})


def _land(context: Context, name: str, source: Source) -> Dataset:
    """The columns of a table that are read, as a dataset."""
    assert source.table is not None
    shape = source.shape()
    return context.engine.land(Table(name, source.table, shape.columns), context.output / f"tables/{name}")


def _bytes(files: list[InputFile]) -> int:
    return sum(file.bytes for file in files)


def _findings(listed: Listed) -> dict[str, Any]:
    """For the manifest: what was found for one source and what of it is not read."""
    return {"files": len(listed.files), "bytes": _bytes(listed.files), "left_out": listed.left_out}


def _listing(files: list[InputFile], shape: Shape) -> dict[str, Any]:
    """What decides the rows of a source of files, beside its shape."""
    listing = [[file.relative, file.bytes, file.etag] for file in files]
    of_folders = {key for file in files for key in file.partitions}.intersection(shape.columns)
    return {
        "files": len(files),
        "bytes": _bytes(files),
        "listing": digest_of(listing),
        **({"columns_of_folders": sorted(of_folders)} if of_folders else {}),
    }


def _quarantine(
    context: Context, raw: Raw, max_bad_fraction: float, ingested: Dataset, is_piece: Callable[[Any], bool]
) -> None:
    bad = ingested.manifest.counts("quarantined")
    identity = {"ingest": ingested.manifest.fingerprint, "rows": sum(bad.values())}
    grows = Growth(With.INPUT, work=With.INPUT)
    job = context.job("quarantine", "QUARANTINE", QUARANTINE, identity, version=QUARANTINE_VERSION, grows=grows)
    job = job.with_pieces(is_piece)
    # The numbers are those of the plan that ingest was committed under; this run may cut its input in another way.
    remedy = f"remove {ingested.folder} and run again"
    plan = read_object(ingested.folder / PLAN, Plan, remedy)
    if bad and not all(map(is_piece, plan.splits)):
        raise DataError(f"{ingested.folder / PLAN} has splits that are no pieces of the input; {remedy}")
    chosen = [split for split in plan.splits if bad and str(split["number"]) in bad]
    context.map(job, chosen, WriteQuarantine(raw))
    for source in ingested.manifest.accounting:
        counts = ingested.manifest.account(source, STEP)
        lost = counts["in"] - counts["kept"]
        if lost > max_bad_fraction * counts["in"]:
            context.engine.settle()
            raise SourceError(
                f"source '{source}': {lost} of {counts['in']} rows could not be read, more than max_bad_fraction="
                f"{max_bad_fraction}; their places and reasons are in {context.output / 'quarantine'}"
            )
