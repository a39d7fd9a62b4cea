"""Connected components of pairs of rows, and candidate pairs cut into blocks: one task, or rounds of shuffles.

Up to `run.max_component_edges` pairs, one task holds the rows that are in pairs, never the pairs. Above it, star
contraction (etl.stages.dedup.stars) labels the rows and shuffles cut the pairs (etl.stages.dedup.blocks); a reducer
holds one batch. Both give the same labels, and pairs that differ only in their block. The path is part of a dataset's
fingerprint, so a killed run is never resumed on the other path.

The datasets between pairs and labels, or between candidates and edges, hold row keys, so their digests do not identify
their content. So everything here is fingerprinted by the pairs or candidates from which it is made.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from etl.dedup.components import Components
from etl.engine import Exchange
from etl.laws import Growth, PairRows, SameAs, With
from etl.rows import Rows
from etl.stages.context import Context
from etl.stages.dedup.blocks import (
    AT_END,
    AT_END_BYTES,
    AT_END_ORDER,
    CHUNK,
    EDGE,
    EDGE_VERSION,
    END,
    FIRST_END_COLUMNS,
    KEY_COLUMNS,
    KEYED,
    NODE,
    RANKED,
    RANKED_BYTES,
    CutCandidates,
    CutComponents,
    EmitNodes,
    chunk_lines,
    component_lines,
    first_end_lines,
    join_first_chunk,
    join_keys,
    join_second_chunk,
    key_lines,
    second_end_lines,
)
from etl.stages.dedup.stars import (
    ARC,
    ARC_BYTES,
    ARC_ORDER,
    LABEL,
    LABEL_VERSION,
    EmitLabels,
    contract,
    first_labels,
)
from etl.stages.keyed import OUT_ROWS, EmitInputs, Input, to_batch, to_numpy
from etl.storage.build import Chunk, Job
from etl.storage.dataset import Dataset, DatasetLike, DatasetRef, read_part
from etl.storage.manifest import Part


def fits_one_task(context: Context, pairs: Dataset) -> bool:
    """Whether one task holds the graph of some pairs."""
    return pairs.manifest.rows_out <= context.cutting.max_component_edges


@dataclass(frozen=True)
class LabelRows:
    """The component of every row in a pair, in one task."""

    pairs: DatasetRef
    ends: tuple[str, str]

    def __call__(self, split: int) -> Iterator[Chunk]:
        parts = self._parts()
        num_pairs = sum(part.rows for part in parts)
        graph = Components(2 * num_pairs)
        for part in parts:
            for batch in read_part(self.pairs.part_location(part), list(self.ends)):
                graph.join(*(graph.number(column) for column in to_numpy(batch, self.ends)))
        for labels in graph.labels(OUT_ROWS):
            yield Chunk(to_batch(labels, LABEL))
        yield Chunk(None, num_pairs)

    def _parts(self) -> tuple[Part, ...]:
        """The parts of the pairs; those of a single split from its receipt, which exists before the commit."""
        return self.pairs.parts_of(0) if self.pairs.num_splits == 1 else self.pairs.open().manifest.parts


def label_components(
    context: Context, rows: Rows, name: str, pairs: DatasetLike, ends: tuple[str, str], most: Dataset | None = None
) -> DatasetLike:
    """Write DIR/<name>, table LABEL: the component of every row that is in a pair, sorted by row within a part.

    There is one split for all of them, or, above the budget, one for each split of `rows`, with the labels of its rows.

    Args:
        context: the run.
        rows: whose row keys the pairs hold.
        name: of the dataset.
        pairs: the edges; a pair may come several times.
        ends: its two columns of row keys, int64, >= 0.
        most: pairs that include all the others; if one task holds their graph, `pairs` need not be committed.
    """
    if fits_one_task(context, most or pairs.result()) or fits_one_task(context, pairs.result()):
        grows = Growth.all_by(PairRows(pairs.ref.stage), With.NOTHING)
        job = _label_job(context, rows, name, pairs, {"path": "one_task", "ends": list(ends)}, grows)
        return context.map(job, [0], LabelRows(pairs.ref, ends))
    pairs = pairs.result()
    ties = contract(context, rows, name, pairs, ends)
    buckets = len(rows.splits)
    exchange = Exchange(tuple(range(ties.ref.num_splits)), EmitLabels(ties.ref, buckets), ARC, ARC_ORDER, buckets)
    grows = Growth.all_by(PairRows(pairs.ref.stage))
    job = _label_job(context, rows, name, pairs, {"path": "stars", "ends": list(ends)}, grows)
    return context.shuffle(job, exchange, first_labels)


def _label_job(
    context: Context, rows: Rows, name: str, pairs: DatasetLike, semantic: dict[str, Any], grows: Growth
) -> Job:
    return context.job(name, "LABEL", LABEL, semantic, (pairs,), rows, version=LABEL_VERSION, grows=grows)


def cut_blocks(context: Context, rows: Rows, candidates: Dataset, block_bytes: int) -> DatasetLike:
    """Write DIR/edges, table EDGE: the block that verifies each candidate pair.

    Each pair comes once. When one task cuts, pairs of a component whose shingle sets fit `block_bytes` share a block.
    By shuffles such a component may be cut in two chunks, so its pairs are in up to three blocks.

    Args:
        context: the run.
        rows: whose row keys the pairs hold.
        candidates: row keys `a`, `b` and stream keys `a_key`, `b_key` of pairs, which may come several times.
        block_bytes: largest number of bytes of the sets of a block, plus two sets.
    """
    semantic = {"block_bytes": block_bytes}
    as_pairs = SameAs(candidates.ref.stage)
    if fits_one_task(context, candidates):
        grows = Growth.all_by(as_pairs, With.NOTHING)
        job = _cut_job(context, rows, "edges", "EDGE", EDGE, {**semantic, "path": "one_task"}, candidates, grows)
        return context.map(job, [0], CutCandidates(candidates.ref, block_bytes))
    labels = label_components(context, rows, "candidate_components", candidates, ("a", "b"))
    chunks = _cut_chunks(context, rows, labels, candidates, block_bytes)
    num_rows = chunks.manifest.rows_out + candidates.manifest.rows_out
    tasks = context.buckets(num_rows * AT_END_BYTES, as_pairs)
    buckets, grows = tasks.count(), Growth.all_by(as_pairs, tasks)

    chunk_input = Input(chunks.ref, CHUNK.names, chunk_lines)
    pairs = Input(candidates.ref, FIRST_END_COLUMNS, first_end_lines)
    emit = EmitInputs({"chunks": chunk_input, "pairs": pairs}, buckets)
    exchange = Exchange(emit.splits, emit, AT_END, AT_END_ORDER, buckets)
    job = _cut_job(context, rows, "rounds/edges-ends", "END", END, semantic, candidates, grows)
    ends = context.shuffle(job, exchange, join_first_chunk)

    pairs = Input(ends.ref, END.names, second_end_lines)
    emit = EmitInputs({"chunks": chunk_input, "pairs": pairs}, buckets)
    exchange = Exchange(emit.splits, emit, AT_END, AT_END_ORDER, buckets)
    job = _cut_job(context, rows, "edges", "EDGE", EDGE, {**semantic, "path": "stars"}, candidates, grows)
    return context.shuffle(job, exchange, join_second_chunk)


def _cut_job(
    context: Context,
    rows: Rows,
    name: str,
    table: str,
    schema: pa.Schema,
    semantic: dict[str, Any],
    candidates: Dataset,
    grows: Growth,
) -> Job:
    return context.job(name, table, schema, semantic, (candidates,), rows, version=EDGE_VERSION, grows=grows)


def _cut_chunks(context: Context, rows: Rows, labels: DatasetLike, candidates: Dataset, block_bytes: int) -> Dataset:
    """Write DIR/rounds/edges-nodes and DIR/rounds/edges-chunks."""
    of_pairs, as_pairs = PairRows(candidates.ref.stage), SameAs(candidates.ref.stage)
    num_rows = labels.result().manifest.rows_out + 2 * candidates.manifest.rows_out
    tasks = context.buckets(num_rows * ARC_BYTES, as_pairs)
    buckets = tasks.count()
    pairs = Input(candidates.ref, KEY_COLUMNS, key_lines)
    emit = EmitInputs({"labels": Input(labels.ref, LABEL.names, component_lines), "pairs": pairs}, buckets)
    keyed = Exchange(emit.splits, emit, KEYED, ("row", "is_key", "value"), buckets)
    grows = Growth(of_pairs, crosses=as_pairs, work=as_pairs, tasks=tasks)
    job = _cut_job(context, rows, "rounds/edges-nodes", "NODE", NODE, {}, candidates, grows)
    nodes = context.shuffle(job, keyed, join_keys)

    tasks = context.buckets(nodes.manifest.rows_out * RANKED_BYTES, of_pairs)
    buckets, grows = tasks.count(), Growth.all_by(of_pairs, tasks)
    ranked = Exchange(
        tuple(range(nodes.ref.num_splits)), EmitNodes(nodes.ref, buckets), RANKED, ("component", "key", "row"), buckets
    )
    semantic = {"block_bytes": block_bytes}
    job = _cut_job(context, rows, "rounds/edges-chunks", "CHUNK", CHUNK, semantic, candidates, grows)
    return context.shuffle(job, ranked, CutComponents(block_bytes))
