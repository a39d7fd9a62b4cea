"""A seeded sample of a recipe's input: the same recipe over several dozen pieces of it.

Each piece is a stretch of one file at a random place. The middle of a compressed file cannot be reached. Such a
file is read once from its start, for the total length of its pieces, and cut into that many. Costs one
listing of the input and the reading of the pieces, of which one is held in memory.
"""

import io
import posixpath
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

import numpy as np
import pyarrow.parquet as pq

from etl.errors import ConfigError, decoding
from etl.run.recipe import Recipe
from etl.sources.compressed import unpacked
from etl.sources.files import InputFile, cut, list_files, row_group_shares, split_bytes_of
from etl.sources.formats.json_values import has_lines
from etl.sources.partitions import partition_folders
from etl.sources.spec import Source
from etl.storage.location import Location
from etl.storage.remote import Storage

MAX_PIECES = 48
MIN_PIECE_BYTES = 1 << 16
_STORED_BYTES = 1 << 10
"""Bytes of a compressed file to read at a time: this limits how exactly stored bytes can be assigned to its text."""
_LITTLE_TEXT_BYTES = 1 << 10
"""The same for its text."""
_TEXT_BYTES = 1 << 16


@dataclass(frozen=True)
class Sample:
    """A recipe over pieces of the input; each is one split, as far as they are equally long."""

    recipe: Recipe
    input_bytes: int
    sample_bytes: int
    input_splits: int
    """Splits that the whole input would have."""

    @property
    def scale(self) -> float:
        return max(1.0, self.input_bytes / max(1, self.sample_bytes))


def write_sample(recipe: Recipe, folder: Path, sample_bytes: int, seed: int) -> Sample:
    """Copy pieces of every source below a folder; an input no larger than the sample is used as it is.

    Raises:
        ConfigError: a source is a table of a catalog or a dataset, or has a limit.
        SourceError: an input is absent or damaged.
    """
    files = {name: _listed(name, source, recipe.storage) for name, source in recipe.sources.items()}
    total = sum(file.bytes for found in files.values() for file in found)
    split_bytes = recipe.run.split_bytes or split_bytes_of(total)
    splits = sum(
        len(list(cut(name, source, files[name], split_bytes, recipe.storage)))
        for name, source in recipe.sources.items()
    )
    output = {"output": str(folder / "out"), "storage": {}}
    if sample_bytes >= total:
        return Sample(recipe.model_copy(update=output), total, total, splits)
    rng = np.random.default_rng(seed)
    sources, taken, longest = {}, 0, 0
    for name, source in recipe.sources.items():
        wanted = sample_bytes * sum(file.bytes for file in files[name]) / total
        pieces = max(1, min(MAX_PIECES, int(wanted // MIN_PIECE_BYTES)))
        size = max(1, int(wanted / pieces))
        longest = max(longest, size)
        for number, (file, offsets) in enumerate(_places(files[name], pieces, size, rng).items()):
            location = source.locate(file.url, recipe.storage)
            place = folder.joinpath(name, *partition_folders(file.relative))
            place.mkdir(parents=True, exist_ok=True)
            kind = _kind(source, location, file)
            taken += _copy_pieces(location, file, kind, offsets, size, place / f"{number:03d}")
        sources[name] = source.model_copy(update={"path": str(folder / name), "options": {}})
    changed = {
        "sources": sources,
        # A piece may begin inside a tree, whose first messages are then missing.
        **({"max_bad_fraction": 1.0} if any(one.shape().assemble is not None for one in sources.values()) else {}),
        "run": recipe.run.model_copy(update={"split_bytes": longest}),
        "stages": tuple(stage.for_sample(taken / total) for stage in recipe.stages),
        **output,
    }
    return Sample(recipe.model_copy(update=changed), total, taken, splits)


def _listed(name: str, source: Source, storage: Storage) -> list[InputFile]:
    if source.table is not None:
        raise ConfigError(f"sources.{name}.table={source.table}: only files can be sampled, not a table")
    if source.dataset is not None:
        raise ConfigError(f"sources.{name}.dataset={source.dataset}: only files can be sampled, not a dataset")
    if source.limit is not None:
        raise ConfigError(f"sources.{name}.limit={source.limit}: only whole sources can be sampled; remove the limit")
    return list_files(name, source, storage)


def _places(files: list[InputFile], pieces: int, size: int, rng: np.random.Generator) -> dict[InputFile, list[int]]:
    """Byte offsets, by file, of pieces that do not overlap, drawn evenly from all files laid end to end.

    They are drawn at random, not one in each stretch. Otherwise two rows of one stretch could never come from two
    pieces, and pairs of rows near each other would be missed.
    """
    ends = np.cumsum([file.bytes for file in files])
    slots = max(pieces, int(ends[-1]) // size)
    found: dict[InputFile, list[int]] = {}
    for slot in np.sort(rng.choice(slots, pieces, replace=False)).tolist():
        at = slot * size
        place = min(int(np.searchsorted(ends, at, "right")), len(files) - 1)
        found.setdefault(files[place], []).append(at - int(ends[place] - files[place].bytes))
    return found


Kind = Literal["parquet", "lines", "whole"]
"""How a file is cut: at rows; at lines, which a source of text rows reads with any line ending; or not at all."""


def _kind(source: Source, location: Location, file: InputFile) -> Kind:
    found = source.format_of(file.relative)
    if found == "parquet":
        return "parquet"
    has_lines = _has_lines(location, file) if found == "jsonl" else source.text_rows not in (None, "file")
    return "lines" if has_lines else "whole"


def _copy_pieces(location: Location, file: InputFile, kind: Kind, offsets: list[int], size: int, target: Path) -> int:
    """Write pieces of a file, each named with the target's name as prefix; returns the stored bytes of all pieces."""
    places = [target.with_name(f"{target.name}-{number:03d}") for number in range(len(offsets))]
    if kind == "whole":
        return _copy_whole(location, file, target)
    if file.compression is not None:
        return _copy_start(location, file, size, places)
    copy = _copy_row_group if kind == "parquet" else _copy_lines
    return sum(copy(location, file, offset, size, place) for offset, place in zip(offsets, places, strict=True))


def _has_lines(location: Location, file: InputFile) -> bool:
    with location.open() as stored:
        return has_lines(unpacked(file.compression, file.url, stored), location.name)


def _copy_whole(location: Location, file: InputFile, target: Path) -> int:
    """Copy a file that cannot be cut without reading it."""
    whole = target.with_name(f"{target.name}-{posixpath.basename(file.relative)}")
    with location.open() as raw, whole.open("wb") as out:
        shutil.copyfileobj(raw, out, _TEXT_BYTES)
    return file.bytes


def _copy_start(location: Location, file: InputFile, size: int, targets: list[Path]) -> int:
    """Cut the start of a compressed file into pieces of whole lines, each of about `size` stored bytes.

    A decompressor returns nothing before it has a whole block (for bz2, up to 900 kB of text), so a piece ends only
    where it has asked for more of the file: the text returned by then belongs to the stored bytes so far.

    Returns:
        the stored bytes of the pieces. They are fewer than there are targets where blocks are longer than `size`.
    """
    with location.open() as raw:
        stored = _Counted(raw)
        # No buffer: it would be filled with the text of many stored bytes.
        text = cast(io.BufferedReader, unpacked(file.compression, file.url, cast("IO[bytes]", stored))).raw
        left, held, written, given, goal = list(targets), bytearray(), 0, 0, size
        while data := text.read(_LITTLE_TEXT_BYTES):
            if stored.num_bytes > given >= goal and (end := held.rfind(b"\n") + 1):
                left.pop(0).with_suffix(".jsonl").write_bytes(held[:end])
                written += end
                del held[:end]
                # A block may be as long as several pieces.
                del left[: (given - goal) // size]
                if not left:
                    return round(given * written / (written + len(held)))
                goal += size * (1 + (given - goal) // size)
            held += data
            given = stored.num_bytes
        left[0].with_suffix(".jsonl").write_bytes(held)
        return file.bytes


class _Counted:
    """A file that is read in small steps, so that little more is read than is needed."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self.num_bytes = 0

    def read(self, num_bytes: int) -> bytes:
        data = self._raw.read(min(num_bytes, _STORED_BYTES))
        self.num_bytes += len(data)
        return data


def _copy_row_group(location: Location, file: InputFile, offset: int, size: int, target: Path) -> int:
    """Write rows of about `size` stored bytes from an offset of a file; returns the stored bytes of these rows."""
    share = _copy_rows(location, offset / file.bytes, size / file.bytes, target.with_suffix(".parquet"))
    return round(share * file.bytes)


def _copy_lines(location: Location, _: InputFile, offset: int, size: int, target: Path) -> int:
    """Write lines of about `size` stored bytes from an offset of a file; returns the stored bytes of these lines."""
    with location.open() as raw:
        raw.seek(max(0, offset - 1))
        if offset:
            raw.readline()
        start = raw.tell()
        data = raw.read(max(0, offset + size - start)) + raw.readline()
        target.with_suffix(".jsonl").write_bytes(data)
        return int(raw.tell() - start)


def _copy_rows(location: Location, place: float, share: float, target: Path) -> float:
    """Write about `share` of a Parquet file's rows from `place` of the way into it, at most to the end of a row group.

    Shares are measured in bytes of row groups, so pieces that do not overlap in the file have no row in common.

    Returns:
        the share that was written.
    """
    with location.open_parquet() as file:
        shares = row_group_shares(file)
        ends = np.cumsum(shares)
        group = min(int(np.searchsorted(ends, place, "right")), len(shares) - 1)
        num_rows, of_file = file.metadata.row_group(group).num_rows, shares[group]
        start = (place - ends[group] + of_file) / of_file * num_rows
        first, last = int(start), min(num_rows, int(start + share / of_file * num_rows))
        first = min(first, num_rows - 1)
        with decoding(f"{location}: row group {group}"):
            table = file.read_row_group(group).slice(first, max(1, last - first))
    pq.write_table(table, target)
    return float(of_file * len(table) / num_rows)
