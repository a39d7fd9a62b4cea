"""Toy indexes, parts and corpora for tests of the stream."""

import hashlib

import numpy as np
import pyarrow as pa

from etl.storage.build import Build, Chunk, Job
from etl.storage.location import Location
from etl.storage.manifest import Part
from tests.training.corpora import documents
from training.data.reader import CorpusReader, ReadConfig
from training.data.stream.cursor import ONE_CLASS, Classes, CursorPlan
from training.data.stream.decisions import DecisionLog
from training.data.stream.lanes import RankStream
from training.data.stream.plan import DocumentIndex, StreamConfig, initial_value
from training.data.stream.rank_lanes import RankLanes

SEED = 7


def part(path, row_groups, tokens=None):
    """A part with the row counts of its row groups."""
    rows, sha256 = sum(row_groups), hashlib.sha256(path.encode()).hexdigest()
    return Part(split=0, path=path, rows=rows, bytes=1, tokens=tokens, sha256=sha256, row_groups=tuple(row_groups))


def stream(**changes):
    values = {"corpus": "c", "pack_tokens": 100, "global_batch_packs": 2, "lanes": 2, "lookahead_docs": 4}
    return StreamConfig(**{**values, **changes})


def small_stream(**changes):
    """Of a corpus of tests.training.corpora: 8 lanes, and segments of few steps."""
    values = {"corpus": "c", "pack_tokens": 48, "global_batch_packs": 4, "lanes": 8, "segment_tokens": 600}
    return StreamConfig(**{**values, "lookahead_docs": 8, **changes})


def index_of(num_tokens, weight=None, clusters=None, cell=None, pairs=None, supervised=None):
    """Documents; `clusters` are (size, rank) of each, `pairs` (number of the pair from 1 or 0, side) of each."""
    size = len(num_tokens)
    clusters = np.array([(1, 0)] * size if clusters is None else clusters, np.int32).reshape(size, 2)
    pairs = np.array([(0, -1)] * size if pairs is None else pairs, np.int64).reshape(size, 2)
    return DocumentIndex(
        part=np.zeros(size, np.int32),
        row_group=np.zeros(size, np.int32),
        row=np.arange(size, dtype=np.int32),
        num_tokens=np.array(num_tokens, np.int64),
        weight=np.ones(size) if weight is None else np.array(weight, np.float64),
        id_hash=np.arange(size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15),
        cluster_size=clusters[:, 0],
        cluster_rank=clusters[:, 1],
        cell=np.zeros(size, np.int16) if cell is None else np.array(cell, np.int16),
        supervised=np.full(size, 2, np.int32) if supervised is None else np.array(supervised, np.int32),
        pair=pairs[:, 0],
        side=pairs[:, 1].astype(np.int8),
    )


def write_row_groups(folder, cells, rows_per_group):
    """A committed corpus with one part a cell, cut into row groups of this many rows.

    Args:
        folder: where to.
        cells: table of each cell of the training split, e.g. of "B1/C1".
        rows_per_group: of each row group but the last of a part.
    """
    tables = {f"split=train/skill_bucket={c[:2]}/ctx_bucket={c[3:]}": table for c, table in cells.items()}
    schema = next(iter(tables.values())).schema
    build = Build(Job(Location.of(folder), "layout", "corpus", schema, {"parts": sorted(tables)}))
    plan = build.plan(sorted(tables))
    writer = build.writer(plan)
    for split, name in enumerate(plan.splits):
        batches = tables[name].combine_chunks().to_batches(max_chunksize=rows_per_group)
        writer.write(split, (Chunk(batch, batch.num_rows, partition=name) for batch in batches))
    return build.commit(plan)


def opener(corpus, config, seed=SEED, log=None, workers=2):
    """Opens the stream of (rank, world), each with a reader of its own; the log is made anew where none is given."""

    def open_stream(rank, world):
        reader = CorpusReader(str(corpus), "train", ReadConfig(workers=workers, cache_gib=0.05))
        found = DecisionLog.preview(None, initial_value(config, seed, reader.parts)) if log is None else log
        return RankStream(plan_of(reader, config, seed, found, (rank, world)), [reader])

    return open_stream


def plan_of(reader, config, seed, log, ranks=(0, 1)):
    """The plan of a stream of one class over what the reader has, as its rank's."""
    own = RankLanes.read(reader, config.lanes, seed, ranks, reader.side_tables)
    one = Classes((frozenset(reader.side_tables),), ONE_CLASS.of_steps)
    return CursorPlan(own, config, seed, log, one)


def pair_table(num_pairs, seed):
    """Preference pairs: two documents each, with pair_id and side; the sides of a pair are far from each other."""
    table = documents(2 * num_pairs, seed)
    names = [f"pair-{seed}-{number}" for number in range(num_pairs)]
    columns = {
        "pair_id": pa.array([*names, *reversed(names)]),
        "side": pa.array(["chosen"] * num_pairs + ["rejected"] * num_pairs),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table
