"""Copies a table of the session's catalog into a dataset, which ingest then reads like files.

Its version (Delta, Iceberg), or the paths, sizes and times of its files, show whether a table has changed since. A
view, or a table of a source that has neither, is landed anew in every run; if that gives the same files again,
nothing after it runs again. An interrupted landing begins anew too, since Spark may cut the table differently the next
time. Costs one read of the columns that are needed, and their bytes once more in the output.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from etl.digests import canonical_json
from etl.engine import Table
from etl.engines.spark_types import arrow_schema
from etl.errors import DataError, SourceError
from etl.storage.build import Chunk, Job, SplitWriter
from etl.storage.location import Location
from etl.storage.progress import Counts

_VERSIONS = {
    "delta": ("DESCRIBE HISTORY {} LIMIT 1", "version"),
    "iceberg": ("SELECT snapshot_id FROM {}.history ORDER BY made_current_at DESC LIMIT 1", "snapshot_id"),
}
"""For a format with versions, the query for the current version and the column that holds it."""
_FILES = frozenset({"parquet", "orc", "json", "csv", "avro", "text", "hive"})
"""Providers whose tables change only with their files."""


@dataclass(frozen=True)
class OpenTable:
    """The columns of a table that are read, as a DataFrame."""

    frame: Any
    state: dict[str, Any]
    """A value that changes when the table's rows do; empty if there is no such value."""

    def job(self, table: Table, folder: Location) -> Job:
        """The job whose dataset it lands as."""
        semantic = {"table": table.name, "columns": self.frame.schema.simpleString(), "state": self.state}
        return Job(folder, f"tables/{table.source}", "TABLE", self.schema, semantic)

    @property
    def tells_changes(self) -> bool:
        """False when only a look at every row can tell whether one has changed."""
        return bool(self.state)

    @property
    def schema(self) -> pa.Schema:
        """Arrow types of the columns."""
        return arrow_schema(self.frame.schema, SourceError)

    @property
    def num_partitions(self) -> int:
        return int(self.frame._jdf.queryExecution().toRdd().getNumPartitions())


def open_table(session: Any, table: Table) -> OpenTable:
    """Look up a table; names are compared without case, as Hive stores them in lower case.

    Raises:
        SourceError: there is no such table, it has none of the columns, or Spark cannot hand one of them to Python.
    """
    from pyspark.errors import AnalysisException, ParseException

    try:
        whole = session.table(table.name)
    except (AnalysisException, ParseException) as error:
        reason = str(error).splitlines()[0]
        raise SourceError(f"source '{table.source}': there is no table {table.name}: {reason}") from error
    there = {name.lower(): name for name in whole.columns}
    columns = [whole[f"`{there[name.lower()]}`"].alias(name) for name in table.columns if name.lower() in there]
    if not columns:
        raise SourceError(
            f"source '{table.source}': {table.name} has the columns {whole.columns}, but none of {list(table.columns)}"
        )
    frame = whole.select(*columns)
    arrow_schema(frame.schema, SourceError, f"source '{table.source}': {table.name}: ")
    return OpenTable(frame, _state(session, table, whole))


def _state(session: Any, table: Table, frame: Any) -> dict[str, Any]:
    """A value that changes when the rows of a table do; empty for a view, and for sources that keep no such record."""
    details = {row["col_name"]: row["data_type"] for row in session.sql(f"DESCRIBE EXTENDED {table.name}").collect()}
    provider = details.get("Provider", "").lower()
    if provider in _VERSIONS:
        query, column = _VERSIONS[provider]
        return {
            "provider": provider,
            "version": [row[column] for row in session.sql(query.format(table.name)).collect()],
        }
    if provider in _FILES:
        return {"provider": provider, "files": _digest(list(_stat(session, frame.inputFiles())))}
    return {}


def _stat(session: Any, files: list[str]) -> Iterator[tuple[str, int, int]]:
    """(path, bytes, time of change in ms) of files; costs one listing for each folder that they are in."""
    context = session.sparkContext
    hadoop = context._jvm.org.apache.hadoop.fs
    configuration = context._jsc.hadoopConfiguration()
    wanted = sorted(files)
    for folder, below in itertools.groupby(wanted, key=lambda url: url.rpartition("/")[0]):
        names = set(below)
        path = hadoop.Path(context._jvm.java.net.URI(f"{folder}/"))
        for status in path.getFileSystem(configuration).listStatus(path):
            url = status.getPath().toUri().toString()
            if url in names:
                yield url, status.getLen(), status.getModificationTime()


def _digest(files: list[tuple[str, int, int]]) -> str:
    return hashlib.sha256(canonical_json(sorted(map(list, files))).encode()).hexdigest()[:32]


def land_partition(
    writer: SplitWriter, schema: pa.Schema, num_partitions: int
) -> Callable[[Iterator[pa.RecordBatch]], Counts]:
    """A function that writes the partition it is called in, on a worker.

    Raises (when called):
        DataError: the table has more partitions than were planned.
    """

    def land(batches: Iterator[pa.RecordBatch]) -> Counts:
        from pyspark import TaskContext

        number = TaskContext().partitionId()
        if number >= num_partitions:
            raise DataError(f"Spark split {writer.folder} into more than {num_partitions} partitions; run again")
        with writer.measured(number):
            return Counts.of(writer.write(number, (Chunk(batch.cast(schema), batch.num_rows) for batch in batches)))

    return land
