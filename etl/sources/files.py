"""Finding a source's files and cutting them into splits; etl/sources/listing.py says which files a pattern names.

Parquet is cut at row groups, plain JSONL at byte ranges, a compressed JSONL file is one piece. Pieces that follow each
other in the listing share a split as long as they are no larger than one together, so that many small files are few
tasks. A file's identity is its path below the source's folder, its size and its etag; a file of a store without one,
such as a local disk, is hashed (a few GB a second, and the page cache then holds what ingest reads next). Reads of an
object ask for that very etag, and those of a hashed file for the size and the time in nanoseconds that the listing saw.
A source with a `limit` is one split, and its local files are known by size and time, since hashing reads all of them.

Costs one footer for each Parquet file that is larger than a split; nothing is opened of the others.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import pyarrow.parquet as pq
import xxhash
from pydantic import Field

from etl.config import Config
from etl.digests import digest_of
from etl.errors import ConfigError, DataError, SourceError, decoding
from etl.extras import check_installed
from etl.sources.formats.endings import FORMATS, compression_of
from etl.sources.formats.pages import packages_for
from etl.sources.hub_listing import keep_listing, kept_listing
from etl.sources.listing import BESIDE, ENDING, LeftOut, Listing, list_pattern, summary, told
from etl.sources.partitions import partitions_of
from etl.sources.sample import sample_folder
from etl.sources.shards import Shards
from etl.sources.spec import Source
from etl.storage.dataset import Dataset
from etl.storage.location import Location, stamp_of
from etl.storage.remote import Storage

SAMPLE = "sample:"
"""A path that begins so is below the embedded sample's folder."""
INPUT_SPLITS = 24
"""Into so many splits the input is cut where no recipe says more, as far as their bounds allow."""
MIN_SPLIT_BYTES = 4 << 20
MAX_SPLIT_BYTES = 128 << 20
OPEN_BYTES = 4 << 10
"""What a smaller file counts for in a split: to open it takes its time, too, above all on an object store."""
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
    def compression(self) -> str | None:
        """What fsspec calls the compression of the whole file."""
        return compression_of(self.relative)

    @property
    def partitions(self) -> dict[str, str | None]:
        """Columns that the folders above the file stand for."""
        return partitions_of(self.relative)


class InputPiece(Config):
    """What is read of a file: row groups [start, end) or bytes [start, end); an end beyond the file's is the file's."""

    file: InputFile
    start: int
    end: int

    def of_folders(self, columns: Sequence[str]) -> dict[str, str | None]:
        """Those of some columns that the folders above the file stand for."""
        return {name: value for name, value in self.file.partitions.items() if name in columns}


class InputSplit(Config):
    """What one task reads: pieces of the files of a source, in the order of their listing."""

    source: str
    pieces: tuple[InputPiece, ...]


@dataclass(frozen=True)
class Listed:
    """What the patterns of a source come to."""

    files: list[InputFile]
    """Sorted by relative path, or shuffled."""
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
        ConfigError: a package that reads the files is not installed.
    """
    found: dict[str, InputFile] = {}
    left_out: dict[str, tuple[str, str]] = {}
    try:
        for place, listing in _listings(source, storage):
            if not listing.files:
                place.check_bucket()
                raise _no_file(name, place, listing)
            found |= {file.url: file for file in _described(source, place, listing)}
            left_out |= {url_of(place, path): what for path, what in listing.left_out.items()}
    except (DataError, SourceError) as error:
        raise SourceError(f"source '{name}': {error}") from error
    except ConfigError as error:
        raise ConfigError(f"sources.{name}.path: {error}") from error
    files = _in_order(found.values(), source.shuffle)
    return Listed(files, summary(what for url, what in left_out.items() if url not in found))


def _listings(source: Source, storage: Storage) -> Iterator[tuple[Location, Listing]]:
    """What each pattern of a source comes to, or each name in its list of shards."""
    shards = shards_of(source, storage)
    if shards is None:
        for place in source_places(source, storage):
            yield place, listing_of(source, place)
        return
    if shards.relative:
        (folder,) = _places(source, source.patterns, storage)
        listing = listing_of(source, folder)
        shards.choose(listing, folder)
        yield folder, listing
    for name in shards.whole:
        place = source.locate(name, storage)
        listing = listing_of(source, place)
        shards.check_whole(name, listing)
        yield place, listing


def shards_of(source: Source, storage: Storage) -> Shards | None:
    """What a source's list of shards names; None where it has no list.

    Raises:
        SourceError: there is no such list, or something is wrong in it.
    """
    return None if source.shards is None else Shards.read(source.locate(source.shards, storage))


def _in_order(files: Iterable[InputFile], seed: int | None) -> list[InputFile]:
    """By the path below the source's folder, or by a hash of it and the seed, wherever the folder lies."""
    ordered = sorted(files, key=lambda file: (file.relative, file.url))
    if seed is None:
        return ordered
    return sorted(ordered, key=lambda file: xxhash.xxh3_64_intdigest(f"{seed}/{file.relative}".encode()))


def listing_of(source: Source, place: Location) -> Listing:
    """What one pattern of a source comes to.

    Raises:
        ConfigError: a package that reads the files is not installed.
    """
    listing = kept_listing(source, place)
    if listing is None:
        listing = place.ask("list", functools.partial(list_pattern, place, source.format_of))
        keep_listing(source, place, listing)
    _leave_out_notes(listing, source)
    if any(source.format_of(found.relative) == "warc" for found in listing.files):
        check_installed(*packages_for(source.html))
    return listing


def _leave_out_notes(listing: Listing, source: Source) -> None:
    """Leave out what reads as text by its ending alone and lies among other data, such as a README.txt."""
    notes = [found for found in listing.files if source.format_of(found.relative) == "text"]
    if source.text_rows is None and len(notes) < len(listing.files):
        listing.files = [found for found in listing.files if found not in notes]
        for found in notes:
            listing.leave_out(BESIDE, found.relative)


def list_files(name: str, source: Source, storage: Storage) -> list[InputFile]:
    """The files of a source alone, as `list_source` finds them."""
    return list_source(name, source, storage).files


def source_places(source: Source, storage: Storage) -> list[Location]:
    """The paths, globs and folders of a source with their options, those of the embedded sample in its folder.

    Raises:
        SourceError: its list of shards is absent or wrong.
    """
    shards = shards_of(source, storage)
    if shards is None:
        return _places(source, source.patterns, storage)
    return _places(source, (*(source.patterns if shards.relative else ()), *shards.whole), storage)


def _places(source: Source, patterns: Iterable[str], storage: Storage) -> list[Location]:
    inside = [
        str(sample_folder() / pattern.removeprefix(SAMPLE)) if pattern.startswith(SAMPLE) else pattern
        for pattern in patterns
    ]
    return [source.locate(pattern, storage) for pattern in inside]


def part_files(dataset: Dataset, table: str) -> list[InputFile]:
    """The parts of a landed table as input, each with the number of its first row."""
    first_rows = itertools.accumulate((part.rows for part in dataset.manifest.parts), initial=0)
    return [
        file.model_copy(update={"table": table, "first_row": first_row})
        for file, first_row in zip(dataset_files(dataset), first_rows, strict=False)
    ]


def open_dataset(name: str, source: Source, storage: Storage) -> Dataset:
    """The committed dataset that a source names.

    Raises:
        SourceError: there is none, or its manifest is damaged.
    """
    assert source.dataset is not None
    try:
        found = Dataset.open(source.locate(source.dataset, storage))
    except DataError as error:
        raise SourceError(f"source '{name}': {error}") from error
    if found.manifest.holds_files:
        raise SourceError(f"source '{name}': {source.dataset} contains files, not rows; give a corpus, or `ingest`")
    return found


def dataset_files(dataset: Dataset) -> list[InputFile]:
    """The parts of a committed dataset as input; their names follow from their content, so nobody looks again."""
    return [
        InputFile(
            url=dataset.part_location(part).url,
            relative=part.path,
            bytes=part.bytes,
            etag=part.sha256,
            stamp=_UNKNOWN,
        )
        for part in dataset.manifest.parts
    ]


def _no_file(name: str, place: Location, listing: Listing) -> SourceError:
    there = "; ".join(told(summary(listing.left_out.values())))
    return SourceError(
        f"no file of {FORMATS} matches {place.url}; check sources.{name}.path"
        + (f" ({there})" if there else "")
        + ("; `text_rows: file` reads any file as text" if ENDING in there else "")
    )


def url_of(place: Location, path: str) -> str:
    return cast(str, place.fs.unstrip_protocol(path)) if "://" in place.url else path


def _described(source: Source, place: Location, listing: Listing) -> Iterator[InputFile]:
    for found in listing.files:
        location = Location(url_of(place, found.path), place.options)
        etag = "" if location.is_local else stamp_of(dict(found.info))
        if found.info["size"] is None:
            raise SourceError(f"the server does not report the length of {location}; copy it to a disk or a store")
        # Before the file is hashed: what is written after that is another file than the one that was hashed.
        stamp = "" if etag else location.stamp()
        yield InputFile(
            url=location.url,
            relative=found.relative,
            bytes=int(found.info["size"]),
            etag=etag or _identity(location, stamp, source),
            stamp="" if etag else stamp or _UNKNOWN,
        )


def _identity(location: Location, stamp: str, source: Source) -> str:
    """What tells a file of a store without etags from what it was: its bytes, or where few are read, its time."""
    return digest_of(stamp) if stamp and source.limit is not None else _digest(location, stamp or None)


def _digest(location: Location, stamp: str | None) -> str:
    digest = xxhash.xxh3_128()
    with location.open(stamp) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def split_bytes_of(input_bytes: int) -> int:
    """Stored bytes of a split where the recipe says none: they follow from those of its whole input alone.

    So every machine and engine cuts alike, and a run that was begun on one is continued on another.
    """
    return min(max(input_bytes // INPUT_SPLITS, MIN_SPLIT_BYTES), MAX_SPLIT_BYTES)


def cut(
    name: str, source: Source, files: Sequence[InputFile], split_bytes: int, storage: Storage
) -> Iterator[InputSplit]:
    """Splits of about `split_bytes` of stored bytes each, of as many files as fit.

    Args:
        name: of the source.
        source: whose files they are.
        files: as `list_files` has found them.
        split_bytes: stored bytes of a split, more where one row group or one compressed file has more. A file counts
            for OPEN_BYTES at least.
        storage: the recipe's options by scheme.

    Raises:
        SourceError: the footer of a Parquet file that is larger than a split is damaged.
    """
    pieces: list[InputPiece] = []
    held_bytes = 0
    if source.limit is not None:
        # The first rows are read one after the other, by one task.
        split_bytes = sum(max(file.bytes, OPEN_BYTES) for file in files)
    for piece, stored_bytes in _cut_files(source, files, split_bytes, storage):
        size = max(stored_bytes, OPEN_BYTES)
        if pieces and held_bytes + size > split_bytes:
            yield InputSplit(source=name, pieces=tuple(pieces))
            pieces, held_bytes = [], 0
        pieces.append(piece)
        held_bytes += size
    if pieces:
        yield InputSplit(source=name, pieces=tuple(pieces))


def _cut_files(
    source: Source, files: Sequence[InputFile], split_bytes: int, storage: Storage
) -> Iterator[tuple[InputPiece, int]]:
    """The pieces of all files, each with its stored bytes."""
    for file in files:
        if source.format_of(file.relative) == "parquet" and file.bytes > split_bytes:
            yield from _cut_parquet(source.locate(file.url, storage), file, split_bytes)
        elif not source.can_be_cut(file.relative):
            # A file has more bytes than row groups, and what is packed more than it takes: this is all of it.
            yield InputPiece(file=file, start=0, end=file.bytes), file.bytes
        else:
            for start in range(0, file.bytes, split_bytes):
                end = min(start + split_bytes, file.bytes)
                yield InputPiece(file=file, start=start, end=end), end - start


def row_group_shares(parquet: pq.ParquetFile) -> list[float]:
    """Share of each row group in a file's rows as they were before compression, from its footer.

    The footer says what each column of it stores, too. That is not asked for: where it is encrypted, or damaged so that
    it seems to be, pyarrow ends the process instead of raising.
    """
    groups = (parquet.metadata.row_group(number) for number in range(parquet.num_row_groups))
    sizes = [max(1, group.total_byte_size) for group in groups]
    return [size / sum(sizes) for size in sizes]


def _cut_parquet(location: Location, file: InputFile, split_bytes: int) -> Iterator[tuple[InputPiece, int]]:
    with location.open_parquet() as parquet, decoding(location.url):
        sizes = [round(share * file.bytes) for share in row_group_shares(parquet)]
    start = 0
    held = 0
    for group, size in enumerate(sizes):
        # The nearer of the two sizes: row groups of half a split and more would else be splits of their own.
        if held and held + size / 2 > split_bytes:
            yield InputPiece(file=file, start=start, end=group), held
            start, held = group, 0
        held += size
    if start < len(sizes):
        yield InputPiece(file=file, start=start, end=len(sizes)), held
