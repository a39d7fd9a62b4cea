"""Whole conversations instead of their turns: one row of each is compared, and the others get the same verdict.

Datasets, each committed and resumable; none is written if no row has a `conversation_id`:

    turn_groups    TURN      live rows that are not the last of their conversation    shuffle by conversation
    conversations  VERDICT   aligned: these have a verdict, so no search sees them    shuffle by split
    turn_hits      FATE      those whose last row was dropped since, and why          shuffle by split
    turns          VERDICT   aligned: the verdict of the last row, or none            shuffle by split

The last row is the live one with most messages. Rows that occur several times make as many conversations, so that
copies find each other. Accounts are those of the searches, as if each row had gone through them. Costs 48 bytes in the
shuffles for each row of such a conversation, and one more read of the messages of all rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Final

import pyarrow as pa
import pyarrow.compute as pc

from etl.accounting import account
from etl.engine import Exchange
from etl.hashing import hash128
from etl.laws import Growth, SameAs, With
from etl.rows import Rows, RowsRef
from etl.schema import ID, PROMPT, ROW_KEY, aligned, place
from etl.stages.context import Context
from etl.stages.dedup.marks import Mark, one_a_row
from etl.stages.ingest import CONVERSATIONS
from etl.stages.keyed import bucket_of_hash128, live_rows, reduced, routed, rows_with_found, splits_of
from etl.step import drop
from etl.storage.build import Chunk
from etl.storage.dataset import Dataset, DatasetRef

HELD: Final = "held"
FOLDERS: Final = {"turn_groups": "TURN", "conversations": "VERDICT", "turn_hits": "FATE", "turns": "VERDICT"}
"""Every folder that may be written -> the name of the table."""

TURN = pa.schema([ROW_KEY, PROMPT.field("id"), place(pa.field("whole", pa.int64(), nullable=False))])
"""A row that waits for another one of its conversation, and the row key of the other."""
FATE = pa.schema(
    [
        ROW_KEY,
        PROMPT.field("id"),
        pa.field("step", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("value", pa.string()),
    ]
)
"""A row whose conversation was dropped, with the conversation's verdict."""
MEMBER = pa.schema(
    [
        ("bucket", pa.int32()), ("conversation", pa.binary()), ("length", pa.int64()), ("id", pa.binary()),
        ("row", pa.int64()),
    ]
)  # fmt: skip
MEMBER_BYTES = 48
_ALIGNED = aligned(pa.schema([]))


@dataclass(frozen=True)
class EmitMembers:
    """Sends the live rows of a split that are cut from a conversation to the bucket of that conversation."""

    rows: RowsRef
    num_buckets: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch, keys in live_rows(self.rows, split, ["id", "source_dataset", "conversation_id", "messages"]):
            chosen = batch.column("conversation_id").is_valid()
            batch, keys = batch.filter(chosen), keys[chosen.to_numpy(zero_copy_only=False)]
            conversation = hash128([batch.column("source_dataset"), batch.column("conversation_id")])
            columns = [
                bucket_of_hash128(conversation, self.num_buckets), conversation.cast(pa.binary()),
                pc.list_value_length(batch.column("messages")).cast(pa.int64()),
                batch.column("id").cast(pa.binary()), pa.array(keys),
            ]  # fmt: skip
            yield pa.RecordBatch.from_arrays(columns, schema=MEMBER)


def find_turns(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """Rows by conversation, id and row key: TURN rows for all but the last of each conversation."""
    return reduced(batches, _turns)


def _turns(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    names = ("conversation", "length", "id", "row")
    lines = (
        line for batch in batches for line in zip(*(batch.column(name).to_pylist() for name in names), strict=True)
    )
    for _, members in groupby(lines, key=lambda line: line[0]):
        found = list(_waiting(members))
        if found:
            columns = list(zip(*found, strict=True))
            yield pa.RecordBatch.from_arrays(
                [pa.array(values, field.type) for values, field in zip(columns, TURN, strict=True)], schema=TURN
            )


def _waiting(members: Iterable[tuple[bytes, int, bytes, int]]) -> Iterator[tuple[int, bytes, int]]:
    """The rows of one conversation that wait, with their ids and the rows for which they wait.

    The rows of an id are copies of one; the first of each are one conversation, the second of each another.
    """
    copies: list[list[tuple[int, bytes, int]]] = []
    for _, same in groupby(members, key=lambda line: line[2]):
        for number, (_, length, name, row) in enumerate(same):
            if number == len(copies):
                copies.append([])
            copies[number].append((length, name, row))
    for copy in copies:
        *_, whole = max(copy)
        yield from ((row, name, whole) for _, name, row in copy if row != whole)


@dataclass(frozen=True)
class HoldMark(Mark):
    """The rows of TURN are hidden from the searches."""

    table: ClassVar[str] = "VERDICT"
    hits: ClassVar[pa.Schema] = pa.schema([ROW_KEY, TURN.field("whole")])

    def judge(self, batch: pa.RecordBatch, found: pa.Table) -> pa.RecordBatch:
        """As `Mark.judge`."""
        (whole,) = one_a_row(found, batch.num_rows)
        return drop(batch, self.step, whole.is_valid(), HELD, pa.nulls(batch.num_rows, pa.string()))


@dataclass(frozen=True)
class EmitTurns:
    """TURN or FATE rows to the split that holds the row in one of their columns."""

    hits: DatasetRef
    schema: pa.Schema
    """The schema of the sent rows: that column first, as `row`."""
    columns: tuple[str, ...]
    """Place of that column in the rows."""

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch in self.hits.read_split(split, list(self.columns)):
            columns = [batch.column(name) for name in self.columns]
            bucket = splits_of(columns[0].to_numpy())
            yield pa.RecordBatch.from_arrays([bucket, *columns], names=self.schema.names).cast(self.schema)


_WHOLE = routed(pa.schema([ROW_KEY, pa.field("waiting", pa.int64()), PROMPT.field("id")]))
_FATE = routed(pa.schema([field for field in FATE if field.name != "id"]))


@dataclass(frozen=True)
class HoldSplit:
    """One split's rows; those that wait have a verdict that says so, which is in no account."""

    rows: RowsRef
    mark: HoldMark

    def __call__(self, split: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        for batch, found in rows_with_found(self.rows, split, ["id", "verdict"], batches, routed(self.mark.hits)):
            done = self.mark.judge(batch, found.select(self.mark.hits.names))
            yield Chunk(done.select(_ALIGNED.names).cast(_ALIGNED), batch.num_rows)


@dataclass(frozen=True)
class FindFates:
    """The last rows of conversations in a split, and the rows that wait for them: FATE rows if they were dropped."""

    rows: RowsRef

    def __call__(self, split: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        return reduced(batches, lambda found: self._fates(split, found))

    def _fates(self, split: int, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch, found in rows_with_found(self.rows, split, ["id", "verdict"], batches, _WHOLE):
            verdict = batch.column("verdict").take(found["row"].combine_chunks())
            lost = verdict.is_valid()
            columns = [found["waiting"].combine_chunks(), found["id"].combine_chunks().cast(ID)]
            columns += [pc.struct_field(verdict, name) for name in ("step", "reason", "value")]
            yield pa.RecordBatch.from_arrays(columns, schema=FATE).filter(lost)


@dataclass(frozen=True)
class GiveBack:
    """One split's rows; those that waited get the verdict of the row for which they waited."""

    rows: RowsRef
    hold: str
    """The step whose verdict they have so far."""
    steps: tuple[str, ...]
    """The searches from which they were hidden."""

    def __call__(self, split: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        columns = ["id", "source_dataset", "verdict"]
        for batch, found in rows_with_found(self.rows, split, columns, batches, _FATE):
            verdict = batch.column("verdict")
            held = pc.fill_null(pc.equal(pc.struct_field(verdict, "step"), self.hold), False)
            none = pa.nulls(batch.num_rows, verdict.type)
            fates = one_a_row(found.drop_columns(["bucket"]), batch.num_rows)
            fate = pa.StructArray.from_arrays(fates, fields=list(verdict.type), mask=fates[0].is_null())
            after = pc.if_else(held, fate, verdict)
            before, judged = pc.if_else(held, none, verdict).filter(held), after.filter(held)
            counts = account(self.steps, batch.column("source_dataset").filter(held), before, judged)
            rows = pa.RecordBatch.from_arrays([batch.column("id"), after], schema=_ALIGNED)
            yield Chunk(rows, batch.num_rows, counts)


@dataclass(frozen=True)
class Turns:
    """The rows of conversations that wait for the last row of theirs."""

    groups: Dataset
    before: Rows
    """The rows before some of them waited."""


def hold_turns(context: Context, rows: Rows) -> tuple[Rows, Turns | None]:
    """The rows, with all but the last of each conversation hidden; None if no row is cut from one.

    A barrier: whether there are such rows is known only when ingest is done.
    """
    num_rows = sum(rows.base.result().manifest.counts(CONVERSATIONS).values())
    if not num_rows:
        return rows, None
    tasks = context.buckets(num_rows * MEMBER_BYTES)
    inputs = rows.tables(["source_dataset", "conversation_id", "messages", "verdict"])
    grows = Growth.all_by(With.INPUT, tasks)
    job = context.job("turn_groups", "TURN", TURN, {}, inputs, rows, grows=grows)
    order, num_buckets = ("conversation", "id", "row"), tasks.count()
    emit = EmitMembers(rows.ref, num_buckets)
    groups = context.shuffle(job, Exchange(tuple(rows.splits), emit, MEMBER, order, num_buckets), find_turns)
    mark = HoldMark(context.folder("conversations"))
    inputs = (groups, *rows.tables(["verdict"]))
    grows = Growth.of_marks(groups.ref.stage, With.NOTHING)
    job = context.job("conversations", "VERDICT", _ALIGNED, {"held": mark.step}, inputs, rows, grows=grows)
    schema = routed(mark.hits)
    sent = EmitTurns(groups.ref, schema, ("row", "whole"))
    exchange = Exchange(tuple(range(groups.ref.num_splits)), sent, schema, ("row",), len(rows.splits))
    held = context.shuffle(job, exchange, HoldSplit(rows.ref, mark))
    return rows.with_side(held, _ALIGNED), Turns(groups, rows)


def give_turns_back(context: Context, rows: Rows, turns: Turns, steps: Sequence[str]) -> Rows:
    """The rows with the turns visible again; those of a dropped conversation get its verdict.

    Args:
        context: of the run.
        rows: as the searches left them.
        turns: the rows that wait.
        steps: of the searches, in order.
    """
    groups, grows = turns.groups, Growth.all_by(SameAs(turns.groups.ref.stage))
    inputs = (groups, *rows.tables(["verdict"]))
    job = context.job("turn_hits", "FATE", FATE, {}, inputs, rows, grows=grows)
    sent = EmitTurns(groups.ref, _WHOLE, ("whole", "row", "id"))
    exchange = Exchange(tuple(range(groups.ref.num_splits)), sent, _WHOLE, ("row", "waiting"), len(rows.splits))
    fates = context.shuffle(job, exchange, FindFates(rows.ref))
    inputs = (fates, *rows.tables(["verdict"]))
    grows = Growth.of_marks(fates.ref.stage, SameAs(fates.ref.stage))
    hold = context.folder("conversations")
    semantic: dict[str, Any] = {"held": hold, "steps": list(steps)}
    job = context.job("turns", "VERDICT", _ALIGNED, semantic, inputs, rows, grows=grows)
    names = [field.name for field in FATE if field.name != "id"]
    back = EmitTurns(fates.ref, _FATE, tuple(names))
    exchange = Exchange(tuple(range(fates.ref.num_splits)), back, _FATE, ("row",), len(rows.splits))
    given = context.shuffle(job, exchange, GiveBack(rows.ref, hold, tuple(steps)))
    return rows.with_side(given, _ALIGNED)
