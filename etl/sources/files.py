"""Finding a source's files and cutting them into splits.

Parquet is cut at row groups, plain JSONL at byte ranges, a compressed JSONL file is one split. A file's identity is its
path below the source's folder, its size and its etag; a file of a store without one, such as a local disk, is hashed (a
few GB a second, and the page cache then holds what ingest reads next). Reads of an object ask for that very etag, and
those of a hashed file for the size and the time in nanoseconds that the listing saw.
"""

import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq
import xxhash
from pydantic import Field

from etl.config import Config
from etl.errors import DataError, SourceError
from etl.sources.sample import sample_folder
from etl.sources.spec import Source
from etl.storage.dataset import Dataset
from etl.storage.location import Location, stamp_of
from etl.storage.remote import Storage

FORMATS = (".parquet", ".jsonl", ".json", ".ndjson")
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
SAMPLE = "sample:"
"""A path that begins so is below the embedded sample's folder."""
_BLOCK = 1 << 22
_UNKNOWN = "?"


class InputFile(Config):
    """One file of a source."""

    url: str
    relative: str
    """Path below the folder that the source's pattern starts with: what the file is called in a quarantine."""
    bytes: int
    etag: str
    stamp: str = Field(default="", exclude=True)
    """What changes when a hashed file is written again; of this listing alone, so that no plan holds a time."""

    @property
    def pin(self) -> str | None:
        """What `Location.open` compares; None where the store tells nothing that would change."""
        return None if self.stamp == _UNKNOWN else self.stamp or self.etag

    @property
    def format(self) -> str:
        stem = self.relative
        for suffix in COMPRESSIONS:
            stem = stem.removesuffix(suffix)
        return "parquet" if stem.endswith(".parquet") else "jsonl"


class InputSplit(Config):
    """The piece of a file that one task reads: row groups [start, end) or bytes [start, end)."""

    source: str
    file: InputFile
    start: int
    end: int


def list_files(name: str, source: Source, storage: Storage) -> list[InputFile]:
    """The files of a source, sorted by relative path.

    Args:
        name: of the source, for errors.
        source: what is listed.
        storage: the recipe's options by scheme.

    Raises:
        SourceError: a pattern matches no file, or a file that was named has a suffix that we cannot read.
    """
    found: dict[str, InputFile] = {}
    for pattern in source.patterns:
        if pattern.startswith(SAMPLE):
            pattern = str(sample_folder() / pattern.removeprefix(SAMPLE))
        try:
            for file in _expand(name, source.locate(pattern, storage)):
                found[file.url] = file
        except (DataError, SourceError) as error:
            raise SourceError(f"source '{name}': {error}") from error
    return sorted(found.values(), key=lambda file: (file.relative, file.url))


def part_files(dataset: Dataset) -> list[InputFile]:
    """The parts of a dataset as input; their names follow from their content, so they are not looked at again."""
    return [
        InputFile(
            url=dataset.part_location(part).url, relative=part.path, bytes=part.bytes, etag=part.sha256, stamp=_UNKNOWN
        )
        for part in dataset.manifest.parts
    ]


def _expand(name: str, pattern: Location) -> Iterator[InputFile]:
    path = pattern.path
    folder, found = pattern.ask("list", lambda: _matches(pattern.fs, path))
    if not found:
        pattern.check_bucket()
        raise SourceError(f"no file of {FORMATS} matches {pattern.url}; check sources.{name}.path")
    for item, info in found.items():
        location = Location(pattern.fs.unstrip_protocol(item) if "://" in pattern.url else item, pattern.options)
        etag = "" if location.is_local else stamp_of(info)
        yield InputFile(
            url=location.url,
            relative=posixpath.relpath(item, folder or "/"),
            bytes=int(info["size"]),
            etag=etag or _digest(location),
            stamp="" if etag else location.stamp() or _UNKNOWN,
        )


def _matches(fs: Any, path: str) -> tuple[str, dict[str, Any]]:
    """The folder that a pattern starts with, and path and description of the files that match it.

    A file that is named outright may be hidden; one that a pattern finds may not.
    """
    if any(sign in path for sign in "*?["):
        folder = path[: min(path.index(sign) for sign in "*?[" if sign in path)].rpartition("/")[0]
        found = {item: info for item, info in fs.glob(path, detail=True).items() if info["type"] == "file"}
    elif fs.isdir(path):
        folder = path
        found = fs.find(path, detail=True)
    else:
        if not fs.exists(path):
            return path, {}
        if not _readable(path):
            raise SourceError(f"{path} is none of {FORMATS} (or these with {COMPRESSIONS})")
        return posixpath.dirname(path), {path: fs.info(path)}
    chosen = {item: info for item, info in found.items() if _readable(item) and not _hidden(item.removeprefix(folder))}
    return folder, chosen


def _readable(path: str) -> bool:
    for suffix in COMPRESSIONS:
        path = path.removesuffix(suffix)
    return path.endswith(FORMATS)


def _hidden(relative: str) -> bool:
    return any(piece.startswith(("_", ".")) for piece in relative.split("/") if piece)


def _digest(location: Location) -> str:
    digest = xxhash.xxh3_128()
    with location.open() as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def cut(
    name: str, source: Source, files: Sequence[InputFile], split_bytes: int, storage: Storage
) -> Iterator[InputSplit]:
    """Splits of about `split_bytes` of stored bytes each.

    Args:
        name: of the source.
        source: whose files they are.
        files: as `list_files` has found them.
        split_bytes: stored bytes of a split, more where one row group has more.
        storage: the recipe's options by scheme.

    Raises:
        SourceError: a Parquet footer is damaged.
    """
    for file in files:
        if file.format == "parquet":
            yield from _cut_parquet(name, source.locate(file.url, storage), file, split_bytes)
        elif file.url.endswith(COMPRESSIONS):
            yield InputSplit(source=name, file=file, start=0, end=file.bytes)
        else:
            for start in range(0, file.bytes, split_bytes):
                end = min(start + split_bytes, file.bytes)
                yield InputSplit(source=name, file=file, start=start, end=end)


def row_group_bytes(parquet: pq.ParquetFile) -> list[int]:
    """Stored bytes of each row group of a file, from its footer."""
    groups = (parquet.metadata.row_group(number) for number in range(parquet.num_row_groups))
    return [sum(group.column(number).total_compressed_size for number in range(group.num_columns)) for group in groups]


def _cut_parquet(name: str, location: Location, file: InputFile, split_bytes: int) -> Iterator[InputSplit]:
    with location.open_parquet() as parquet:
        sizes = row_group_bytes(parquet)
    start = 0
    held = 0
    for group, size in enumerate(sizes):
        if held and held + size > split_bytes:
            yield InputSplit(source=name, file=file, start=start, end=group)
            start, held = group, 0
        held += size
    if start < len(sizes):
        yield InputSplit(source=name, file=file, start=start, end=len(sizes))
