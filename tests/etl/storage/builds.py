"""Toy datasets for the tests of storage: jobs, chunks, an engine that runs in line, readers that know no manifest."""

from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.dataset as pds

from etl.engine import Engine
from etl.storage.build import Build, Chunk, Job, SplitWriter
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from etl.storage.manifest import Plan

NUMBERS = pa.schema([pa.field("n", pa.int64(), nullable=False), pa.field("word", pa.string())])


def numbers(*values: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array(values, pa.int64()), pa.array([f"w{n}" for n in values])], schema=NUMBERS)


def counted(batch: pa.RecordBatch, partition: str = "", source: str = "toy") -> Chunk:
    """A chunk whose account closes: one row of its input was lost."""
    rows = batch.num_rows
    return Chunk(batch, rows + 1, {source: {"toy": {"in": rows + 1, "made": 0, "kept": rows, "odd": 1}}}, {}, partition)


def job(folder: Location, **changes) -> Job:
    """A job of stage `toy`; `semantic`, `inputs` and `base` can be given."""
    return Job(folder, "toy", "NUMBERS", NUMBERS, **({"semantic": {"version": 1}} | changes))


def chunks_of(split):
    """What a split of [[numbers of a row group], …] writes."""
    return [counted(numbers(*group)) for group in split]


class InLine(Engine):
    """Runs splits one after the other, then `after` (say, a straggler); keeps which splits it was asked for."""

    def __init__(self, after=lambda: None):
        super().__init__()
        self.asked = []
        self.after = after

    def run_splits(self, work, items, task):
        self.asked.append([number for number, _ in items])
        for number, split in items:
            task(number, split)
        self.after()

    def run_buckets(self, work, buckets, exchange, reduce):
        raise NotImplementedError

    def close(self):
        pass


def begin(what: Job, splits) -> tuple[Build, Plan, SplitWriter]:
    """A build that has its plan."""
    build = Build(what)
    plan = build.plan(splits)
    return build, plan, build.writer(plan)


def commit(folder: Location, schema: pa.Schema, splits: list[list[pa.RecordBatch]], stage: str = "toy") -> Dataset:
    """A dataset with the batches of each split as its row groups."""
    build, plan, writer = begin(Job(folder, stage, stage.upper(), schema, {"stage": stage}), range(len(splits)))
    for split, batches in enumerate(splits):
        writer.write(split, [Chunk(batch, batch.num_rows) for batch in batches])
    return build.commit(plan)


@dataclass(frozen=True)
class Plain:
    """What readers that know nothing of a manifest see in a local folder: sorted values of the column `n`."""

    arrow: list[int]
    duck: list[int]

    @classmethod
    def read(cls, folder: Location) -> "Plain":
        rows = pds.dataset(folder.path, format="parquet", partitioning="hive").to_table()
        query = "SELECT n FROM read_parquet(?, hive_partitioning = true) ORDER BY n"
        with duckdb.connect() as connection:
            duck = connection.execute(query, [f"{folder.path}/**/*.parquet"]).fetchall()
        return cls(sorted(rows["n"].to_pylist()), [n for (n,) in duck])


def values(dataset: Dataset) -> list[int]:
    """Sorted values of the column `n` that the manifest names."""
    return sorted(n for batch in dataset.read(["n"]) for n in batch.column("n").to_pylist())


SPLITS = [[[1, 2], [3]], [], [[4], [5, 6, 7]]]


def build(folder: Location, engine: InLine | None = None, splits=SPLITS, fn=chunks_of, **changes) -> Dataset:
    """A dataset that a map has committed; `changes` are of its job."""
    engine = engine or InLine()
    engine.map(job(folder, **changes), splits, fn)
    engine.settle()
    return Dataset.open(folder)
