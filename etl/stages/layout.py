"""Writes the live rows as CORPUS, with one folder per split, skill bucket and context bucket.

This is the second of the two stages that write row data, and the only one in which rows cross a shuffle. A narrow pass
counts the cells; each cell gets enough files for its size. A row's file follows from its cell and the hash of its id,
so planning needs no sort. Rows cross the shuffle as Arrow record batches of 64 KB to 1 MB. They are smaller only if a
split has less for a file, or if the rows that a worker holds are for too many files. In their file, rows are ordered by
that hash. The memory of its machine decides how many rows a worker holds (`etl.machine.held_bytes`; a quarter of that,
at most 64 MB, while it cuts them), not the size of a file or a cell. Each value is copied four times: into the order of
the files, into a slice, and twice to be sorted.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from etl.engine import Exchange
from etl.errors import SchemaError
from etl.harmony.step import PREAMBLES
from etl.hashing import hash_array
from etl.laws import Growth, Pieces, With
from etl.machine import held_bytes
from etl.rows import Rows, RowsRef
from etl.schema import CORPUS, CTX_BUCKETS, ID, PROMPT, PROMPT_CONTENT, RANGE, SKILL_BUCKETS, SPAN_KINDS, Digested
from etl.sorting import SortedRows, joined, take_rows
from etl.stages.context import Context
from etl.stages.dedup.split import Sides, split_of
from etl.stages.keyed import live_rows, uuid_texts
from etl.stages.stage import Stage
from etl.step import live
from etl.storage.build import Chunk
from etl.storage.dataset import Dataset
from etl.storage.manifest import Accounting, sum_counts

LAYOUT_VERSION = 2
"""2: `findings` holds the preambles; the manifest of an old output is written anew."""
SPLITS = ("train", "validation")
BYTES_PER_TOKEN = 3.0
"""Stored bytes of a corpus row per token: 1.3 of ids, the rest text. Decides only the number of files."""
MOST_ROW_GROUP_TOKENS = 1 << 20
LEAST_ROW_GROUP_TOKENS = 1 << 13
ROW_GROUPS_PER_CELL = 16
"""Smallest number, roughly, in a cell whose tokens allow it: readers of one corpus share it by row groups."""
_SLICE_BYTES = 1 << 16
_MOST_SLICE_BYTES = 1 << 20
_ORDER = "order of a file"
"""Name of a column that rows have only while they are sorted; no other column has this name."""
_ORDER_SEED = 0x6F72646572

SCHEMA_V0 = CORPUS
"""The schema of the training record, under its public name."""

CELL = pa.schema(
    [
        *[pa.field(name, pa.string(), nullable=False) for name in ("split", "skill_bucket", "ctx_bucket")],
        *[pa.field(name, pa.int64(), nullable=False) for name in ("rows", "tokens")],
    ]
)

Cell = tuple[str, str, str]


# --- the plan: cells and files -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CountCells:
    """Rows and tokens of one split's live rows in each cell."""

    rows: RowsRef
    sides: Sides

    def __call__(self, split: int) -> Iterator[Chunk]:
        columns = ["split_key", "skill_bucket", "ctx_bucket", "n_tokens", "verdict"]
        for batch in self.rows.read(split, columns):
            kept = batch.filter(live(batch))
            cells = pa.table(
                {
                    "split": split_of(kept.column("split_key"), self.sides),
                    "skill_bucket": kept.column("skill_bucket"),
                    "ctx_bucket": kept.column("ctx_bucket"),
                    "n_tokens": kept.column("n_tokens").cast(pa.int64()),
                }
            )
            keys = ["split", "skill_bucket", "ctx_bucket"]
            counts = cells.group_by(keys).aggregate([("n_tokens", "count"), ("n_tokens", "sum")])
            for out in counts.rename_columns(CELL.names).cast(CELL).combine_chunks().to_batches():
                yield Chunk(out, batch.num_rows)


@dataclass(frozen=True)
class FilePlan:
    """Files and row groups of every cell that is not empty."""

    cells: dict[Cell, tuple[int, int]]
    """First bucket and number of files."""
    row_group_tokens: dict[Cell, int]
    """Approximate tokens of a row group."""
    cell_bytes: tuple[float, ...]
    """The values that decide the number of files."""

    @classmethod
    def of(cls, counts: Dataset, target_bytes: int) -> "FilePlan":
        """Enough files in each cell that none is expected to exceed the target."""
        tokens: dict[Cell, int] = {}
        for batch in counts.read():
            for row in batch.to_pylist():
                cell = (row["split"], row["skill_bucket"], row["ctx_bucket"])
                tokens[cell] = tokens.get(cell, 0) + row["tokens"]
        first = 0
        cells = {}
        for cell in sorted(tokens):
            files = max(1, math.ceil(tokens[cell] * BYTES_PER_TOKEN / target_bytes))
            cells[cell] = (first, files)
            first += files
        sizes = tuple(count * BYTES_PER_TOKEN for count in tokens.values())
        return cls(cells, {cell: row_group_tokens(count) for cell, count in tokens.items()}, sizes)

    @property
    def num_buckets(self) -> int:
        return sum(files for _, files in self.cells.values())

    def cell(self, bucket: int) -> Cell:
        """The cell that a bucket belongs to."""
        for cell, (first, files) in self.cells.items():
            if first <= bucket < first + files:
                return cell
        raise AssertionError(bucket)

    def folder(self, bucket: int) -> str:
        """The Hive folders of the cell that a bucket belongs to."""
        split, skill, ctx = self.cell(bucket)
        return f"split={split}/skill_bucket={skill}/ctx_bucket={ctx}"

    def buckets(self, split: pa.Array, skill: pa.Array, ctx: pa.Array, order: npt.NDArray[np.uint64]) -> Any:
        """The bucket of each row: int32 [rows]."""
        table = np.zeros((len(SPLITS), len(SKILL_BUCKETS), len(CTX_BUCKETS), 2), np.int64)
        for (a, b, c), value in self.cells.items():
            table[SPLITS.index(a), SKILL_BUCKETS.index(b), list(CTX_BUCKETS).index(c)] = value
        code = [
            pc.index_in(column, value_set=pa.array(names, pa.string())).to_numpy()
            for column, names in ((split, SPLITS), (skill, SKILL_BUCKETS), (ctx, list(CTX_BUCKETS)))
        ]
        first, files = table[code[0], code[1], code[2]].T
        # 32 bits of the hash times the number of files, shifted back, spread evenly without a division.
        part = ((order >> np.uint64(32)) * files.astype(np.uint64)) >> np.uint64(32)
        return (first + part.astype(np.int64)).astype(np.int32)


def row_group_tokens(cell_tokens: int) -> int:
    """Tokens of a row group in a cell of this many tokens."""
    return min(max(cell_tokens // ROW_GROUPS_PER_CELL, LEAST_ROW_GROUP_TOKENS), MOST_ROW_GROUP_TOKENS)


# --- rows to their file --------------------------------------------------------------------------------------------

_OF_THE_PATH = ("skill_bucket",)
"""Columns of PROMPT that are folders of the corpus."""

SLICE = pa.schema([("bucket", pa.int32()), ("rows", pa.binary())])


def corpus_schema(rows: Rows) -> pa.Schema:
    """CORPUS, the other columns of PROMPT, then those that the stages measured; ids are 36-character texts."""
    said = [PROMPT.field(name) for name in PROMPT_CONTENT if name not in {*CORPUS.names, *_OF_THE_PATH}]
    own = {*CORPUS.names, *PROMPT.names, "ctx_bucket"}
    measured = [field for field in rows.schema if field.name not in own]
    return pa.schema([*CORPUS, *said, *(field.with_type(_corpus_type(field)) for field in measured)])


def _corpus_type(field: pa.Field) -> pa.DataType:
    return pa.string() if field.type == ID else field.type


@dataclass(frozen=True)
class EmitRows:
    """The corpus rows of one split, in slices for the bucket of their file."""

    rows: RowsRef
    sides: Sides
    plan: FilePlan
    schema: pa.Schema

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        held, most = Held(self.schema), held_bytes()
        left_out = {"verdict", *Digested.of(PROMPT).places}
        columns = [name for name in self.rows.schema.names if name not in left_out]
        for batch, _ in live_rows(self.rows, split, columns):
            if batch.num_rows == 0:
                continue
            order = hash_array(batch.column("id"), _ORDER_SEED)
            side = split_of(batch.column("split_key"), self.sides)
            buckets = self.plan.buckets(side, batch.column("skill_bucket"), batch.column("ctx_bucket"), order)
            held.add(to_corpus(batch, self.schema), buckets)
            if held.num_bytes >= most:
                yield from held.flush(_SLICE_BYTES)
            if held.num_bytes >= most // 2:
                yield from held.flush(0)
        yield from held.flush(0)


class Held:
    """Corpus rows that wait until their bucket has enough of them."""

    def __init__(self, schema: pa.Schema) -> None:
        self.num_bytes = 0
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._buckets: list[npt.NDArray[np.int32]] = []

    def add(self, batch: pa.RecordBatch, buckets: npt.NDArray[np.int32]) -> None:
        self._batches.append(batch)
        self._buckets.append(buckets)
        self.num_bytes += batch.nbytes

    def flush(self, at_least: int) -> Iterator[pa.RecordBatch]:
        """SLICE rows of the buckets that have this many bytes; the rows of the others keep waiting."""
        if not self._batches:
            return
        buckets = np.concatenate(self._buckets)
        order = np.argsort(buckets, kind="stable")
        buckets = buckets[order]
        rows = take_rows(joined(self._batches), order)
        self._batches, self._buckets, self.num_bytes = [], [], 0
        starts = np.flatnonzero(np.concatenate([[True], buckets[1:] != buckets[:-1]])).tolist()
        left: list[tuple[int, int]] = []
        for start, end in zip(starts, [*starts[1:], len(buckets)], strict=True):
            size = rows.slice(start, end - start).nbytes
            if size < at_least:
                left.append((start, end))
                continue
            count = max(1, size // _MOST_SLICE_BYTES)
            for piece in np.array_split(np.arange(start, end), min(count, end - start)):
                yield _slice(int(buckets[start]), rows.slice(piece[0], len(piece)))
        if left:
            kept = np.concatenate([np.arange(start, end) for start, end in left])
            self.add(take_rows(rows, kept), buckets[kept])


def _slice(bucket: int, rows: pa.RecordBatch) -> pa.RecordBatch:
    """Some rows as the one row of SLICE that carries them."""
    data = rows.serialize()
    ends = pa.py_buffer(np.array([0, data.size], np.int32))
    carried = pa.Array.from_buffers(pa.binary(), 1, [None, ends, data])
    return pa.RecordBatch.from_arrays([pa.array([bucket], pa.int32()), carried], schema=SLICE)


def to_corpus(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """PROMPT, TOKENIZED and measured columns as a CORPUS batch."""
    size = batch.num_rows
    made = {
        "prompt_tokens_est": batch.column("prompt_tokens"),
        "sampling_weight": pa.repeat(pa.scalar(1.0), size),
        "analysis_span": span_range(batch.column("spans"), "analysis"),
        "final_span": span_range(batch.column("spans"), "final"),
    }
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        made.setdefault(name, uuid_texts(column) if column.type == ID else column)
    columns = [made[field.name] if field.name in made else pa.nulls(size, field.type) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def span_range(spans: pa.ListArray, kind: str) -> pa.StructArray:
    """Token range of the last span of a kind in each row; null if it has none."""
    size = len(spans)
    rows = pc.list_parent_indices(spans).to_numpy()
    flat = spans.flatten()
    chosen = np.flatnonzero(np.asarray(pc.equal(pc.struct_field(flat, "kind"), kind)))
    place = np.full(size, -1, np.int64)
    place[rows[chosen]] = chosen
    index = pa.array(place, mask=place < 0)
    bounds = [pc.struct_field(flat, name).take(index) for name in ("start", "end")]
    return pa.StructArray.from_arrays(bounds, fields=list(RANGE), mask=pa.array(place < 0))


@dataclass(frozen=True)
class WriteFile:
    """One file of the corpus: its rows in the order of the hash of their ids, in the row groups of its cell."""

    plan: FilePlan
    schema: pa.Schema
    rest_of_id: tuple[str, ...]
    """The columns by which rows of one id are ordered."""
    step: str

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        folder = self.plan.folder(bucket)
        with SortedRows((_ORDER, "id", *self.rest_of_id)) as rows:
            for data in (data for batch in batches for data in batch.column("rows")):
                batch = pa.ipc.read_record_batch(data.as_buffer(), self.schema)
                order = hash_array(batch.column("id"), _ORDER_SEED)
                rows.add(batch.append_column(_ORDER, pa.array(order)))
            pieces = (piece.drop_columns([_ORDER]) for piece in rows.sorted())
            for batch in row_groups(pieces, self.plan.row_group_tokens[self.plan.cell(bucket)]):
                yield Chunk(batch, batch.num_rows, self._account(batch), corpus_counts(batch, folder), folder)

    def _account(self, batch: pa.RecordBatch) -> Accounting:
        counts = pc.value_counts(batch.column("source_dataset")).to_pylist()
        return {
            item["values"]: {self.step: {"in": item["counts"], "made": 0, "kept": item["counts"]}} for item in counts
        }


def row_groups(batches: Iterable[pa.RecordBatch], tokens_each: int) -> Iterator[pa.RecordBatch]:
    """The same rows, cut where the running sum of their tokens passes a multiple of `tokens_each`."""
    held: list[pa.RecordBatch] = []
    num_tokens = group = 0
    for batch in batches:
        passed = num_tokens + np.cumsum(batch.column("n_tokens").to_numpy(), dtype=np.int64)
        groups = passed // tokens_each
        borders = np.flatnonzero(np.diff(groups, prepend=group)).tolist()
        for start, end in itertools.pairwise([0, *borders, batch.num_rows]):
            if start in borders and held:
                yield joined(held)
                held = []
            if end > start:
                held.append(batch.slice(start, end - start))
        num_tokens, group = int(passed[-1]), int(groups[-1])
    if held:
        yield joined(held)


def corpus_counts(batch: pa.RecordBatch, folder: str) -> dict[str, Any]:
    """Counts that the corpus manifest reports: by cell, source, language and kind of span, and of lengths."""
    split, skill, ctx = (piece.partition("=")[2] for piece in folder.split("/"))
    tokens = batch.column("n_tokens").to_numpy()
    supervised = {kind: batch.column(f"n_{kind}").to_numpy() for kind in SPAN_KINDS}
    by_kind = {
        kind: {"documents": int(np.count_nonzero(counts)), "tokens": int(counts.sum())}
        for kind, counts in supervised.items()
    }
    num_supervised = sum(counts["tokens"] for counts in by_kind.values())
    total = {"rows": batch.num_rows, "tokens": int(tokens.sum()), "supervised_tokens": num_supervised}
    language = batch.column("detected_language" if "detected_language" in batch.schema.names else "language")
    lengths = np.ceil(np.log2(np.maximum(tokens, 1))).astype(int)
    return {
        "cells": {split: {skill: {ctx: total}}},
        "spans": {kind: counts["tokens"] for kind, counts in by_kind.items()},
        "supervised": {split: by_kind},
        "sources": _rows_and_tokens(batch.column("source_dataset"), tokens),
        "languages": _rows_and_tokens(pc.fill_null(language, "unknown"), tokens),
        "tokens_up_to": sum_counts({f"{1 << int(power):>7}".strip(): 1} for power in lengths),
    }


def preambles(rows: Rows) -> dict[str, Any]:
    """Column of tokens -> the preamble of its conversations, from the manifests of the stages that rendered them."""
    found: dict[str, Any] = {}
    for dataset in rows.datasets:
        found |= dataset.result().manifest.findings_by_column(PREAMBLES)
    return found


def _findings(told: dict[str, Any], counts: dict[str, Any]) -> dict[str, Any]:
    """The findings of a corpus with these distributions; one of only raw text has no preamble."""
    talks = any(tokens for kind, tokens in counts.get("spans", {}).items() if kind != "text")
    return {PREAMBLES: told} if told and talks else {}


def _rows_and_tokens(labels: pa.Array, tokens: npt.NDArray[np.int32]) -> dict[str, dict[str, int]]:
    codes = labels.dictionary_encode()
    rows = np.bincount(codes.indices.to_numpy())
    sums = np.bincount(codes.indices.to_numpy(), tokens).astype(np.int64)
    return {
        label: {"rows": count, "tokens": total}
        for label, count, total in zip(codes.dictionary.to_pylist(), rows.tolist(), sums.tolist(), strict=True)
    }


class Layout(Sides, Stage):
    """Writes DIR/cells and DIR/corpus. The corpus's manifest repeats the accounting of all earlier stages."""

    kind: Literal["layout"] = "layout"
    purpose: ClassVar[str] = "Write the corpus: partitions by split, skill bucket and context bucket."
    example: ClassVar[str] = "{kind: layout, validation_fraction: 0.02}"
    tables: ClassVar[Mapping[str, str]] = {"cells": "CELL", "corpus": "CORPUS"}
    own_steps: ClassVar[tuple[str, ...]] = ("layout",)
    is_output: ClassVar[bool] = True
    located: ClassVar[frozenset[str]] = frozenset({"target_bytes"})

    target_bytes: int = Field(default=256 << 20, ge=1 << 16)
    """Size of a file above which its folder gets another one."""

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        missing = [name for name in ("input_ids", "ctx_bucket") if name not in schema.names]
        if missing:
            raise SchemaError(f"the stage '{self.label}' needs the columns {missing}; list 'tokenize' before it")
        for field in schema:
            kind = _corpus_type(field)
            if field.name in CORPUS.names and kind != CORPUS.field(field.name).type:
                raise SchemaError(
                    f"the stage '{self.label}': column '{field.name}' is {kind}, but the training record has it as "
                    f"{CORPUS.field(field.name).type}; give the step or stage that adds it another name"
                )
        return schema

    def run(self, context: Context, rows: Rows) -> Rows:
        keys = ["split_key", "skill_bucket", "ctx_bucket", "n_tokens", "verdict"]
        inputs, grows = rows.tables(keys), Growth(With.SPLITS)
        job = context.job("cells", "CELL", CELL, {"layout": self.sides()}, inputs, rows, grows=grows)
        counts = context.map(job, rows.splits, CountCells(rows.ref, self))

        plan = FilePlan.of(counts.result(), self.target_bytes)
        schema = corpus_schema(rows)
        files = {"/".join(cell): files for cell, (_, files) in plan.cells.items()}
        semantic = {"version": LAYOUT_VERSION, "layout": {**self.sides(), "files": files}}
        grows = Growth(tasks=Pieces(plan.cell_bytes, self.target_bytes, With.LIVE))
        job = context.job("corpus", "CORPUS", schema, semantic, rows.tables(rows.schema.names), grows=grows)
        job = job.with_inherited(rows.accounting).with_findings_of(functools.partial(_findings, preambles(rows)))
        emit = EmitRows(rows.ref, self, plan, schema)
        exchange = Exchange(tuple(rows.splits), emit, SLICE, ("bucket",), plan.num_buckets)
        write = WriteFile(plan, schema, rows.ref.rest_of_id, context.folder("layout"))
        context.outputs[context.folder("corpus")] = context.shuffle(job, exchange, write)
        return rows
