"""Writing one part: spool a Parquet file on local disk, hash it, upload it once under a name that its content gives.

One `write` is one row group, so an aligned table repeats its parent's boundaries by writing batch for batch. A file is
whole before anything shows in the dataset's folder. Cost: one local write and one read of the part's compressed bytes.

The name of the build is in the file, so two builds never share a part, even where they write the same rows: an attempt
of a build that was given up removes its own parts and no other's.
"""

import contextlib
import tempfile
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from etl.digests import file_sha256
from etl.schema import SCHEMA_VERSION
from etl.storage.location import Location
from etl.storage.manifest import Part

_BYTE_STREAM_SPLIT = {"input_ids.list.element"}
"""Token ids: 1.31 bytes a token against 1.67 with a dictionary, and faster to read."""
_RANDOM = {"shingles"}
"""Hashes one after the other, in which there is nothing to pack."""


def _leaves(field: pa.Field, prefix: str = "") -> list[str]:
    """Parquet column paths below an Arrow field."""
    name = prefix + field.name
    if pa.types.is_struct(field.type):
        return [path for child in field.type.fields for path in _leaves(child, f"{name}.")]
    if pa.types.is_list(field.type):
        return _leaves(field.type.value_field.with_name("element"), f"{name}.list.")
    return [name]


class PartWriter:
    """Context manager around one part of one split; `finish` uploads and describes it."""

    def __init__(
        self, folder: Location, split: int, schema: pa.Schema, table: str, partition: str = "", build: str = ""
    ) -> None:
        self._folder = folder
        self._split = split
        self._partition = partition
        self._spool = tempfile.TemporaryDirectory(prefix="stillhouse-part-")
        self._file = Path(self._spool.name) / "part.parquet"
        self._schema = schema.with_metadata(
            {"stillhouse.table": table, "stillhouse.schema": str(SCHEMA_VERSION), "stillhouse.build": build}
        )
        leaves = [path for field in schema for path in _leaves(field)]
        split_encoded = [path for path in leaves if path in _BYTE_STREAM_SPLIT]
        self._writer = pq.ParquetWriter(
            self._file,
            self._schema,
            compression={path: "none" if path in _RANDOM else "zstd" for path in leaves},
            use_dictionary=[path for path in leaves if path not in _BYTE_STREAM_SPLIT | _RANDOM],
            use_byte_stream_split=split_encoded or False,
            write_page_checksum=True,
        )
        self._row_groups: list[int] = []
        self._tokens: int | None = 0 if "n_tokens" in schema.names else None

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After a failure, such as a full disk, closing may fail for the same reason.
        with contextlib.suppress(OSError) if kind else self._explained():
            self._writer.close()
        self._spool.cleanup()

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return Location.of(self._file).explained("write")

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch as one row group.

        Raises:
            DataError: no room in the folder for temporary files.
        """
        table = pa.Table.from_batches([batch]).cast(self._schema)
        with self._explained():
            self._writer.write_table(table, row_group_size=max(1, batch.num_rows))
        self._row_groups.append(batch.num_rows)
        if self._tokens is not None:
            self._tokens += pc.sum(batch.column("n_tokens")).as_py() or 0

    def finish(self) -> Part:
        """Upload the file as part-<split>-<16 hex of its SHA-256>.parquet.

        Raises:
            DataError: no room for it, or it may not be written.
        """
        with self._explained():
            self._writer.close()
        digest = file_sha256(self._file)
        name = f"part-{self._split:05d}-{digest[:16]}.parquet"
        path = f"{self._partition}/{name}" if self._partition else name
        (self._folder / path).upload(self._file)
        return Part(
            split=self._split,
            path=path,
            rows=sum(self._row_groups),
            bytes=self._file.stat().st_size,
            tokens=self._tokens,
            sha256=digest,
            row_groups=tuple(self._row_groups),
        )
