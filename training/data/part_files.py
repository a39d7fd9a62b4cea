"""The parts of a corpus as open Parquet files, one a thread, with their footers kept."""

import threading
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from etl.storage.dataset import Dataset
from etl.storage.manifest import Part
from training.data.footers import in_footer, read_columns

FOOTER_BYTES = 16 << 20
"""Stored bytes of Parquet footers that are kept in memory, where they take several times as much."""


class PartFiles:
    """The parts, each thread with the one open that it reads; footers are read once while they fit FOOTER_BYTES.

    A part's size is compared with the manifest's whenever it is opened.
    """

    def __init__(self, dataset: Dataset, parts: Sequence[Part]) -> None:
        self._dataset = dataset
        self._parts = parts
        self._open = threading.local()
        self._opening = [threading.Lock() for _ in parts]
        """So that threads which come to a part at once read its footer once."""
        self._footers: dict[int, pq.FileMetaData] = {}
        self._footer_bytes = 0

    def read(self, part: int, group: int, columns: Sequence[str]) -> pa.Table:
        """Columns of a row group, each in at most one chunk.

        Raises:
            DataError: the part is missing, of another size than the manifest's, or cannot be decoded.
        """
        return read_columns(self._file(part), self._dataset, self._parts[part], group, columns)

    def largest_id(self, part: int, group: int) -> int:
        """The largest token id of a row group, as its footer says; -1 where there is none."""
        found = in_footer(self._file(part).metadata, group, "input_ids")
        return -1 if found is None else int(found)

    def _file(self, part: int) -> pq.ParquetFile:
        """A part, opened by this thread."""
        if getattr(self._open, "part", None) != part:
            self._open.file = self._opened(part)
            self._open.part = part
        return self._open.file

    def _opened(self, part: int) -> pq.ParquetFile:
        location = self._dataset.part_location(self._parts[part])
        self._dataset.check_part(self._parts[part])
        if part in self._footers:
            return location.open_parquet(footer=self._footers[part])
        with self._opening[part]:
            file = location.open_parquet(footer=self._footers.get(part))
            size = file.metadata.serialized_size
            if part not in self._footers and self._footer_bytes + size <= FOOTER_BYTES:
                self._footers[part] = file.metadata
                self._footer_bytes += size
        return file
