"""The texts of a conversation, taken from the `messages` column for a whole batch at once.

Filters and scores all need "the instruction", "the answer" or "everything" of an example. Each is the contents of
some of its messages, in order, joined by a newline. Arrow kernels do all the work (about 1 GB per CPU-second). A row
without such a message has the empty string. A raw document is one message of the role `text`: it has no instruction,
and all of it counts as an answer.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I32, I64, U8, Bools
from etl.hashing import binary_buffers
from etl.jit import njit
from etl.schema import FORMAL_SKILLS, MESSAGE, TEXT_ROLE

SEPARATOR: Final = "\n"


def instruction_text(batch: pa.RecordBatch) -> pa.StringArray:
    """Everything the user says: string [rows], no nulls."""
    messages = batch.column("messages")
    return _joined(messages, _is_user(_items(messages)))


def response_text(batch: pa.RecordBatch) -> pa.StringArray:
    """Everything the assistant says, including reasoning and tool calls: string [rows], no nulls."""
    messages = batch.column("messages")
    return _joined(messages, _is_answer(_items(messages)))


def final_text(batch: pa.RecordBatch) -> pa.StringArray:
    """The assistant's answers to the user (see `is_final`): string [rows], no nulls."""
    messages = batch.column("messages")
    return _joined(messages, is_final(_items(messages)))


def visible_text(batch: pa.RecordBatch) -> pa.StringArray:
    """What the user and the assistant say to each other, without reasoning and tools: string [rows], no nulls."""
    messages = batch.column("messages")
    items = _items(messages)
    return _joined(messages, pc.or_(_is_user(items), is_final(items)))


def full_text(batch: pa.RecordBatch) -> pa.StringArray:
    """All contents, of any role: string [rows], no nulls."""
    messages = batch.column("messages")
    return _joined(messages, pa.repeat(pa.scalar(True), len(_items(messages))))


def is_formal(batch: pa.RecordBatch) -> Bools:
    """Which rows are code or maths, by their skill bucket: bool [rows]."""
    found = pc.is_in(batch.column("skill_bucket"), value_set=pa.array(FORMAL_SKILLS))
    return found.to_numpy(zero_copy_only=False)


def whole_messages(messages: pa.Array) -> tuple[pa.ListArray, dict[str, pa.BooleanArray]]:
    """Messages of an input as list<MESSAGE>, and the rows with an incomplete message.

    Args:
        messages: list<struct<…>> [rows] of strings; all but `role` and `content` may be missing and are then null.

    Returns:
        The messages, with "" for a null that is not allowed; and for each reason (`null_message`, `null_role`,
        `null_content`), the rows that had such a null: bool [rows]. Reasons that no row has are omitted.
    """
    items = _items(messages)
    lengths, first = _extents(messages)
    columns = {name: field_of(items, name).cast(pa.string()) for name in MESSAGE.names}
    gone = {"null_message": items, "null_role": columns["role"], "null_content": columns["content"]}
    rows = np.repeat(np.arange(len(messages)), lengths)
    flaws = {}
    for reason, values in gone.items():
        null = values.is_null().to_numpy(zero_copy_only=False)
        of_row = np.bincount(rows[null], minlength=len(messages)) > 0
        if of_row.any():
            flaws[reason] = pa.array(of_row)
    filled = {
        name: values if MESSAGE.field(name).nullable else pc.fill_null(values, "") for name, values in columns.items()
    }
    offsets = pa.array(np.append(first, len(items)), pa.int32())
    whole = pa.ListArray.from_arrays(offsets, structs(filled), type=pa.list_(MESSAGE), mask=messages.is_null())
    return whole, flaws


def structs(columns: Mapping[str, pa.Array]) -> pa.StructArray:
    """Messages made of string columns of equal length, including `role` and `content`; an absent field is null."""
    absent = pa.nulls(len(columns["role"]), pa.string())
    return pa.StructArray.from_arrays([columns.get(name, absent) for name in MESSAGE.names], fields=list(MESSAGE))


def with_fields(messages: pa.ListArray, names: Sequence[str]) -> pa.ListArray:
    """The messages with only some of their fields; nothing is copied."""
    items = _items(messages)
    _, first = _extents(messages)
    chosen = pa.StructArray.from_arrays([pc.struct_field(items, name) for name in names], names=names)
    return pa.ListArray.from_arrays(pa.array(np.append(first, len(items)), pa.int32()), chosen)


def has_fields(messages: pa.ListArray, names: Sequence[str]) -> pa.BooleanArray:
    """Which rows have a message with a value in one of some fields: bool [rows]."""
    items = _items(messages)
    found = np.zeros(len(items), np.bool_)
    for name in names:
        found |= pc.struct_field(items, name).is_valid().to_numpy(zero_copy_only=False)
    return pa.array(_counts(messages, pa.array(found)) > 0)


def raw_documents(messages: pa.ListArray) -> pa.StringArray:
    """The text of each row that is a raw document, one message of the role `text`; null for the others: [rows]."""
    items = _items(messages)
    lengths, first = _extents(messages)
    roles = pc.struct_field(items, "role").take(pa.array(first, mask=lengths != 1))
    is_text = pc.fill_null(pc.equal(roles, TEXT_ROLE), False).to_numpy(zero_copy_only=False)
    return pc.struct_field(items, "content").take(pa.array(first, mask=~is_text))


def remove_ranges(messages: pa.ListArray, removed: pa.ListArray) -> pa.ListArray:
    """The messages without some bytes of the first one of each row. Copies the texts, unless nothing is removed.

    Args:
        messages: list<MESSAGE> [rows].
        removed: etl.schema.REMOVED [rows]; a row without messages has no ranges.
    """
    ranges = removed.flatten()
    if len(ranges) == 0:
        return messages
    items = _items(messages)
    _, first = _extents(messages)
    num_ranges = pc.fill_null(pc.list_value_length(removed), 0).to_numpy()
    of_item = np.zeros(len(items), np.int64)
    of_item[first[num_ranges > 0]] = num_ranges[num_ranges > 0]
    starts, ends = (pc.struct_field(ranges, name).to_numpy() for name in ("start", "end"))
    content = pc.struct_field(items, "content")
    data, offsets = binary_buffers(content)
    out = np.empty(int(offsets[-1] - offsets[0] - (ends - starts).sum(dtype=np.int64)), np.uint8)
    out_offsets = np.zeros(len(items) + 1, np.int32)
    _copy_rest(data, offsets, of_item, starts, ends, out, out_offsets)
    buffers = [None, pa.py_buffer(out_offsets), pa.py_buffer(out)]
    rest = pa.Array.from_buffers(content.type, len(items), buffers)
    columns = [rest if field.name == "content" else pc.struct_field(items, field.name) for field in items.type]
    trimmed = pa.StructArray.from_arrays(columns, fields=list(items.type))
    return pa.ListArray.from_arrays(pa.array(np.append(first, len(items)), pa.int32()), trimmed, type=messages.type)


@njit
def _copy_rest(data: U8, offsets: I64, num_ranges: I64, starts: I32, ends: I32, out: U8, out_offsets: I32) -> None:
    """Write each text without its ranges; text i has the next num_ranges[i] of them."""
    size = 0
    k = 0
    for i in range(len(num_ranges)):
        at = offsets[i]
        for _ in range(num_ranges[i]):
            stop = offsets[i] + starts[k]
            out[size : size + stop - at] = data[at:stop]
            size += stop - at
            at = offsets[i] + ends[k]
            k += 1
        out[size : size + offsets[i + 1] - at] = data[at : offsets[i + 1]]
        size += offsets[i + 1] - at
        out_offsets[i + 1] = size


def count_messages(batch: pa.RecordBatch, mask: pa.BooleanArray) -> I64:
    """Number of messages in each row for which `mask` (one flag per message of the batch, in order) is true: [rows]."""
    return _counts(batch.column("messages"), mask)


def message_items(batch: pa.RecordBatch) -> pa.StructArray:
    """The messages of all rows one after another: etl.schema.MESSAGE [messages]."""
    return _items(batch.column("messages"))


def field_of(items: pa.StructArray, name: str) -> pa.StringArray:
    """A field of messages; null if they lack it, as in earlier versions: string [messages]."""
    has = items.type.get_field_index(name) >= 0
    return pc.struct_field(items, name) if has else pa.nulls(len(items), pa.string())


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


def _extents(messages: pa.ListArray) -> tuple[I64, I64]:
    """Number of messages of each row, and the index of its first one among all messages: int64 [rows]."""
    lengths = pc.fill_null(pc.list_value_length(messages), 0).to_numpy().astype(np.int64)
    return lengths, np.cumsum(lengths) - lengths


def _counts(messages: pa.ListArray, mask: pa.BooleanArray) -> I64:
    lengths, _ = _extents(messages)
    rows = np.repeat(np.arange(len(messages)), lengths)
    return np.bincount(rows[mask.to_numpy(zero_copy_only=False)], minlength=len(messages))


def _joined(messages: pa.ListArray, mask: pa.BooleanArray) -> pa.StringArray:
    counts = _counts(messages, mask)
    contents = pc.struct_field(_items(messages), "content")
    if mask.true_count < len(mask):
        contents = contents.filter(mask)
    if (counts == 1).all():
        # Raw documents, mostly: nothing is copied.
        return contents
    offsets = pa.array(np.concatenate(([0], np.cumsum(counts))), pa.int32())
    return pc.binary_join(pa.ListArray.from_arrays(offsets, contents), SEPARATOR)
