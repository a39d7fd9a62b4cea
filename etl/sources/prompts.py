"""Raw columns of a split as PROMPT rows: what the shape of a source makes of them, and its fields.

No Python object is made per row, except for nested values in meta_json and by shapes and fields that read nested
records.
"""

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrow_types import hex_text
from etl.hashing import hash128
from etl.messages import has_fields, with_fields
from etl.schema import MESSAGE, PROMPT, SAID
from etl.sources.fields import exact, parse, unparsed
from etl.sources.meta_json import meta_json
from etl.sources.raw import Lost, RawBatch
from etl.sources.shapes.described import Conversations
from etl.sources.spec import Shape
from etl.step import drop

INGEST: Final = "ingest"
"""The step of ingest's own verdicts."""
LATER: Final = tuple(name for name in MESSAGE.names if name not in SAID)
"""Fields of a message that are in an id only where they have a value."""


def to_prompt(batch: RawBatch, shape: Shape, source: str, file: str) -> pa.RecordBatch:
    """Raw columns as PROMPT rows, and behind these columns the fields of the source.

    Rows of which the shape can make nothing become bad rows of the batch, and so do those of which a strict field
    cannot be read.

    Args:
        batch: the columns that the shape reads.
        shape: the description of the source.
        source: its name.
        file: as the rows call the one that they stand in.
    """
    made = _conversations(batch, shape)
    made, fields = _fields(batch, shape, made)
    size = len(batch)
    dataset, called, positions = pa.repeat(pa.scalar(source), size), pa.repeat(pa.scalar(file), size), batch.positions
    if batch.assembled is not None:
        called, positions = (of.take(positions) for of in (batch.assembled.files, batch.assembled.positions))
    subset = batch.text(shape.subset)
    example = batch.text(shape.example_id)
    if shape.example_id is None:
        example = _names(shape, called, positions, made.messages)
    tools = pa.nulls(size, pa.string()) if made.tools is None else made.tools
    ids = ids_of([dataset, subset, example], made.messages, tools)
    columns = {
        "id": ids,
        "source_dataset": dataset,
        "source_subset": subset,
        "source_example_id": example,
        "license": batch.text(shape.license),
        "language": batch.text(shape.language),
        "split_key": pc.coalesce(batch.text(shape.split_key), hex_text(ids)),
        "messages": made.messages,
        "skill_bucket": _skill_bucket(batch.text(shape.skill_bucket.column), shape),
        "meta_json": _meta(batch, shape, made),
        "file": called,
        "position": positions,
        "tools": tools,
    }
    arrays = [columns[field.name] if field.name in columns else pa.nulls(size, field.type) for field in PROMPT]
    prompts = pa.RecordBatch.from_arrays(arrays, schema=PROMPT)
    for reason, rows in made.dropped.items():
        prompts = drop(prompts, INGEST, pa.array(np.isin(np.arange(size), rows)), reason, pa.nulls(size, pa.string()))
    for name, values in fields.items():
        prompts = prompts.append_column(name, values)
    return prompts


def ids_of(named: list[pa.Array], messages: pa.ListArray, tools: pa.StringArray) -> pa.Array:
    """The hash of source, subset, example id and what is said: binary(16) [rows].

    What later versions have added to a row counts where it has a value, so a row without it keeps the id that it had.
    """
    ids = hash128([*named, with_fields(messages, SAID)])
    more = pc.or_(has_fields(messages, LATER), pc.is_valid(tools))
    if not more.true_count:
        return ids
    whole = hash128([column.filter(more) for column in (*named, messages, tools)])
    return pc.replace_with_mask(ids, more, whole)


def _conversations(batch: RawBatch, shape: Shape) -> Conversations:
    """What the shape makes of a batch, the rows of which it can make nothing taken out of both."""
    made = shape.converse(batch)
    if not made.lost:
        return made
    lost = {row: Lost(reason, detail) for row, reason, detail in made.lost}
    return made.kept(batch.take_out(lost, shape))


def _fields(batch: RawBatch, shape: Shape, made: Conversations) -> tuple[Conversations, dict[str, pa.Array]]:
    """The fields of a batch by name, the rows taken out of all of which a strict one cannot be read."""
    values: dict[str, pa.Array] = {}
    failed: dict[str, Any] = {}
    lost: dict[int, Lost] = {}
    for name, field in shape.fields.items():
        path = shape.field_columns[name]
        given = batch.given(path)
        if field.type == "string" and isinstance(given, list) and batch.lines is not None:
            given = [exact(value, path, line) for value, line in zip(given, batch.lines, strict=True)]
        parsed = parse(given, field)
        values[name], failed[name] = parsed.values, parsed.failed
        if field.strict:
            for row in map(int, np.flatnonzero(parsed.failed)):
                value = given[row].as_py() if isinstance(given, pa.Array) else given[row]
                lost.setdefault(row, Lost("bad_field", unparsed(name, field, value)))
    if lost:
        good = batch.take_out(lost, shape)
        made = made.kept(good)
        values = {name: column.filter(pa.array(good)) for name, column in values.items()}
        failed = {name: mask[good] for name, mask in failed.items()}
    batch.unparsed.update({name: int(mask.sum()) for name, mask in failed.items() if mask.any()})
    return made, values


def _names(shape: Shape, called: pa.Array, positions: pa.Array, messages: pa.Array) -> pa.Array:
    """What rows without an `example_id` are called: string [rows]."""
    if shape.row_name == "content":
        return hex_text(hash128([messages]))
    return pc.binary_join_element_wise(called, positions.cast(pa.string()), ":")


def _skill_bucket(values: pa.Array, shape: Shape) -> pa.Array:
    rule = shape.skill_bucket
    if not rule.by_value:
        return pa.repeat(pa.scalar(rule.default), len(values))
    known = pa.array(list(rule.by_value), pa.string())
    buckets = pa.array(list(rule.by_value.values()), pa.string())
    return pc.fill_null(buckets.take(pc.index_in(values, value_set=known)), rule.default)


def _meta(batch: RawBatch, shape: Shape, made: Conversations) -> pa.StringArray:
    """The kept columns of each row, and what the shape adds, as one JSON object with sorted keys."""
    kept = {name: batch.columns[name] for name in shape.meta if name in batch.columns}
    return meta_json(kept | made.meta, len(batch))
