"""Writes one part: spools a Parquet file on local disk, hashes it, and uploads it once, named by its content.

One `write` is one row group, so an aligned table repeats its parent's boundaries by writing batch for batch. A file is
whole before anything shows in the dataset's folder. Cost: one local write and one read of the part's compressed bytes.

The name of the build is in the file, so two builds never share a part, even where they write the same rows: an attempt
of a build that was given up removes its own parts and no other's.

An opaque file is a part as it is; its name and its content digest come from its SHA-256.
"""

import contextlib
import hashlib
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from etl.digests import file_sha256
from etl.hashing import ContentDigest
from etl.schema import SCHEMA_VERSION, Digested, encoding_of
from etl.storage.location import Location
from etl.storage.manifest import TABLE_SUFFIX, Part


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
        self._file = Path(tempfile.gettempdir()) / f"stillhouse-part-{uuid.uuid4().hex}.parquet"
        self._spool = Location.of(self._file)
        # How a column is stored is no part of what readers see; what the content digest leaves out is told by name.
        told = {"stillhouse.table": table, "stillhouse.schema": str(SCHEMA_VERSION), "stillhouse.build": build}
        self._schema = pa.schema([field.remove_metadata() for field in schema], told | Digested.of(schema).to_store())
        encodings = {path: encoding_of(field) for field in schema for path in _leaves(field)}
        self._writer = pq.ParquetWriter(
            self._file,
            self._schema,
            compression={path: "none" if encoding == "plain" else "zstd" for path, encoding in encodings.items()},
            use_dictionary=[path for path, encoding in encodings.items() if encoding == "dictionary"],
            use_byte_stream_split=[path for path, encoding in encodings.items() if encoding == "byte_stream_split"]
            or False,
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
        try:
            with contextlib.suppress(OSError) if kind else self._explained():
                self._writer.close()
        finally:
            self._file.unlink(missing_ok=True)

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return self._spool.explained("write")

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch as one row group.

        Raises:
            DataError: no space in the folder for temporary files.
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
        name = f"part-{self._split:05d}-{digest[:16]}{TABLE_SUFFIX}"
        path = f"{self._partition}/{name}" if self._partition else name
        num_bytes = self._file.stat().st_size
        (self._folder / path).take(self._file)
        return Part(
            split=self._split,
            path=path,
            rows=sum(self._row_groups),
            bytes=num_bytes,
            tokens=self._tokens,
            sha256=digest,
            row_groups=tuple(self._row_groups),
        )


def upload_files(folder: Location, split: int, stem: str, files: Mapping[str, Path]) -> tuple[Part, ...]:
    """Upload finished local files as the opaque parts of a split, under one name that their content gives.

    Equal files have one name in every build, so only one driver at a time may write a dataset of them.

    Args:
        folder: of the dataset.
        split: that they are the parts of.
        stem: how their names begin.
        files: by the suffix of its name, such as `.bin` and `.idx` for two that belong together.

    Raises:
        DataError: no room for them, or they may not be written.
    """
    digests = {suffix: file_sha256(path) for suffix, path in files.items()}
    whole, *more = digests.values()
    if more:
        whole = hashlib.sha256("".join(digests.values()).encode()).hexdigest()
    parts = []
    for suffix, file in files.items():
        assert suffix != TABLE_SUFFIX, "a table is written by PartWriter"
        path = f"{stem}-{whole[:16]}{suffix}"
        (folder / path).upload(file)
        size = file.stat().st_size
        parts.append(Part(split=split, path=path, rows=0, bytes=size, sha256=digests[suffix], row_groups=()))
    return tuple(parts)


def file_content(parts: Iterable[Part]) -> str:
    """The content digest of opaque files."""
    return ContentDigest.total(part.sha256[:32] for part in parts)
