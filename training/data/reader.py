"""Reads documents from a committed corpus on any fsspec store: row groups through pyarrow, numpy views, no Python list.

`read_index` reads the narrow columns of some units; `gather` copies tokens and spans of chosen rows out of their row
groups. Several row groups are read and decoded at a time, and any number of threads gives the same documents. A row
group is read from the store once: decoded, it goes to the spool (training/data/spool.py), from which later segments
and epochs take it, until `cache_gib` is used up. So a run whose rows fit there (4 bytes a token, 8 where a teacher has
scored every token) reads each selected column of each of its row groups once, and each footer. Failures of a store
that may pass are tried again (etl/storage/retry.py).

Memory: of the documents that `gather` returns 4 bytes a token (and 4 a scored target, 8 k more with top-k), plus one
decoded row group (about a million tokens) a thread; of the index 52 bytes a document.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from etl.arrays import I64, Bools
from etl.config import Config
from etl.errors import ConfigError, DataError, SchemaError
from etl.hashing import hash_array
from etl.storage.dataset import MANIFEST, Dataset
from etl.storage.location import Location
from training.data.documents import Documents, TeacherSignal, ranges
from training.data.part_files import PartFiles
from training.data.row_group import (
    LABEL_COLUMNS,
    TOKEN_COLUMNS,
    Origin,
    RowGroup,
    Teachers,
    contradiction,
    copy_rows,
    decode,
    only_chunk,
)
from training.data.spool import Arrays, Spool
from training.data.stream.plan import DocumentIndex, Unit, cell_of, cells_of, split_parts
from training.data.teacher_table import TeacherTable

if TYPE_CHECKING:
    from etl.storage.manifest import Part

T = TypeVar("T")

INDEX_COLUMNS = ("id", "n_tokens", "sampling_weight")
SUPERVISED_COLUMNS = ("n_analysis", "n_commentary", "n_final", "n_text")
PAIR_COLUMNS = ("pair_id", "side")
CLUSTER_COLUMNS = ("semantic_cluster_size", "semantic_cluster_rank")
SIDES = ("chosen", "rejected")

Label = tuple[str | None, str, str, str | None]
"""source_dataset, skill bucket, ctx bucket, license; None where the corpus does not say."""


class ReadConfig(Config):
    """How to read the corpus; does not change the stream. Each stream of a rank has its own threads and cache."""

    located: ClassVar[frozenset[str]] = frozenset({"workers", "cache_gib", "cache_folder"})

    workers: int = Field(default=2, ge=1)
    """Number of row groups read and decoded at a time."""
    cache_gib: float = Field(default=16.0, ge=0)
    """Size of a rank's cache of decoded rows on local disk, with which it reads each row group once; 0: no cache."""
    cache_folder: str | None = None
    """Folder of that cache; null: the system's temporary folder. The file is unlinked, so it does not appear there."""


@dataclass(frozen=True)
class _Taken:
    """Rows of one row group, in the order of `positions`; tokens have been copied to their place."""

    positions: I64
    arrays: Arrays
    """`num_spans` and `origin` by row, the spans flat; with a teacher `num_entries` by row and the entries flat."""
    origins: tuple[Origin, ...]
    part: int


def open_corpus(url: str) -> Dataset:
    """The corpus in a folder.

    Raises:
        DataError: there is no committed one; names the folder below it where a run has put its corpus.
    """
    try:
        return Dataset.open(url)
    except DataError as error:
        below = Location.of(url) / "corpus"
        if (below / MANIFEST).exists():
            raise DataError(f"{error}; did you mean {below}?") from error
        raise


class CorpusReader:
    """One split of a corpus.

    Args:
        corpus: folder or URL of a committed corpus.
        split: train or validation.
        reading: threads and cache.
        teacher: folder or URL of a TEACHER_LOGP table that is joined to the documents; None for none.
        reference: the same of the reference model of preference pairs.
        vocab_sizes: of the models that the documents are for, by what each is called in an error.

    Attributes:
        parts: the parts of the split, sorted by path.
        cells: names of the cells, e.g. "B1/C1".
        index_columns: what planning reads of a row.
        token_columns: what `gather` reads of a row.
        labels: what `Documents.label` numbers; grows while documents are gathered.
        teacher: the table, None without one.
        side_tables: teacher and reference by where they lie, those that are given. Rows that one of them lacks cannot
            be trained on.

    Raises:
        DataError: no committed corpus there, or no row in the split, or no committed table of the teacher.
        SchemaError: a column that training needs is absent.
        ConfigError: nothing can be written in the folder of the cache.
    """

    def __init__(
        self,
        corpus: str,
        split: str,
        reading: ReadConfig = ReadConfig(),  # noqa: B008  # frozen
        teacher: str | None = None,
        reference: str | None = None,
        vocab_sizes: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.dataset = open_corpus(corpus)
        self.parts: tuple[Part, ...] = split_parts(self.dataset.manifest.parts, split)
        self._vocab_sizes = vocab_sizes
        names = set(self.dataset.schema.names)
        missing = [name for name in (*INDEX_COLUMNS, *TOKEN_COLUMNS) if name not in names]
        if missing:
            raise SchemaError(f"{corpus} has no column {missing}; training reads the corpus that layout writes")
        self.has_clusters = set(CLUSTER_COLUMNS) <= names
        self.has_pairs = set(PAIR_COLUMNS) <= names
        self.cells: tuple[str, ...] = cells_of(self.parts)
        self.labels: list[Label] = []
        self.teacher = None if teacher is None else TeacherTable(teacher)
        self._teachers = Teachers(self.teacher, None if reference is None else TeacherTable(reference))
        places = [place for place in (teacher, reference) if place is not None]
        self.side_tables: dict[str, TeacherTable] = dict(zip(places, self._teachers.tables, strict=True))
        self.index_columns = (
            *INDEX_COLUMNS,
            *(CLUSTER_COLUMNS if self.has_clusters else ()),
            *(SUPERVISED_COLUMNS if set(SUPERVISED_COLUMNS) <= names else ("spans",)),
            *(PAIR_COLUMNS if self.has_pairs else ()),
        )
        self.token_columns = (
            *TOKEN_COLUMNS,
            *(name for name in LABEL_COLUMNS if name in names),
            *(("id",) if self._teachers else ()),
        )
        self._label_numbers: dict[Label, int] = {}
        self._files = PartFiles(self.dataset, self.parts)
        self._spool = Spool(reading.cache_folder, int(reading.cache_gib * 2**30)) if reading.cache_gib else None
        self._origins: dict[tuple[int, int], tuple[Origin, ...]] = {}
        """Of each row group in the spool."""
        self._pool = ThreadPoolExecutor(reading.workers, "stillhouse-read")

    def close(self) -> None:
        """Stop the threads and give the disk back; documents that were gathered stay valid."""
        self._pool.shutdown(cancel_futures=True)
        if self._spool is not None:
            self._spool.close()

    def _map(self, call: Callable[[Any], T], tasks: Iterable[Any]) -> Iterator[T]:
        """The results in the order of the tasks, several of which run at a time."""
        return self._pool.map(call, tasks)

    # --- the index -------------------------------------------------------------------------------------------------

    @cached_property
    def whole(self) -> tuple[Unit, ...]:
        """Every row group of the split as one uncut unit."""
        return tuple(
            Unit(index, group, 0, rows)
            for index, part in enumerate(self.parts)
            for group, rows in enumerate(part.row_groups)
        )

    def read_index(self, units: Sequence[Unit], seed: int) -> DocumentIndex:
        """What planning needs of the rows of some units, sorted by part, row group and row.

        A null sampling weight counts as 1, and a row without a cluster is one of its own.

        Raises:
            ConfigError: by its footer, a row group has a token id beyond a model's vocabulary; has both sizes.
            DataError: a part is missing, of another size than the manifest's, or damaged.
        """
        return self.read_scored_index(units, seed, ())[0]

    def read_scored_index(
        self, units: Sequence[Unit], seed: int, tables: Sequence[TeacherTable]
    ) -> tuple[DocumentIndex, Bools]:
        """The same, and which of the documents each of some tables has: bool [tables, documents].

        Raises:
            ConfigError, DataError: as for `read_index`.
        """
        ordered = sorted(units, key=lambda unit: (unit.part, unit.row_group, unit.start))
        groups = [list(group) for _, group in groupby(ordered, key=lambda unit: (unit.part, unit.row_group))]
        pieces, masks = [_EMPTY_INDEX], [np.empty((len(tables), 0), bool)]
        for of_group, scored in self._map(lambda group: self._read_index(group, seed, tables), groups):
            pieces += of_group
            masks += scored
        return DocumentIndex.concatenate(pieces), np.concatenate(masks, axis=1)

    def _read_index(
        self, units: list[Unit], seed: int, tables: Sequence[TeacherTable]
    ) -> tuple[list[DocumentIndex], list[Bools]]:
        """The index of units of one row group, and what the tables have of each."""
        part, group = units[0].part, units[0].row_group
        table = self._files.read(part, group, self.index_columns)
        self._check_vocabulary(part, group)
        cell = self.cells.index(cell_of(self.parts[part]))
        pieces = [_index(table, unit, cell, seed) for unit in units]
        if not tables:
            return pieces, [np.empty((0, len(piece)), bool) for piece in pieces]
        has = np.stack([scores.has(only_chunk(table, "id")) for scores in tables])
        return pieces, [has[:, piece.row] for piece in pieces]

    def _check_vocabulary(self, part: int, group: int) -> None:
        largest = self._files.largest_id(part, group)
        for model, size in self._vocab_sizes.items():
            if largest >= size:
                raise beyond_vocabulary(self._name(part, group), str(self.dataset.folder), largest, model, size)

    # --- the documents ---------------------------------------------------------------------------------------------

    def gather(self, index: DocumentIndex, chosen: I64) -> Documents:
        """Tokens and spans of the documents `chosen` (numbers in the index), in that order.

        Raises:
            DataError: a row's tokens or spans contradict its own columns, or the teacher has scored other tokens of
                this id; names the part, the row group and the row.
        """
        tokens = ranges(index.num_tokens[chosen])
        input_ids = np.empty(int(tokens[-1, 1]) if len(tokens) else 0, np.int32)
        order = np.lexsort((index.row[chosen], index.row_group[chosen], index.part[chosen]))

        def take(positions: I64) -> _Taken:
            return self._take(index, chosen[positions], positions, tokens, input_ids)

        taken = list(self._map(take, _runs(index, chosen, order)))
        return self._documents(index, chosen, tokens, input_ids, taken)

    def _take(
        self, index: DocumentIndex, numbers: I64, positions: I64, tokens: I64, out: npt.NDArray[np.int32]
    ) -> _Taken:
        """Copy the tokens of documents of one row group to their place in `out`, and take all else that is theirs."""
        part, group = int(index.part[numbers[0]]), int(index.row_group[numbers[0]])
        found = self._row_group(part, group)
        arrays = found.arrays
        rows = index.row[numbers].astype(np.int64)
        lengths = _lengths(arrays["offsets"], rows)
        if (lengths != index.num_tokens[numbers]).any():
            bad = rows[np.argmax(lengths != index.num_tokens[numbers])]
            raise contradiction(self._name(part, group), int(bad))
        copy_rows(arrays["input_ids"], arrays["offsets"], rows, out, tokens[positions, 0])
        own: Arrays = {"origin": arrays["origin"][rows], "num_spans": _lengths(arrays["span_offsets"], rows)}
        for name in ("span_kind", "span_start", "span_end"):
            own[name] = _picked(arrays[name], arrays["span_offsets"], rows)
        if "teacher_logp" in arrays:
            own["num_entries"] = _lengths(arrays["teacher_offsets"], rows)
            own["teacher_logp"] = _picked(arrays["teacher_logp"], arrays["teacher_offsets"], rows)
        if "topk_ids" in arrays and self.teacher is not None:
            entries = arrays["teacher_offsets"] * self.teacher.topk
            own |= {name: _picked(arrays[name], entries, rows) for name in ("topk_ids", "topk_logp")}
        if "reference_logp" in arrays:
            own["reference_logp"] = arrays["reference_logp"][rows]
        return _Taken(positions, own, found.origins, part)

    def _row_group(self, part: int, group: int) -> RowGroup:
        """All rows of a row group, from the spool where they are in it."""
        key = part, group
        arrays = self._spool.get(key) if self._spool is not None else None
        if arrays is not None:
            return RowGroup(arrays, self._origins[key])
        table = self._files.read(part, group, self.token_columns)
        found = decode(table, self._teachers, self._name(part, group), self._files.largest_id(part, group))
        if self._spool is not None:
            self._origins[key] = found.origins
            self._spool.put(key, found.arrays)
        return found

    def _name(self, part: int, group: int) -> str:
        return f"{self.parts[part].path}, row group {group}"

    def _documents(
        self,
        index: DocumentIndex,
        chosen: I64,
        tokens: I64,
        input_ids: npt.NDArray[np.int32],
        taken: Sequence[_Taken],
    ) -> Documents:
        """Put together what was taken of each row group; rows lie in `taken` in the order of its positions."""
        place = np.empty(len(chosen), np.int64)
        place[np.concatenate([np.empty(0, np.int64), *(piece.positions for piece in taken)])] = np.arange(len(chosen))

        def flat(name: str, kind: type[np.generic]) -> npt.NDArray[Any]:
            return np.concatenate([np.empty(0, kind), *(piece.arrays[name] for piece in taken)])

        teacher = None
        if self.teacher is not None:
            top: tuple[npt.NDArray[Any] | None, ...] = (None, None)
            if self.teacher.topk:
                shape = -1, self.teacher.topk
                top = flat("topk_ids", np.int32).reshape(shape), flat("topk_logp", np.float32).reshape(shape)
            entries = ranges(flat("num_entries", np.int64))[place]
            teacher = TeacherSignal(entries, flat("teacher_logp", np.float32), *top)
        labels = [np.empty(0, np.int32), *(self._labels(piece) for piece in taken)]
        return Documents(
            input_ids=input_ids,
            span_kind=flat("span_kind", np.int8),
            span_start=flat("span_start", np.int32),
            span_end=flat("span_end", np.int32),
            tokens=tokens,
            spans=ranges(flat("num_spans", np.int64))[place],
            id_hash=index.id_hash[chosen],
            label=np.concatenate(labels)[place],
            pair=index.pair[chosen],
            side=index.side[chosen],
            teacher=teacher,
            reference_logp=flat("reference_logp", np.float32)[place] if self._teachers.reference else None,
        )

    def _labels(self, taken: _Taken) -> npt.NDArray[np.int32]:
        """Numbers in `labels` of some rows; new ones get the next numbers."""
        skill, ctx = (folder.partition("=")[2] for folder in self.parts[taken.part].path.split("/")[1:3])
        numbers = []
        for source, license_name in taken.origins:
            label = source, skill, ctx, license_name
            if label not in self._label_numbers:
                self._label_numbers[label] = len(self.labels)
                self.labels.append(label)
            numbers.append(self._label_numbers[label])
        return np.array(numbers, np.int32)[taken.arrays["origin"]]


def beyond_vocabulary(place: str, corpus: str, largest: int, model: str, size: int) -> ConfigError:
    """The error for a corpus with a token id beyond a model's vocabulary."""
    return ConfigError(
        f"{place} has the token id {largest:,}, so the vocabulary of {corpus} has at least {largest + 1:,} ids, "
        f"but {model} has {size:,}; use a model with the vocabulary that the corpus was tokenised with"
    )


# --- the index of a row group --------------------------------------------------------------------------------------


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


def _index(table: pa.Table, unit: Unit, cell: int, seed: int) -> DocumentIndex:
    wanted = table.slice(unit.start, unit.stop - unit.start)
    ids, num_tokens, weight = (only_chunk(wanted, name) for name in INDEX_COLUMNS)
    size = len(wanted)
    return DocumentIndex(
        part=np.full(size, unit.part, np.int32),
        row_group=np.full(size, unit.row_group, np.int32),
        row=np.arange(unit.start, unit.start + size, dtype=np.int32),
        num_tokens=num_tokens.to_numpy(zero_copy_only=False).astype(np.int64),
        weight=pc.fill_null(weight.cast(pa.float64()), 1.0).to_numpy(zero_copy_only=False),
        id_hash=hash_array(ids, seed),
        cluster_size=_or_else(wanted, "semantic_cluster_size", 1),
        cluster_rank=_or_else(wanted, "semantic_cluster_rank", 0),
        cell=np.full(size, cell, np.int16),
        supervised=_supervised(wanted),
        pair=_pairs(wanted),
        side=_sides(wanted),
    )


def _supervised(table: pa.Table) -> npt.NDArray[np.int32]:
    """Tokens in spans: int32 [rows]."""
    if set(SUPERVISED_COLUMNS) <= set(table.column_names):
        return np.sum([_or_else(table, name, 0) for name in SUPERVISED_COLUMNS], axis=0, dtype=np.int32)
    spans = only_chunk(table, "spans")
    flat = spans.flatten()
    lengths = pc.subtract(flat.field("end"), flat.field("start")).to_numpy(zero_copy_only=False)
    rows = pc.list_parent_indices(spans).to_numpy(zero_copy_only=False)
    return np.bincount(rows, lengths, len(table)).astype(np.int32)


def _pairs(table: pa.Table) -> I64:
    """Hash of the pair, 0 where there is none: int64 [rows]."""
    if "pair_id" not in table.column_names:
        return np.zeros(len(table), np.int64)
    pair = only_chunk(table, "pair_id")
    return np.where(np.asarray(pair.is_null()), 0, hash_array(pair).view(np.int64))


def _sides(table: pa.Table) -> npt.NDArray[np.int8]:
    """0 chosen, 1 rejected, -1 neither: int8 [rows]."""
    if "side" not in table.column_names:
        return np.full(len(table), -1, np.int8)
    found = pc.index_in(only_chunk(table, "side"), value_set=pa.array(SIDES))
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int8)


def _or_else(table: pa.Table, name: str, value: int) -> npt.NDArray[np.int32]:
    """A column, the value where it is null or absent: int32 [rows]."""
    if name not in table.column_names:
        return np.full(len(table), value, np.int32)
    return pc.fill_null(only_chunk(table, name), value).to_numpy(zero_copy_only=False).astype(np.int32)


# --- rows ----------------------------------------------------------------------------------------------------------


def _runs(index: DocumentIndex, chosen: I64, order: npt.NDArray[np.intp]) -> list[npt.NDArray[np.intp]]:
    """Positions in `chosen`, in the `order` of their places, cut where the row group changes."""
    if len(order) == 0:
        return []
    numbers = chosen[order]
    change = (np.diff(index.part[numbers]) != 0) | (np.diff(index.row_group[numbers]) != 0)
    return np.split(order, np.flatnonzero(change) + 1)


def _lengths(offsets: I64, rows: I64) -> I64:
    return offsets[rows + 1] - offsets[rows]


def _picked(values: npt.NDArray[Any], offsets: I64, rows: I64) -> npt.NDArray[Any]:
    """The values of some rows, concatenated."""
    places = ranges(_lengths(offsets, rows))
    out = np.empty(int(places[-1, 1]) if len(places) else 0, values.dtype)
    copy_rows(values, offsets, rows, out, places[:, 0])
    return out
