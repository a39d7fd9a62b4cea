"""Committed datasets of given rows, for tests of what reads them."""

import pyarrow as pa

from etl.storage.build import Build, Chunk, Job
from etl.storage.dataset import Dataset
from etl.storage.location import Location


def write_dataset(url: str | Location, stage: str, table: str, tables: dict[str, pa.Table]) -> Dataset:
    """Commit some in-memory tables, one part in each named partition folder ("" for none)."""
    schema = next(iter(tables.values())).schema
    build = Build(Job(Location.of(url), stage, table, schema, {"parts": sorted(tables)}))
    plan = build.plan(sorted(tables))
    writer = build.writer(plan)
    for split, partition in enumerate(plan.splits):
        batches = tables[partition].combine_chunks().to_batches()
        writer.write(split, (Chunk(batch, batch.num_rows, partition=partition) for batch in batches))
    return build.commit(plan)
