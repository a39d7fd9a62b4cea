"""Committed datasets of ours as input: the rows of a corpus, of `ingest`, or of anything with PROMPT's columns.

Columns are as they are, ids too. What the folders above a part stand for (`skill_bucket` of a corpus) is a column, a
column that is not there is null, and `file` and `position` say where the row was read now. `source_dataset` becomes the
source's name in the recipe, since accounts and selectors go by it. Arrow kernels over row groups, nothing a row.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrow_types import kept
from etl.errors import DataError, decoding
from etl.messages import whole_messages
from etl.schema import ID, PROMPT
from etl.sources.fields import SourceField, parse
from etl.sources.files import InputPiece
from etl.sources.spec import Source
from etl.storage.location import Location

_ID_TEXT_BYTES = 36
_REQUIRED = ("id", "source_dataset", "source_example_id", "split_key", "messages", "skill_bucket")


def read_dataset(location: Location, piece: InputPiece, source: Source, name: str) -> Iterator[pa.RecordBatch]:
    """PROMPT rows, and behind their columns the fields of the source, one batch a row group.

    Args:
        location: of a part.
        piece: its row groups.
        source: which rows and fields are read.
        name: of the source, which becomes `source_dataset`.

    Raises:
        DataError: the part is not there or damaged, or it lacks a column.
    """
    with location.open_parquet() as file:
        with decoding(str(location)):
            names = set(file.schema_arrow.names)
            end = min(piece.end, file.num_row_groups)
            row = sum(file.metadata.row_group(group).num_rows for group in range(piece.start))
        folders = {column: value for column, value in piece.file.partitions.items() if column not in names}
        missing = [column for column in _REQUIRED if column not in names and column not in folders]
        if missing:
            raise DataError(f"{location} lacks the columns {missing} of prompts; give a corpus, or `ingest`")
        fields = {called: field.column or called for called, field in source.fields.items()}
        columns = [column for column in dict.fromkeys([*PROMPT.names, *fields.values()]) if column in names]
        for group in range(piece.start, end):
            with decoding(f"{location}: row group {group}"):
                found = file.read_row_group(group, columns=columns).combine_chunks()
            prompts = _prompts(found, folders, name, piece.file.called, row)
            for called, column in fields.items():
                prompts = prompts.append_column(called, _field(found, column, source.fields[called]))
            row += len(found)
            if source.source_dataset is not None:
                prompts = prompts.filter(pc.equal(found["source_dataset"].combine_chunks(), source.source_dataset))
            yield prompts


def _field(found: pa.Table, column: str, field: SourceField) -> pa.Array:
    """A column of the dataset as the field that it is, null where it is not there."""
    if column not in found.column_names:
        return pa.nulls(len(found), field.arrow_type)
    return parse(kept(found[column].combine_chunks()), field).values


def _prompts(found: pa.Table, folders: dict[str, Any], source: str, file: str, row: int) -> pa.RecordBatch:
    size = len(found)
    columns = {name: found[name].combine_chunks() for name in found.column_names}
    columns["id"] = _ids(columns["id"])
    columns["messages"], _ = whole_messages(columns["messages"])
    columns["source_dataset"] = pa.repeat(source, size)
    columns["file"], columns["position"] = pa.repeat(file, size), pa.array(range(row, row + size), pa.int64())
    arrays = [
        columns[field.name].cast(field.type)
        if field.name in columns
        else pa.array([folders.get(field.name)] * size, field.type)
        for field in PROMPT
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=PROMPT)


def _ids(ids: pa.Array) -> pa.Array:
    """Ids as binary(16): a corpus has them as 36-character texts."""
    if ids.type == ID:
        return ids
    digits = pc.replace_substring(ids, "-", "")
    text = np.frombuffer(b"".join(digits.cast(pa.binary()).to_pylist()), np.uint8)
    values = np.where(text >= ord("a"), text - ord("a") + 10, text - ord("0")).astype(np.uint8)
    packed = (values[0::2] << 4 | values[1::2]).astype(np.uint8)
    return pa.Array.from_buffers(ID, len(ids), [None, pa.py_buffer(packed)])
