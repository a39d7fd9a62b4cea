"""A row group of a corpus as flat numpy arrays, decoded and checked once; cached on local disk.

Nothing here is done row by row in Python: lists become offsets and values, and rows are copied by a compiled kernel.
About 200 million tokens per CPU-second from BYTE_STREAM_SPLIT + zstd.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I64
from etl.errors import DataError
from etl.jit import njit
from etl.schema import SPAN_KINDS
from training.data.spool import Arrays
from training.data.teacher_table import TeacherRows, TeacherTable, completion_digests

TOKEN_COLUMNS = ("input_ids", "spans")
LABEL_COLUMNS = ("source_dataset", "license")

Origin = tuple[str | None, ...]
"""Values of LABEL_COLUMNS; None where the corpus does not say."""


@dataclass(frozen=True)
class RowGroup:
    """All rows of a row group.

    Attributes:
        arrays: `offsets` int64 [rows + 1] into `input_ids` int32; `span_offsets` int64 [rows + 1] into `span_kind`
            int8, `span_start` int32 and `span_end` int32; `origin` int32 [rows]. With a teacher `teacher_offsets`
            int64 [rows + 1] into `teacher_logp` float32 and, k entries each, `topk_ids` int32 and `topk_logp`
            float32; with a reference model `reference_logp` float32 [rows].
        origins: what `origin` numbers.
    """

    arrays: Arrays
    origins: tuple[Origin, ...]


@dataclass(frozen=True)
class Teachers:
    """Side tables that are joined to the rows."""

    teacher: TeacherTable | None
    reference: TeacherTable | None

    @property
    def tables(self) -> tuple[TeacherTable, ...]:
        """Those that are given."""
        return tuple(table for table in (self.teacher, self.reference) if table is not None)

    def __bool__(self) -> bool:
        return bool(self.tables)


def decode(table: pa.Table, teachers: Teachers, name: str, largest_id: int) -> RowGroup:
    """The columns TOKEN_COLUMNS, and LABEL_COLUMNS and `id` where they are needed, of a whole row group.

    Args:
        table: of one row group.
        teachers: what is joined to it by `id`.
        name: of the row group, for messages.
        largest_id: of the tokens, as the footer says.

    Raises:
        DataError: a row's spans do not lie in its tokens, or a side table is of other tokens, naming the row; or a
            token id is not one that was written.
    """
    ids, spans = only_chunk(table, "input_ids"), only_chunk(table, "spans")
    lengths = _lengths(ids)
    tokens = ids.flatten().to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() <= largest_id:
        raise DataError(
            f"{name} is damaged: it has the token ids {tokens.min()} to {tokens.max()}, but its footer says 0 to "
            f"{largest_id}; run `stillhouse verify` on the corpus, then the recipe that writes it"
        )
    flat = spans.flatten()
    kinds = pc.index_in(flat.field("kind"), value_set=pa.array(SPAN_KINDS))
    start = flat.field("start").to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    end = flat.field("end").to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    num_spans = _lengths(spans)
    owner = np.repeat(np.arange(len(table)), num_spans)
    bad = np.asarray(pc.is_null(kinds)) | ~((start >= 0) & (start <= end) & (end <= lengths[owner]))
    if bad.any():
        raise contradiction(name, int(owner[np.argmax(bad)]))
    origin, origins = _origins(table)
    arrays: Arrays = {
        "offsets": _offsets(lengths),
        "input_ids": tokens,
        "span_offsets": _offsets(num_spans),
        "span_kind": kinds.to_numpy(zero_copy_only=False).astype(np.int8),
        "span_start": start,
        "span_end": end,
        "origin": origin,
    }
    if teachers:
        arrays |= _joined(arrays, only_chunk(table, "id"), teachers, name)
    for array in arrays.values():
        array.setflags(write=False)  # as those that are mapped, so that kernels are compiled for one kind
    return RowGroup(arrays, origins)


def contradiction(name: str, row: int) -> DataError:
    """The error of a row that is not what its own columns say."""
    return DataError(
        f"{name}, row {row}: n_tokens or spans contradict input_ids; run `stillhouse verify` on the corpus, then lay "
        "it out again"
    )


def only_chunk(table: pa.Table, name: str) -> pa.Array:
    """A column of a table of at most one chunk."""
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _lengths(lists: pa.Array) -> I64:
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _offsets(lengths: I64) -> I64:
    return np.concatenate([[0], np.cumsum(lengths)])


def _origins(table: pa.Table) -> tuple[npt.NDArray[np.int32], tuple[Origin, ...]]:
    """Of each row the number of its origin, and the origins."""
    code = np.zeros(len(table), np.int64)
    values: list[list[str | None]] = []
    for name in LABEL_COLUMNS:
        values.append([None])
        if name in table.column_names:
            column = only_chunk(table, name).dictionary_encode()
            values[-1] += column.dictionary.to_pylist()
            number = pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False) + 1
            code = code * len(values[-1]) + number
    used, origin = np.unique(code, return_inverse=True)
    origins = []
    for number in used.tolist():
        origin_values = []
        for of_column in reversed(values):
            number, place = divmod(number, len(of_column))
            origin_values.append(of_column[place])
        origins.append(tuple(reversed(origin_values)))
    return origin.astype(np.int32), tuple(origins)


# --- teachers ------------------------------------------------------------------------------------------------------


def _joined(arrays: Arrays, ids: pa.Array, teachers: Teachers, name: str) -> Arrays:
    """What the side tables say of the rows."""
    targets, offsets = _targets(*(arrays[key] for key in (
        "input_ids", "offsets", "span_offsets", "span_start", "span_end",
    )))  # fmt: skip
    found: Arrays = {}
    if teachers.teacher is not None:
        scored, rows = _rows_of(teachers.teacher, ids, targets, offsets, name)
        lengths = np.zeros(len(ids), np.int64)
        lengths[scored] = np.diff(rows.offsets)
        found |= {"teacher_offsets": _offsets(lengths), "teacher_logp": rows.logp}
        if rows.topk_ids is not None and rows.topk_logp is not None:
            found |= {"topk_ids": rows.topk_ids.reshape(-1), "topk_logp": rows.topk_logp.reshape(-1)}
    if teachers.reference is not None:
        scored, rows = _rows_of(teachers.reference, ids, targets, offsets, name)
        total = np.concatenate([[0.0], np.cumsum(rows.logp, dtype=np.float64)])[rows.offsets]
        logp = np.full(len(ids), np.nan, np.float32)
        logp[scored] = np.diff(total)
        found["reference_logp"] = logp
    return found


def _rows_of(
    table: TeacherTable, ids: pa.Array, targets: npt.NDArray[np.int32], offsets: I64, name: str
) -> tuple[I64, TeacherRows]:
    """Which rows the table has, and what it says of them."""
    scored = np.flatnonzero(table.has(ids))
    rows = table.gather(ids.take(pa.array(scored)))
    own = completion_digests(targets, offsets)[scored]
    bad = (own != rows.completion_digest).any(axis=1) | (np.diff(rows.offsets) != np.diff(offsets)[scored])
    if bad.any():
        row = int(scored[np.argmax(bad)])
        raise DataError(
            f"{name}, row {row} (id {ids[row]}): {table.dataset.folder} was scored with other supervised tokens "
            "for this id; rescore this corpus, or give the folder that was scored from it"
        )
    return scored, rows


@njit
def _targets(
    input_ids: npt.NDArray[np.int32],
    offsets: I64,
    span_offsets: I64,
    span_start: npt.NDArray[np.int32],
    span_end: npt.NDArray[np.int32],
) -> tuple[npt.NDArray[np.int32], I64]:
    """The supervised tokens of each row in the order of its spans, flat, and its offsets: a first token is none."""
    num_rows = len(offsets) - 1
    target_offsets = np.zeros(num_rows + 1, np.int64)
    for row in range(num_rows):
        count = 0
        for span in range(span_offsets[row], span_offsets[row + 1]):
            count += max(0, span_end[span] - max(span_start[span], 1))
        target_offsets[row + 1] = target_offsets[row] + count
    targets = np.empty(target_offsets[num_rows], np.int32)
    at = 0
    for row in range(num_rows):
        for span in range(span_offsets[row], span_offsets[row + 1]):
            for token in range(max(span_start[span], 1), span_end[span]):
                targets[at] = input_ids[offsets[row] + token]
                at += 1
    return targets, target_offsets


# --- rows ----------------------------------------------------------------------------------------------------------


@njit
def copy_rows(values: npt.NDArray[Any], offsets: I64, rows: I64, out: npt.NDArray[Any], at: I64) -> None:
    """Copy values[offsets[rows[i]] : offsets[rows[i] + 1]] to out[at[i] :] for every i."""
    for i in range(len(rows)):
        own = values[offsets[rows[i]] : offsets[rows[i] + 1]]
        place = out[at[i] : at[i] + len(own)]
        for k in range(len(own)):
            place[k] = own[k]
