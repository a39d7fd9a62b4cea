"""The rows of a corpus that a teacher may score, read by row group, and the choice of a subset of them.

The choice reads the narrow columns of the whole split on the driver (see subset.py for its memory); a worker reads the
narrow columns of its row groups again, and token ids only of row groups with a chosen row.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I32
from etl.errors import DataError, SchemaError
from etl.hashing import hash_array
from etl.schema import SPAN_KINDS
from etl.storage.dataset import Dataset, DatasetRef
from etl.storage.manifest import Part
from training.teacher.subset import Cell, RowColumns, SubsetConfig, choose

_ORDER_SEED = 0x746561636865
_SUPERVISED = tuple(f"n_{kind}" for kind in SPAN_KINDS)
_NEEDED = ("id", "source_dataset", "n_tokens", *_SUPERVISED, "input_ids", "spans")


@dataclass(frozen=True)
class CorpusRows:
    """The rows of one split of a corpus."""

    ref: DatasetRef
    parts: tuple[Part, ...]
    cell_columns: tuple[str, ...]
    difficulty: str | None
    """The column; None where the corpus has none with a value."""
    mode_column: str | None

    @classmethod
    def of(cls, corpus: Dataset, split: str, subset: SubsetConfig, mode_column: str | None) -> "CorpusRows":
        """The rows of a corpus.

        Args:
            corpus: what the layout committed.
            split: train or validation.
            subset: names the columns that make a cell, and those that may say how hard a row is.
            mode_column: a column to be read beside them.

        Raises:
            DataError: no row in the split.
            SchemaError: it lacks a column.
        """
        parts = tuple(part for part in corpus.manifest.parts if part.path.startswith(f"split={split}/"))
        if not parts:
            raise DataError(f"{corpus.folder} has no row in split={split}; correct `corpus` or `split`")
        folders = _folders(parts[0])
        more = [name for name in subset.cells if name not in folders]
        wanted = [*_NEEDED, *more, *([mode_column] if mode_column else [])]
        missing = [name for name in wanted if name not in corpus.schema.names]
        if missing:
            raise SchemaError(f"{corpus.folder} has no column {missing}; rescoring reads the corpus that layout writes")
        known = [name for name in subset.difficulty if name in corpus.schema.names]
        rows = cls(corpus.ref, parts, subset.cells, None, mode_column)
        return replace(rows, difficulty=next((name for name in known if rows._has_value(name)), None))

    def _has_value(self, column: str) -> bool:
        for part in self.parts:
            for group in range(len(part.row_groups)):
                if self.read(part, group, [column]).column(column).null_count < part.row_groups[group]:
                    return True
        return False

    def read(self, part: Part, group: int, columns: list[str]) -> pa.RecordBatch:
        """Some columns of one row group."""
        with self.ref.part_location(part).open_parquet() as file:
            table = file.read_row_group(group, columns=columns).select(columns)
        return table.combine_chunks().to_batches()[0].replace_schema_metadata(None)

    @property
    def narrow(self) -> list[str]:
        """Columns that the choice of rows needs, and the accounts."""
        inside = [name for name in self.cell_columns if name not in _folders(self.parts[0])]
        chosen_by = [self.difficulty] if self.difficulty else []
        more = [*inside, *chosen_by, *([self.mode_column] if self.mode_column else [])]
        return list(dict.fromkeys(["id", "source_dataset", "n_tokens", *_SUPERVISED, *more]))

    def labels(self, part: Part, batch: pa.RecordBatch) -> pa.Array:
        """The cell of each row, as text."""
        folders = _folders(part)
        pieces = [
            pa.repeat(folders[name], batch.num_rows) if name in folders else pc.fill_null(batch.column(name), "")
            for name in self.cell_columns
        ]
        return pc.binary_join_element_wise(*pieces, "/") if pieces else pa.repeat("all", batch.num_rows)

    def columns(self, part: Part, batch: pa.RecordBatch, cells: dict[str, int]) -> RowColumns:
        """What the choice needs of a row group; new cells get the next number."""
        labels = self.labels(part, batch).dictionary_encode()
        numbers = np.array([cells.setdefault(label, len(cells)) for label in labels.dictionary.to_pylist()], np.int32)
        supervised = sum(_numbers(batch, name) for name in _SUPERVISED)
        hard = np.full(batch.num_rows, np.nan, np.float32)
        if self.difficulty:
            hard = batch.column(self.difficulty).cast(pa.float32()).to_numpy(zero_copy_only=False)
        return RowColumns(
            hash_array(batch.column("id"), _ORDER_SEED),
            numbers[labels.indices.to_numpy()],
            _numbers(batch, "n_tokens"),
            np.asarray(supervised, np.int32),
            hard,
        )

    def splits(self, split_tokens: int) -> list[tuple[int, list[int]]]:
        """(part, row groups) of each split: row groups of one part in order, about `split_tokens` tokens."""
        out: list[tuple[int, list[int]]] = []
        for number, part in enumerate(self.parts):
            tokens_a_row = (part.tokens or 0) / max(1, part.rows)
            sums = np.cumsum(np.array(part.row_groups) * tokens_a_row) - 1
            names = (sums // split_tokens).astype(np.int64)
            borders = [0, *(np.flatnonzero(np.diff(names)) + 1).tolist(), len(names)]
            out += [(number, list(range(start, end))) for start, end in itertools.pairwise(borders) if start < end]
        return out


def _folders(part: Part) -> dict[str, str]:
    """Hive folders of a part: name to value."""
    pairs = [piece.partition("=") for piece in part.path.split("/")[:-1]]
    return {name: value for name, _, value in pairs}


def _numbers(batch: pa.RecordBatch, name: str) -> I32:
    return pc.fill_null(batch.column(name), 0).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)


def choose_rows(corpus: CorpusRows, config: SubsetConfig) -> dict[str, Cell]:
    """Read the narrow columns of the whole corpus and cut every cell.

    Raises:
        DataError: no row is chosen.
    """
    cells: dict[str, int] = {}
    pieces = [
        corpus.columns(part, corpus.read(part, group, corpus.narrow), cells)
        for part in corpus.parts
        for group in range(len(part.row_groups))
    ]
    names = sorted(cells)
    number = np.array([names.index(name) for name in cells], np.int32)
    rows = RowColumns.concatenate(pieces)
    rows = RowColumns(rows.id_hash, number[rows.cell], rows.num_tokens, rows.supervised, rows.difficulty)
    cuts = choose(rows, names, config)
    if not any(cut.chosen_rows for cut in cuts.values()):
        raise DataError(
            f"subset.fraction={config.fraction} of {int(rows.num_tokens.sum()):,} tokens chooses no row with "
            f"{config.min_supervised_tokens} supervised tokens; take a larger fraction"
        )
    return cuts
