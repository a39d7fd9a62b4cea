"""Rows that are cut from one conversation: each turn as a row, and what such rows have in common.

They carry `conversation_id`, the id of the row that is the whole conversation, in hexadecimal digits. So each row shows
by itself whether it is the whole one, wherever rows lie. Arrow kernels; texts are copied once for each row that repeats
them, so a conversation of n turns takes about n/2 times its bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I64, Bools
from etl.arrow_types import hex_text
from etl.messages import is_final, message_items
from etl.sources.prompts import INGEST, ids_of
from etl.step import drop, live

MOST_BYTES: Final = 1 << 28
"""Bytes of messages that a batch of turns takes, more where one conversation has more."""
TOO_LONG_BYTES: Final = 1 << 30
"""Bytes that the turns of one conversation may take together; Arrow's offsets end at twice as many."""


def with_conversations(prompts: pa.RecordBatch, groups: pa.Array, splits_by_id: bool) -> pa.RecordBatch:
    """PROMPT rows with the id of their conversation, which is that of its last row.

    Args:
        prompts: rows of one conversation follow one another.
        groups: string [rows], equal in rows of one conversation; null in a row that is one by itself.
        splits_by_id: whether rows without a split key of their own have that of their conversation.
    """
    codes = pc.fill_null(groups.dictionary_encode().indices, -1).to_numpy().astype(np.int64)
    last = np.flatnonzero(np.append(codes[1:] != codes[:-1], True)) if len(codes) else np.empty(0, np.int64)
    whole = np.repeat(last, np.diff(np.append(-1, last)))
    alone = np.repeat(np.diff(np.append(-1, last)) == 1, np.diff(np.append(-1, last)))
    return _named(prompts, whole, (codes < 0) | alone, splits_by_id)


def _named(prompts: pa.RecordBatch, whole: I64, alone: Bools, splits_by_id: bool) -> pa.RecordBatch:
    """Rows with `conversation_id`, that of the row at `whole`, and none where they are `alone`."""
    ids = hex_text(prompts.column("id")).take(pa.array(whole, mask=alone))
    prompts = _replaced(prompts, "conversation_id", ids)
    if not splits_by_id:
        return prompts
    return _replaced(prompts, "split_key", pc.coalesce(ids, prompts.column("split_key")))


def _replaced(prompts: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    place = prompts.schema.get_field_index(name)
    return prompts.set_column(place, prompts.schema.field(place), values)


@dataclass(frozen=True)
class _Turns:
    """Where the turns of some conversations end."""

    counts: I64
    """[rows]: 1 for a row that stays as it is."""
    ends: I64
    """[sum of counts]: messages of its conversation that each turn has, the last one all of them."""


def by_turn(prompts: pa.RecordBatch, splits_by_id: bool) -> Iterator[pa.RecordBatch]:
    """PROMPT rows with one for each turn that the assistant answers: what was said up to the last answer in it.

    The row of the last turn is the row as it was. Rows with one such turn, and rows with a verdict, stay alone.

    Args:
        prompts: conversations, one a row.
        splits_by_id: as of `with_conversations`.
    """
    turns = _turns(prompts)
    sizes = turns.counts * _num_bytes(prompts)
    too_long = (turns.counts > 1) & (sizes > TOO_LONG_BYTES)
    if too_long.any():
        value = pa.array(sizes).cast(pa.string())
        prompts = drop(prompts, INGEST, pa.array(too_long), "too_long_in_turns", value)
        turns = _turns(prompts)
    held, sums = 0, np.cumsum(np.where(too_long, 0, sizes))
    while held < prompts.num_rows:
        before = sums[held - 1] if held else 0
        stop = max(held + 1, int(np.searchsorted(sums, before + MOST_BYTES, "right")))
        yield _cut(prompts.slice(held, stop - held), splits_by_id)
        held = stop
    if not prompts.num_rows:
        yield prompts


def _turns(prompts: pa.RecordBatch) -> _Turns:
    messages = prompts.column("messages")
    lengths = pc.list_value_length(messages).to_numpy(zero_copy_only=False).astype(np.int64)
    row = np.repeat(np.arange(len(lengths)), lengths)
    first = np.cumsum(lengths) - lengths
    items = message_items(prompts)
    asked = np.cumsum(pc.equal(pc.struct_field(items, "role"), "user").to_numpy(zero_copy_only=False))
    asked -= np.repeat(np.append(0, asked)[first], lengths)
    answers = np.flatnonzero(is_final(items).to_numpy(zero_copy_only=False) & (asked > 0))
    # The last answer before the next user speaks.
    turn = np.stack([row[answers], asked[answers]], axis=1)
    ends = answers[np.append((turn[1:] != turn[:-1]).any(axis=1), True)] if len(answers) else answers
    counts = np.bincount(row[ends], minlength=len(lengths))
    stays = (counts < 2) | ~live(prompts).to_numpy(zero_copy_only=False)
    counts = np.where(stays, 1, counts)
    cut = ends[~stays[row[ends]]]
    of_row = np.concatenate([row[cut], np.flatnonzero(stays)])
    held = np.concatenate([cut - first[row[cut]] + 1, lengths[stays]])[np.argsort(of_row, kind="stable")]
    held[np.cumsum(counts) - 1] = lengths
    return _Turns(counts, held)


def _cut(prompts: pa.RecordBatch, splits_by_id: bool) -> pa.RecordBatch:
    turns = _turns(prompts)
    if (turns.counts == 1).all():
        return prompts
    row = np.repeat(np.arange(prompts.num_rows), turns.counts)
    last = np.cumsum(turns.counts) - 1
    number = np.arange(len(row)) - np.repeat(last + 1 - turns.counts, turns.counts) + 1
    is_last = np.zeros(len(row), bool)
    is_last[last] = True
    cut = prompts.drop_columns(["messages"]).take(pa.array(row))
    messages = _prefixes(prompts.column("messages"), row, turns.ends)
    cut = cut.add_column(prompts.schema.get_field_index("messages"), prompts.schema.field("messages"), messages)
    called = pc.binary_join_element_wise(cut.column("source_example_id"), pa.array(number).cast(pa.string()), "#")
    cut = _replaced(cut, "source_example_id", pc.if_else(pa.array(is_last), cut.column("source_example_id"), called))
    named = [cut.column(name) for name in ("source_dataset", "source_subset", "source_example_id")]
    ids = pc.if_else(pa.array(is_last), cut.column("id"), ids_of(named, messages, cut.column("tools")))
    cut = _replaced(cut, "id", ids)
    return _named(cut, last[row], turns.counts[row] == 1, splits_by_id)


def _prefixes(messages: pa.ListArray, row: I64, ends: I64) -> pa.ListArray:
    """The first `ends` messages of each of some rows: list<MESSAGE> [len(row)]."""
    lengths = pc.list_value_length(messages).to_numpy(zero_copy_only=False).astype(np.int64)
    first = (np.cumsum(lengths) - lengths)[row]
    offsets = np.concatenate([[0], np.cumsum(ends)])
    places = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - first, ends)
    items = messages.flatten().take(pa.array(places))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items, type=messages.type)


def _num_bytes(prompts: pa.RecordBatch) -> I64:
    """[rows]: bytes of the contents of each conversation."""
    messages = prompts.column("messages")
    sizes = pc.binary_length(pc.struct_field(messages.flatten(), "content")).to_numpy(zero_copy_only=False)
    ends = np.concatenate([[0], np.cumsum(sizes.astype(np.int64))])
    lengths = pc.list_value_length(messages).to_numpy(zero_copy_only=False)
    places = np.concatenate([[0], np.cumsum(lengths)])
    return ends[places[1:]] - ends[places[:-1]]
