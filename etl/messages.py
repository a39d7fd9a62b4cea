"""The texts of a conversation, taken from the `messages` column for a whole batch at once.

Filters and scores all need "the instruction", "the answer" or "everything" of an example. Each is the contents of
some of its messages, in order, joined by a newline. All is done by Arrow kernels (about 1 GB a CPU-second); a row
without such a message has the empty string. A raw document is one message of the role `text`: no instruction, and all
of it counts as an answer.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl.schema import TEXT_ROLE

SEPARATOR: Final = "\n"


def instruction_text(batch: pa.RecordBatch) -> pa.StringArray:
    """Everything that the user says: string [rows], no nulls."""
    messages = batch.column("messages")
    return _joined(messages, _is_user(_items(messages)))


def response_text(batch: pa.RecordBatch) -> pa.StringArray:
    """Everything that the assistant says, reasoning and tool calls included: string [rows], no nulls."""
    messages = batch.column("messages")
    return _joined(messages, _is_answer(_items(messages)))


def final_text(batch: pa.RecordBatch) -> pa.StringArray:
    """What the assistant says to the user (see `is_final`): string [rows], no nulls."""
    messages = batch.column("messages")
    return _joined(messages, is_final(_items(messages)))


def visible_text(batch: pa.RecordBatch) -> pa.StringArray:
    """What the user and the assistant say to each other, without reasoning and tools: string [rows], no nulls."""
    messages = batch.column("messages")
    items = _items(messages)
    return _joined(messages, pc.or_(_is_user(items), is_final(items)))


def full_text(batch: pa.RecordBatch) -> pa.StringArray:
    """All contents, whoever says them: string [rows], no nulls."""
    messages = batch.column("messages")
    return _joined(messages, pa.repeat(pa.scalar(True), len(_items(messages))))


def count_messages(batch: pa.RecordBatch, mask: pa.BooleanArray) -> npt.NDArray[np.int64]:
    """How many of the messages that `mask` (one flag a message of the batch, in order) names each row has: [rows]."""
    return _counts(batch.column("messages"), mask)


def message_items(batch: pa.RecordBatch) -> pa.StructArray:
    """The messages of all rows one after another: struct<role, channel, recipient, content> [messages]."""
    return _items(batch.column("messages"))


def is_final(items: pa.StructArray) -> pa.BooleanArray:
    """True for an answer in the channel `final` or in none (raw text, data without channels): [messages]."""
    return pc.and_(_is_answer(items), pc.equal(pc.fill_null(pc.struct_field(items, "channel"), "final"), "final"))


def _is_user(items: pa.StructArray) -> pa.BooleanArray:
    return pc.equal(pc.struct_field(items, "role"), "user")


def _is_answer(items: pa.StructArray) -> pa.BooleanArray:
    role = pc.struct_field(items, "role")
    return pc.or_(pc.equal(role, "assistant"), pc.equal(role, TEXT_ROLE))


def _items(messages: pa.ListArray) -> pa.StructArray:
    return messages.flatten()


def _counts(messages: pa.ListArray, mask: pa.BooleanArray) -> npt.NDArray[np.int64]:
    lengths = pc.fill_null(pc.list_value_length(messages), 0).to_numpy()
    rows = np.repeat(np.arange(len(messages)), lengths)
    return np.bincount(rows[mask.to_numpy(zero_copy_only=False)], minlength=len(messages))


def _joined(messages: pa.ListArray, mask: pa.BooleanArray) -> pa.StringArray:
    ends = np.cumsum(_counts(messages, mask))
    offsets = pa.array(np.concatenate(([0], ends)), pa.int32())
    contents = pc.struct_field(_items(messages), "content").filter(mask)
    return pc.binary_join(pa.ListArray.from_arrays(offsets, contents), SEPARATOR)
