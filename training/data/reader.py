"""Reads documents from a committed corpus: row groups through pyarrow, numpy views, no Python list of tokens.

`read_index` reads three narrow columns of some units (five where rows have semantic clusters); `gather` reads tokens
and spans of chosen rows and visits each row group once, in file order. About 200 million tokens per CPU-second from
BYTE_STREAM_SPLIT + zstd, so decoding never limits training; the whole of what is asked for is held in memory (4 bytes
a token).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from etl.errors import DataError, SchemaError
from etl.hashing import hash_array
from etl.schema import SPAN_KINDS
from etl.storage.dataset import Dataset
from etl.storage.manifest import Part
from training.data.packing import IntArray
from training.data.plan import DocumentIndex, Unit, cell_of, cells_of, split_parts

INDEX_COLUMNS = ("id", "n_tokens", "sampling_weight")
SUPERVISED_COLUMNS = ("n_analysis", "n_commentary", "n_final", "n_text")
PAIR_COLUMNS = ("pair_id", "side")
SIDES = ("chosen", "rejected")
TOKEN_COLUMNS = ("input_ids", "spans")
CLUSTER_COLUMNS = ("semantic_cluster_size", "semantic_cluster_rank")


@dataclass(frozen=True)
class Documents:
    """Tokens and spans of some documents in flat arrays, and where each document lies in them."""

    input_ids: npt.NDArray[np.int32]
    span_kind: npt.NDArray[np.int8]
    """Position in etl.schema.SPAN_KINDS."""
    span_start: npt.NDArray[np.int32]
    span_end: npt.NDArray[np.int32]
    """Half-open token range inside the document."""
    tokens: IntArray
    """[documents, 2]: document d is input_ids[tokens[d, 0] : tokens[d, 1]]."""
    spans: IntArray
    """[documents, 2]: its spans are span_kind[spans[d, 0] : spans[d, 1]], and so on."""
    id_hash: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, numbers: IntArray) -> "Documents":
        """Some of the documents, in that order; the flat arrays are shared, not copied."""
        return replace(self, tokens=self.tokens[numbers], spans=self.spans[numbers], id_hash=self.id_hash[numbers])


_EMPTY_INDEX = DocumentIndex(
    part=np.empty(0, np.int32),
    row_group=np.empty(0, np.int32),
    row=np.empty(0, np.int32),
    num_tokens=np.empty(0, np.int64),
    weight=np.empty(0, np.float64),
    id_hash=np.empty(0, np.uint64),
    cluster_size=np.empty(0, np.int32),
    cluster_rank=np.empty(0, np.int32),
    cell=np.empty(0, np.int16),
    supervised=np.empty(0, np.int32),
    pair=np.empty(0, np.int64),
    side=np.empty(0, np.int8),
)


class CorpusReader:
    """One split of a corpus.

    Raises:
        DataError: no committed corpus there, or no row in the split.
        SchemaError: a column that training needs is absent.
    """

    def __init__(self, corpus: str, split: str) -> None:
        self.dataset = Dataset.open(corpus)
        self.parts: tuple[Part, ...] = split_parts(self.dataset.manifest.parts, split)
        missing = [name for name in (*INDEX_COLUMNS, *TOKEN_COLUMNS) if name not in self.dataset.schema.names]
        if missing:
            raise SchemaError(f"{corpus} has no column {missing}; training reads the corpus that layout writes")
        names = set(self.dataset.schema.names)
        self.has_clusters = set(CLUSTER_COLUMNS) <= names
        self.has_pairs = set(PAIR_COLUMNS) <= names
        self._has_supervised = set(SUPERVISED_COLUMNS) <= names
        self.cells: tuple[str, ...] = cells_of(self.parts)

    @cached_property
    def whole(self) -> tuple[Unit, ...]:
        """Every row group of the split as one uncut unit."""
        return tuple(
            Unit(index, group, 0, rows)
            for index, part in enumerate(self.parts)
            for group, rows in enumerate(part.row_groups)
        )

    def read_index(self, units: Sequence[Unit], seed: int) -> DocumentIndex:
        """What planning needs of the rows of some units.

        A null sampling weight counts as 1, and a row without a cluster is one of its own.
        """
        columns = [
            *INDEX_COLUMNS,
            *(CLUSTER_COLUMNS if self.has_clusters else ()),
            *(SUPERVISED_COLUMNS if self._has_supervised else ()),
            *(PAIR_COLUMNS if self.has_pairs else ()),
        ]
        ordered = sorted(units, key=lambda unit: (unit.part, unit.row_group, unit.start))
        pieces = [_EMPTY_INDEX]
        cell = {name: number for number, name in enumerate(self.cells)}
        for part, of_part in groupby(ordered, key=lambda unit: unit.part):
            with self._open(part) as file:
                for group, of_group in groupby(of_part, key=lambda unit: unit.row_group):
                    table = file.read_row_group(group, columns=columns).combine_chunks()
                    of_part_cell = cell[cell_of(self.parts[part])]
                    pieces += [_index(table, unit, of_part_cell, seed) for unit in of_group]
        return DocumentIndex.concatenate(pieces)

    def _open(self, part: int) -> pq.ParquetFile:
        return self.dataset.part_location(self.parts[part]).open_parquet()

    def gather(self, index: DocumentIndex, chosen: IntArray) -> Documents:
        """Tokens and spans of the documents `chosen` (numbers in the index), in that order.

        Raises:
            DataError: a row's tokens or spans contradict its own columns; names the part and the row.
        """
        order = np.lexsort((index.row[chosen], index.row_group[chosen], index.part[chosen]))
        ordered = chosen[order]
        pieces = [self._gather_row_group(index, numbers) for numbers in _runs(index, ordered)]
        position = np.empty(len(order), np.int64)
        position[order] = np.arange(len(order))
        return _concatenate(pieces).select(position)

    def _gather_row_group(self, index: DocumentIndex, numbers: IntArray) -> Documents:
        part, group = int(index.part[numbers[0]]), int(index.row_group[numbers[0]])
        with self._open(part) as file:
            table = file.read_row_group(group, columns=list(TOKEN_COLUMNS))
        return _documents(table.take(pa.array(index.row[numbers])).combine_chunks(), index, numbers, self.parts[part])


def _index(table: pa.Table, unit: Unit, cell: int, seed: int) -> DocumentIndex:
    rows = np.arange(unit.start, unit.stop, dtype=np.int32)
    wanted = table.take(pa.array(rows)).combine_chunks()
    ids, num_tokens, weight = (_only_chunk(wanted, name) for name in INDEX_COLUMNS)
    return DocumentIndex(
        part=np.full(len(rows), unit.part, np.int32),
        row_group=np.full(len(rows), unit.row_group, np.int32),
        row=rows,
        num_tokens=num_tokens.to_numpy(zero_copy_only=False).astype(np.int64),
        weight=pc.fill_null(weight.cast(pa.float64()), 1.0).to_numpy(zero_copy_only=False),
        id_hash=hash_array(ids, seed),
        cluster_size=_or_else(wanted, "semantic_cluster_size", 1),
        cluster_rank=_or_else(wanted, "semantic_cluster_rank", 0),
        cell=np.full(len(rows), cell, np.int16),
        supervised=_supervised(wanted),
        pair=_pairs(wanted),
        side=_sides(wanted),
    )


def _supervised(table: pa.Table) -> npt.NDArray[np.int32]:
    """Tokens in spans, -1 where the table does not say: int32 [rows]."""
    if not set(SUPERVISED_COLUMNS) <= set(table.column_names):
        return np.full(table.num_rows, -1, np.int32)
    return np.sum([_or_else(table, name, 0) for name in SUPERVISED_COLUMNS], axis=0, dtype=np.int32)


def _pairs(table: pa.Table) -> npt.NDArray[np.int64]:
    """Hash of the pair, 0 where there is none: int64 [rows]."""
    if "pair_id" not in table.column_names:
        return np.zeros(table.num_rows, np.int64)
    pair = _only_chunk(table, "pair_id")
    hashes = hash_array(pair).view(np.int64)
    return np.where(np.asarray(pair.is_null()), 0, hashes)


def _sides(table: pa.Table) -> npt.NDArray[np.int8]:
    """0 chosen, 1 rejected, -1 neither: int8 [rows]."""
    if "side" not in table.column_names:
        return np.full(table.num_rows, -1, np.int8)
    found = pc.index_in(_only_chunk(table, "side"), value_set=pa.array(SIDES))
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int8)


def _or_else(table: pa.Table, name: str, value: int) -> npt.NDArray[np.int32]:
    """A column, the value where it is null or absent: int32 [rows]."""
    if name not in table.column_names:
        return np.full(table.num_rows, value, np.int32)
    return pc.fill_null(_only_chunk(table, name), value).to_numpy(zero_copy_only=False).astype(np.int32)


def _runs(index: DocumentIndex, ordered: IntArray) -> list[IntArray]:
    """The documents, sorted by place, cut where the row group changes."""
    if len(ordered) == 0:
        return []
    change = (np.diff(index.part[ordered]) != 0) | (np.diff(index.row_group[ordered]) != 0)
    return np.split(ordered, np.flatnonzero(change) + 1)


def _only_chunk(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _ranges(lengths: IntArray) -> IntArray:
    """[n, 2] half-open ranges of these lengths, one behind the other."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.stack([ends - lengths, ends], axis=1)


def _documents(table: pa.Table, index: DocumentIndex, numbers: IntArray, part: Part) -> Documents:
    """The rows of a table as Documents, checked."""
    ids, spans = _only_chunk(table, "input_ids"), _only_chunk(table, "spans")
    lengths = pc.list_value_length(ids).to_numpy(zero_copy_only=False)
    num_spans = pc.fill_null(pc.list_value_length(spans), 0).to_numpy(zero_copy_only=False)
    flat = spans.flatten()
    kinds = pc.index_in(flat.field("kind"), value_set=pa.array(SPAN_KINDS))
    start = flat.field("start").to_numpy(zero_copy_only=False)
    end = flat.field("end").to_numpy(zero_copy_only=False)
    owner = np.repeat(np.arange(len(table)), num_spans)
    bad_span = np.asarray(pc.is_null(kinds)) | ~((start >= 0) & (start <= end) & (end <= lengths[owner]))
    bad = lengths != index.num_tokens[numbers]
    bad[owner[bad_span]] = True
    if bad.any():
        row = int(index.row[numbers[np.argmax(bad)]])
        raise DataError(
            f"{part.path}, row group {index.row_group[numbers[0]]}, row {row}: n_tokens or spans contradict input_ids; "
            "run `stillhouse verify` on the corpus, then lay it out again"
        )
    return Documents(
        input_ids=ids.flatten().to_numpy(zero_copy_only=False).astype(np.int32, copy=False),
        span_kind=kinds.to_numpy(zero_copy_only=False).astype(np.int8),
        span_start=start.astype(np.int32, copy=False),
        span_end=end.astype(np.int32, copy=False),
        tokens=_ranges(lengths.astype(np.int64)),
        spans=_ranges(num_spans.astype(np.int64)),
        id_hash=index.id_hash[numbers],
    )


def _concatenate(pieces: Sequence[Documents]) -> Documents:
    """The documents of all pieces, one behind the other."""
    token_shift = np.cumsum([0, *(len(piece.input_ids) for piece in pieces)])
    span_shift = np.cumsum([0, *(len(piece.span_kind) for piece in pieces)])
    return Documents(
        input_ids=np.concatenate([np.empty(0, np.int32), *(p.input_ids for p in pieces)]),
        span_kind=np.concatenate([np.empty(0, np.int8), *(p.span_kind for p in pieces)]),
        span_start=np.concatenate([np.empty(0, np.int32), *(p.span_start for p in pieces)]),
        span_end=np.concatenate([np.empty(0, np.int32), *(p.span_end for p in pieces)]),
        tokens=np.concatenate(
            [np.empty((0, 2), np.int64), *(p.tokens + s for p, s in zip(pieces, token_shift, strict=False))]
        ),
        spans=np.concatenate(
            [np.empty((0, 2), np.int64), *(p.spans + s for p, s in zip(pieces, span_shift, strict=False))]
        ),
        id_hash=np.concatenate([np.empty(0, np.uint64), *(p.id_hash for p in pieces)]),
    )
