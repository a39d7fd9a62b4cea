"""Rows that were made of several raw rows, as ingest has written them: a JSON object each, read as a line of JSONL is.

Raw rows of which nothing could be made stand among them and are bad rows.
"""

from collections.abc import Iterator

import pyarrow as pa

from etl.errors import decoding
from etl.schema import ASSEMBLED
from etl.sources.files import InputPiece
from etl.sources.formats.jsonl import read_lines
from etl.sources.raw import Assembled, Bad, RawBatch
from etl.sources.row_groups import Limits
from etl.sources.spec import Shape
from etl.storage.location import Location


def read_assembled(location: Location, shape: Shape, piece: InputPiece, limits: Limits) -> Iterator[RawBatch]:
    """The batches of a part, one a row group; positions are places in it.

    Args:
        location: of the part.
        shape: of what was made.
        piece: the row groups.
        limits: of a row.

    Raises:
        DataError: the part is not there or damaged.
    """
    with location.open_parquet() as file:
        for group in range(piece.start, min(piece.end, file.num_row_groups)):
            with decoding(f"{location}: row group {group}"):
                found = file.read_row_group(group, columns=ASSEMBLED.names).combine_chunks()
            yield _batch(found, shape, limits)


def _batch(found: pa.Table, shape: Shape, limits: Limits) -> RawBatch:
    records = found["record"].to_pylist()
    made = [row for row, record in enumerate(records) if record is not None]
    batch = read_lines([records[row] for row in made], shape, limits)
    places = pa.array(made, pa.int64())
    batch.positions = places.take(batch.positions)
    for row in batch.bad:
        row.position = made[row.position]
    batch.bad += [
        Bad(row, said["reason"], said["detail"] or "", said["raw"] or b"", said["source_example_id"])
        for row, said in enumerate(found.select(["reason", "detail", "raw", "source_example_id"]).to_pylist())
        if said["reason"] is not None
    ]
    columns = (found[name].combine_chunks() for name in ("file", "position", "conversation"))
    batch.assembled = Assembled(*columns)
    batch.ends_row_group = True
    return batch
