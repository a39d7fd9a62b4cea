"""The size of a recipe's input by source, without reading a row.

Files and bytes come from the listing that a run begins with. Rows are known once ingest is committed, and before that
of Parquet, from one footer a file, up to `MAX_FOOTERS` files a source; lines of JSONL would have to be read.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from etl.columns import left, width
from etl.sources.files import InputFile
from etl.sources.listing import LeftOut, told
from etl.stages.assemble import STEP as ASSEMBLE
from etl.stages.assemble import EmitRaw
from etl.stages.ingest import STEP
from etl.stages.raw_input import Raw
from etl.storage.build import Job
from etl.storage.dataset import NUM_READERS, Dataset

MAX_FOOTERS = 256


@dataclass(frozen=True)
class InputSize:
    """The size of one source; None if unknown."""

    source: str
    files: int | None = None
    rows: int | None = None
    bytes: int | None = None
    """Bytes as stored; compressed files count compressed."""
    left_out: LeftOut = field(default_factory=dict)
    """Files among them that are not read."""
    hub: tuple[str, ...] = ()
    """`datasets/OWNER/NAME@COMMIT` of each commit that is read from the hub."""


def input_sizes(
    job: Job, raw: Raw, splits: Iterable[Any], current: Dataset | None, assembled: Mapping[str, InputSize]
) -> tuple[InputSize, ...]:
    """The sizes of all sources, in the order of the recipe.

    Args:
        job: the job of ingest.
        raw: what it would read.
        assembled: the sizes of the sources whose rows are assembled.
        splits: what its tasks would read, as a plan stores it.
        current: what is committed of it, if that is what the job would write.

    Raises:
        SourceError: a Parquet footer is damaged.
    """
    files: dict[str, dict[str, InputFile]] = {name: {} for name in raw.sources}
    # Cutting the input may look at each file, so it is done only where its files are not known otherwise.
    is_known = current is not None and raw.sources.keys() <= job.findings["inputs"].keys()
    for split in () if is_known else splits:
        planned = raw.from_plan(split)
        files[planned.source] |= {piece.file.url: piece.file for piece in planned.pieces}
    return tuple(
        replace(assembled[name], left_out=job.findings["inputs"][name]["left_out"])
        if name in assembled
        else _size(name, job, raw, list(files[name].values()), current)
        for name in raw.sources
    )


def raw_size(emit: EmitRaw, splits: Iterable[Any], current: Dataset | None) -> InputSize:
    """The size of a source whose rows are assembled, without the tables that are joined.

    Args:
        emit: what would read it.
        splits: what its tasks would read.
        current: what is committed of it, if that is what the job would write.

    Raises:
        SourceError: a Parquet footer is damaged.
    """
    name = emit.source
    pieces = (piece for of, split in splits if of == name for piece in emit.raw.from_plan(split).pieces)
    files = list({piece.file.url: piece.file for piece in pieces}.values())
    rows = (
        _rows_of_footers(name, emit.raw, files) if current is None else current.manifest.account(name, ASSEMBLE)["in"]
    )
    return InputSize(name, len(files), rows, sum(file.bytes for file in files))


def _size(name: str, job: Job, raw: Raw, files: Sequence[InputFile], current: Dataset | None) -> InputSize:
    found = job.findings["inputs"].get(name, {})
    num_files = found.get("files", len(files))
    num_bytes = found.get("bytes", sum(file.bytes for file in files))
    rows = _rows_of_footers(name, raw, files) if current is None else current.manifest.account(name, STEP)["in"]
    return InputSize(name, num_files, rows, num_bytes, found.get("left_out", {}), tuple(found.get("hub", ())))


def _rows_of_footers(name: str, raw: Raw, files: Sequence[InputFile]) -> int | None:
    if len(files) > MAX_FOOTERS or any(raw.sources[name].format_of(file.relative) != "parquet" for file in files):
        return None

    def rows(file: InputFile) -> int:
        with raw.sources[name].locate(file.url, raw.storage).open_parquet() as parquet:
            return int(parquet.metadata.num_rows)

    with ThreadPoolExecutor(NUM_READERS) as pool:
        found = sum(pool.map(rows, files))
    limit = raw.sources[name].limit
    return found if limit is None else min(limit, found)


def lines(sizes: Sequence[InputSize]) -> Iterator[str]:
    """A table for a terminal.

    A line for each source. Below it, a line for each commit of the hub and for each reason to leave files out.
    """
    widest = max(width(name) for name in ("source", *(size.source for size in sizes)))
    yield f"{'source':<{widest}}{'files':>10}{'rows':>16}{'bytes':>20}"
    for size in sizes:
        yield f"{left(size.source, widest)}{_shown(size.files):>10}{_shown(size.rows):>16}{_shown(size.bytes):>20}"
    for size in sizes:
        yield from (f"{left(size.source, widest)}  {line}" for line in (*size.hub, *told(size.left_out)))
    if any(size.rows is None for size in sizes):
        yield f"?: unknown until the input is read, except for Parquet of up to {MAX_FOOTERS} files a source"


def _shown(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"
