"""Parquet: row groups [start, end) of a file, column by column.

What pyarrow says of a file or a row group is a SourceError with the file and the rows; etl/sources/row_groups.py bounds
the memory.
"""

from collections.abc import Iterator

import pyarrow as pa

from etl.errors import decoding
from etl.sources import raw
from etl.sources.files import InputPiece
from etl.sources.formats.arrow_columns import ArrowColumns
from etl.sources.raw import RawBatch
from etl.sources.row_groups import Limits, decoded, tables
from etl.sources.spec import Shape
from etl.storage.location import Location


def read_parquet(location: Location, shape: Shape, piece: InputPiece, limits: Limits) -> Iterator[RawBatch]:
    """The batches of a piece.

    Args:
        location: of the file.
        shape: which columns are read.
        piece: the row groups.
        limits: of a row and of a row group.

    Raises:
        SourceError: the file is damaged, lacks a required column or has it twice, or a column has another type.
    """
    with location.open_parquet(piece.file.pin) as file:
        with decoding(str(location)):
            schema = file.schema_arrow
            end = min(piece.end, file.num_row_groups)
            counts = [file.metadata.row_group(group).num_rows for group in range(end)]
        columns = ArrowColumns.of(location, schema, shape, piece)
        row = sum(counts[: piece.start])
        for group in range(piece.start, end):
            place = f"{location}: row group {group} (rows {row} to {row + counts[group] - 1})"
            batches = decoded(place, file, group, columns.roots, limits)
            for table in tables(place, batches, raw.ROW_GROUP_BYTES, limits):
                start = piece.file.first_row + row
                batch = columns.batch(table, pa.array(range(start, start + len(table)), pa.int64()), limits)
                batch.ends_row_group = True
                yield batch
                row += len(table)
