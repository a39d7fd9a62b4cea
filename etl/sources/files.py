"""Finding a source's files and cutting them into splits; etl/sources/listing.py says which files a pattern names.

Parquet is cut at row groups, plain JSONL at byte ranges, a compressed JSONL file is one split. A file's identity is its
path below the source's folder, its size and its etag; a file of a store without one, such as a local disk, is hashed (a
few GB a second, and the page cache then holds what ingest reads next). Reads of an object ask for that very etag, and
those of a hashed file for the size and the time in nanoseconds that the listing saw.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import pyarrow.parquet as pq
import xxhash
from pydantic import Field

from etl.config import Config
from etl.errors import DataError, SourceError, decoding
from etl.sources.formats import FORMATS, compression_of, format_of
from etl.sources.listing import LeftOut, Listing, list_pattern, summary, told
from etl.sources.partitions import partitions_of
from etl.sources.sample import sample_folder
from etl.sources.spec import Source
from etl.storage.dataset import Dataset
from etl.storage.location import Location, stamp_of
from etl.storage.remote import Storage

SAMPLE = "sample:"
"""A path that begins so is below the embedded sample's folder."""
_BLOCK = 1 << 22
_UNKNOWN = "?"


class InputFile(Config):
    """One file of a source."""

    url: str
    relative: str
    """Path below the folder that the source's pattern starts with."""
    bytes: int
    etag: str
    stamp: str = Field(default="", exclude=True)
    """What changes when a hashed file is written again; of this listing alone, so that no plan holds a time."""
    table: str = ""
    """Name of the catalog's table that it is a part of."""
    first_row: int = Field(default=0, ge=0)
    """Of such a part: rows in the parts before it."""

    @property
    def pin(self) -> str | None:
        """What `Location.open` compares; None where the store tells nothing that would change."""
        return None if self.stamp == _UNKNOWN else self.stamp or self.etag

    @property
    def called(self) -> str:
        """The `file` of its rows, good and bad."""
        return self.table or self.relative

    @property
    def format(self) -> str:
        found = format_of(self.relative)
        assert found is not None, self.relative
        return found

    @property
    def compression(self) -> str | None:
        """What fsspec calls the compression of the whole file."""
        return compression_of(self.relative)

    @property
    def partitions(self) -> dict[str, str | None]:
        """Columns that the folders above the file stand for."""
        return partitions_of(self.relative)


class InputSplit(Config):
    """The piece of a file that one task reads: row groups [start, end) or bytes [start, end)."""

    source: str
    file: InputFile
    start: int
    end: int


@dataclass(frozen=True)
class Listed:
    """What the patterns of a source come to."""

    files: list[InputFile]
    """Sorted by relative path."""
    left_out: LeftOut


def list_source(name: str, source: Source, storage: Storage) -> Listed:
    """The files of a source, and those that lie among them and are not read.

    Args:
        name: of the source, for errors.
        source: what is listed.
        storage: the recipe's options by scheme.

    Raises:
        SourceError: a pattern matches no file, a link is broken, or a file that was named has a suffix that we cannot
            read.
    """
    found: dict[str, InputFile] = {}
    left_out: dict[str, tuple[str, str]] = {}
    for place in source_places(source, storage):
        try:
            listing = place.ask("list", functools.partial(list_pattern, place))
            if not listing.files:
                place.check_bucket()
                raise _no_file(name, place, listing)
            found |= {file.url: file for file in _described(place, listing)}
            left_out |= {_url(place, path): what for path, what in listing.left_out.items()}
        except (DataError, SourceError) as error:
            raise SourceError(f"source '{name}': {error}") from error
    files = sorted(found.values(), key=lambda file: (file.relative, file.url))
    return Listed(files, summary(what for url, what in left_out.items() if url not in found))


def list_files(name: str, source: Source, storage: Storage) -> list[InputFile]:
    """The files of a source alone, as `list_source` finds them."""
    return list_source(name, source, storage).files


def source_places(source: Source, storage: Storage) -> list[Location]:
    """The paths, globs and folders of a source with their options, those of the embedded sample in its folder."""
    patterns = [
        str(sample_folder() / pattern.removeprefix(SAMPLE)) if pattern.startswith(SAMPLE) else pattern
        for pattern in source.patterns
    ]
    return [source.locate(pattern, storage) for pattern in patterns]


def part_files(dataset: Dataset, table: str) -> list[InputFile]:
    """The parts of a landed table as input; their names follow from their content, so they are not looked at again."""
    parts = dataset.manifest.parts
    first_rows = itertools.accumulate((part.rows for part in parts), initial=0)
    return [
        InputFile(
            url=dataset.part_location(part).url,
            relative=part.path,
            bytes=part.bytes,
            etag=part.sha256,
            stamp=_UNKNOWN,
            table=table,
            first_row=first_row,
        )
        for part, first_row in zip(parts, first_rows, strict=False)
    ]


def _no_file(name: str, place: Location, listing: Listing) -> SourceError:
    there = "; ".join(told(summary(listing.left_out.values())))
    return SourceError(
        f"no file of {FORMATS} matches {place.url}; check sources.{name}.path" + (f" ({there})" if there else "")
    )


def _url(place: Location, path: str) -> str:
    return cast(str, place.fs.unstrip_protocol(path)) if "://" in place.url else path


def _described(place: Location, listing: Listing) -> Iterator[InputFile]:
    for found in listing.files:
        location = Location(_url(place, found.path), place.options)
        etag = "" if location.is_local else stamp_of(dict(found.info))
        yield InputFile(
            url=location.url,
            relative=found.relative,
            bytes=int(found.info["size"]),
            etag=etag or _digest(location),
            stamp="" if etag else location.stamp() or _UNKNOWN,
        )


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
        elif file.compression is not None:
            yield InputSplit(source=name, file=file, start=0, end=file.bytes)
        else:
            for start in range(0, file.bytes, split_bytes):
                end = min(start + split_bytes, file.bytes)
                yield InputSplit(source=name, file=file, start=start, end=end)


def row_group_shares(parquet: pq.ParquetFile) -> list[float]:
    """Share of each row group in a file's rows as they were before compression, from its footer.

    The footer says what each column of it stores, too. That is not asked for: where it is encrypted, or damaged so that
    it seems to be, pyarrow ends the process instead of raising.
    """
    groups = (parquet.metadata.row_group(number) for number in range(parquet.num_row_groups))
    sizes = [max(1, group.total_byte_size) for group in groups]
    return [size / sum(sizes) for size in sizes]


def _cut_parquet(name: str, location: Location, file: InputFile, split_bytes: int) -> Iterator[InputSplit]:
    with location.open_parquet() as parquet, decoding(location.url):
        sizes = [round(share * file.bytes) for share in row_group_shares(parquet)]
    start = 0
    held = 0
    for group, size in enumerate(sizes):
        if held and held + size > split_bytes:
            yield InputSplit(source=name, file=file, start=start, end=group)
            start, held = group, 0
        held += size
    if start < len(sizes):
        yield InputSplit(source=name, file=file, start=start, end=len(sizes))
