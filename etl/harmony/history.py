"""Rows that are turns of one conversation: how earlier turns are rendered, and which turn is supervised.

Each turn has a row of its own (`conversation_id`), so a row supervises only its last turn. As at inference, reasoning
before the last answer of the earlier turns is omitted. (openai-harmony's `auto_drop_analysis` is meant to do the same,
but removes what precedes the first answer.) NumPy over flat arrays; messages are copied only if some are removed.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I64, Bools
from etl.harmony.render import Rendered, Spans
from etl.messages import is_final


def without_history_analysis(messages: pa.ListArray, turns: Bools) -> pa.ListArray:
    """The messages without reasoning that a model no longer sees when it answers the last turn.

    Args:
        messages: list<MESSAGE> [rows], no nulls.
        turns: bool [rows], which rows are turns of a conversation.
    """
    items = messages.flatten()
    lengths = pc.list_value_length(messages).to_numpy(zero_copy_only=False).astype(np.int64)
    row, at = np.repeat(np.arange(len(lengths)), lengths), np.arange(len(items))
    role, channel = pc.struct_field(items, "role"), pc.fill_null(pc.struct_field(items, "channel"), "")
    asked = _last(row, at, _flags(pc.equal(role, "user")), len(lengths))
    answered = _last(row, at, _flags(is_final(items)) & (at < asked[row]), len(lengths))
    is_analysis = _flags(pc.and_(pc.equal(role, "assistant"), pc.equal(channel, "analysis")))
    gone = is_analysis & turns[row] & (at < answered[row])
    if not gone.any():
        return messages
    left = lengths - np.bincount(row[gone], minlength=len(lengths))
    offsets = pa.array(np.concatenate([[0], np.cumsum(left)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, items.filter(pa.array(~gone)), type=messages.type)


def _flags(values: pa.Array) -> Bools:
    return pc.fill_null(values, False).to_numpy(zero_copy_only=False)


def _last(row: I64, at: I64, chosen: Bools, num_rows: int) -> I64:
    """[rows]: place of the last chosen message of each row, -1 if it has none."""
    last = np.full(num_rows, -1, np.int64)
    last[row[chosen]] = at[chosen]
    return last


def with_last_turn_alone(rendered: Rendered, turns: Bools) -> Rendered:
    """The rows, with only the answer to the last turn supervised in those that are turns of a conversation."""
    spans = rendered.spans
    last = np.full(len(turns), -1, np.int64)
    np.maximum.at(last, spans.row, spans.turn)
    kept = ~turns[spans.row] | (spans.turn == last[spans.row])
    columns = (spans.row, spans.kind, spans.turn, spans.start, spans.content_start, spans.end)
    return replace(rendered, spans=Spans(*(column[kept] for column in columns)))
