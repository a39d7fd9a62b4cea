"""Sorting more rows than memory should hold: sorted runs on local disk, merged a stretch of keys at a time.

A run of about RUN_BYTES is sorted and written as Arrow record batches of about 1 MB. Every run is sorted by the same
64-bit key, so the rows up to some key are the next ones of each run. In memory: one run while it is made, then one
batch of each run and the rows that were asked for; the keys of all rows, 12 bytes each, are held by the caller. Local
disk: the rows' Arrow bytes once.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa

U64 = npt.NDArray[np.uint64]

RUN_BYTES = 32 << 20
_BATCH_BYTES = 1 << 20
_KEY = "_key"


class _Run:
    """The rows of one file from its start on."""

    def __init__(self, path: Path) -> None:
        self._reader = pa.ipc.open_stream(pa.OSFile(str(path)))
        self._held: list[pa.RecordBatch] = []

    def until(self, last: int) -> Iterator[pa.RecordBatch]:
        """The next rows whose key is at most `last`."""
        for batch in self._batches():
            keys = batch.column(_KEY).to_numpy()
            cut = int(np.searchsorted(keys, np.uint64(last), "right"))
            yield batch.slice(0, cut)
            if cut < len(keys):
                self._held = [batch.slice(cut)]
                return

    def _batches(self) -> Iterator[pa.RecordBatch]:
        held, self._held = self._held, []
        yield from held
        yield from self._reader

    def close(self) -> None:
        self._reader.close()


class SpilledRows:
    """Context manager: rows are added in any order, then taken in ascending order of their keys.

    Args:
        schema: of the rows.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._stored = schema.append(pa.field(_KEY, pa.uint64()))
        self._folder = tempfile.TemporaryDirectory(prefix="stillhouse-sort-")
        self._held: list[pa.RecordBatch] = []
        self._num_bytes = 0
        self._paths: list[Path] = []
        self._runs: list[_Run] = []

    def __enter__(self) -> "SpilledRows":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for run in self._runs:
            run.close()
        self._folder.cleanup()

    def add(self, batch: pa.RecordBatch, keys: U64) -> None:
        """Take rows with their keys, uint64 [rows]; only before the first `until`."""
        assert not self._runs, "rows were taken already"
        self._held.append(batch.append_column(_KEY, pa.array(keys)))
        self._num_bytes += batch.nbytes
        if self._num_bytes >= RUN_BYTES:
            self._spill()

    def until(self, last: int) -> pa.Table:
        """The next rows, those whose key is at most `last`, in no particular order among themselves."""
        if self._held:
            self._spill()
        if not self._runs:
            self._runs = [_Run(path) for path in self._paths]
        pieces: Iterable[pa.RecordBatch] = (batch for run in self._runs for batch in run.until(last))
        return pa.Table.from_batches(pieces, self._stored).drop_columns([_KEY]).combine_chunks()

    def _spill(self) -> None:
        table = pa.Table.from_batches(self._held, self._stored)
        self._held, self._num_bytes = [], 0
        table = table.take(pa.array(np.argsort(table[_KEY].to_numpy(), kind="stable"))).combine_chunks()
        path = Path(self._folder.name) / f"{len(self._paths)}.arrow"
        rows = max(1, len(table) * _BATCH_BYTES // max(1, table.nbytes))
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, self._stored) as writer:
            writer.write_table(table, max_chunksize=rows)
        self._paths.append(path)
