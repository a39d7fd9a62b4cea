"""Counting rows: how many each step got, kept and dropped, by source and reason.

The accounting of a pass is derived from the `verdict` column before and after it, so a step cannot forget to count.
"""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.errors import SchemaError
from etl.storage.build import Chunk
from etl.storage.manifest import Accounting

NO_LIMITS: Final[Mapping[str, Collection[str]]] = MappingProxyType({})
"""Every step works on the rows of every source."""


def count_by_source(sources: pa.Array, mask: pa.BooleanArray) -> dict[str, int]:
    """Rows of each source where the mask is true; sources without any are listed with 0."""
    codes = sources.dictionary_encode()
    counts = np.bincount(codes.indices.filter(mask).to_numpy(), minlength=len(codes.dictionary))
    return dict(zip(codes.dictionary.to_pylist(), counts.tolist(), strict=True))


def judged(
    steps: Sequence[str],
    before: pa.RecordBatch,
    after: pa.RecordBatch,
    schema: pa.Schema,
    limits: Mapping[str, Collection[str]] = NO_LIMITS,
) -> Chunk:
    """A row group of an aligned table, with the account of the pass that made it.

    Args:
        steps: names of the steps of the pass, in order.
        before: rows before the pass, with source_dataset and verdict.
        after: the same rows after the pass, with the columns of `schema` and possibly others.
        schema: of the aligned table.
        limits: by step, the sources that it is limited to.
    """
    verdicts = before.column("verdict"), after.column("verdict")
    accounting = account(steps, before.column("source_dataset"), *verdicts, limits)
    return Chunk(after.select(schema.names).cast(schema), before.num_rows, accounting)


def account(
    steps: Sequence[str],
    sources: pa.Array,
    before: pa.StructArray,
    after: pa.StructArray,
    limits: Mapping[str, Collection[str]] = NO_LIMITS,
) -> Accounting:
    """The account of one pass over some rows.

    Args:
        steps: names of the steps of the pass, in order.
        sources: source_dataset of each row.
        before: verdicts when the pass began.
        after: verdicts when it ended.
        limits: by step, the sources that it is limited to; it has no accounting for other sources.

    Raises:
        SchemaError: a new verdict names none of the steps.
    """
    was_live = pc.is_null(before)
    num_live = count_by_source(sources, was_live)
    lost = pa.table(
        {
            "source": sources,
            "step": pc.struct_field(after, "step"),
            "reason": pc.struct_field(after, "reason"),
        }
    ).filter(pc.and_(was_live, pc.is_valid(after)))
    keys = ["source", "step", "reason"]
    losses = lost.group_by(keys).aggregate([([], "count_all")]).to_pylist() if lost.num_rows else []
    accounting: Accounting = {source: {} for source in num_live}
    for step in steps:
        for source, entering in num_live.items():
            if source not in limits.get(step, (source,)):
                continue
            drops = {
                row["reason"]: row["count_all"] for row in losses if row["source"] == source and row["step"] == step
            }
            num_live[source] = entering - sum(drops.values())
            accounting[source][step] = {"in": entering, "made": 0, "kept": num_live[source], **drops}
    unnamed = {row["step"] for row in losses} - set(steps)
    if unnamed:
        raise SchemaError(
            f"verdicts name {sorted(unnamed)} in a pass of {list(steps)}; a step must drop rows under its own "
            "name: etl.step.drop(batch, self.label, …)"
        )
    return accounting
