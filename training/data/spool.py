"""Arrays cached on this rank's local disk: appended when they are first read, memory-mapped afterwards.

Each segment of the stream picks documents from all row groups of its lanes, so no order of eviction helps: what is
kept is kept for good, and what no longer fits is read from the store again. The file has no name: nothing is left
behind after a kill, and two runs on one machine cannot meet. When the disk fills up, the spool stops growing, says so
once, and training goes on. Mapped pages are clean and file-backed: the system takes them back when it needs memory.
"""

import logging
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from etl.errors import ConfigError

Arrays = dict[str, npt.NDArray[Any]]
_ALIGNED_BYTES = 64
_log = logging.getLogger(__name__)


class Spool:
    """Groups of named arrays in one nameless file; all methods may be called from several threads.

    Args:
        folder: of a local disk; None for the system's folder of temporary files.
        max_bytes: the file never grows longer.

    Raises:
        ConfigError: no file can be made in the folder.
    """

    def __init__(self, folder: str | None, max_bytes: int) -> None:
        self._folder = folder or tempfile.gettempdir()
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                self._descriptor = os.dup(file.fileno())
        except OSError as error:
            raise ConfigError(
                f"read.cache_folder: cannot create a file in {self._folder} ({error.strerror}); give a folder on a "
                "local disk, or set read.cache_gib=0"
            ) from error
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self._room = max_bytes
        self._end = 0
        self._is_full = False
        self._places: dict[Any, tuple[int, list[tuple[str, str, int, int]]]] = {}
        """Key → where its extent begins, and name, dtype, items and offset in the extent of each array."""
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        """The kernel lets one thread write a file at a time; others that want to would burn CPU while they wait."""

    @property
    def num_bytes(self) -> int:
        """Length of the file."""
        return self._end

    def get(self, key: Any) -> Arrays | None:
        """The arrays (read-only, flat) that were put under a key; None where there are none."""
        place = self._places.get(key)
        if place is None:
            return None
        begin, layout = place
        num_bytes = _extent(layout)
        mapped = mmap.mmap(self._descriptor, num_bytes, offset=begin, access=mmap.ACCESS_READ)
        return {name: np.frombuffer(mapped, kind, count, at) for name, kind, count, at in layout}

    def put(self, key: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Append flat arrays under a new key; nothing happens when there is no room for them."""
        layout = []
        at = 0
        for name, array in arrays.items():
            layout.append((name, array.dtype.str, array.size, at))
            at += -(-array.nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES
        num_bytes = -(-_extent(layout) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        with self._lock:
            if num_bytes > self._room:
                return
            begin = self._end
            self._end += num_bytes
            self._room -= num_bytes
            os.ftruncate(self._descriptor, self._end)
        try:
            with self._writing:
                for (_, _, _, at), array in zip(layout, arrays.values(), strict=True):
                    _write(self._descriptor, np.ascontiguousarray(array), begin + at)
        except OSError as error:
            self._stop(error)
            return
        self._places[key] = (begin, layout)

    def _stop(self, error: OSError) -> None:
        with self._lock:
            is_first, self._is_full, self._room = not self._is_full, True, 0
        if is_first:
            _log.warning(
                "read.cache_folder: %s is full (%s); %.1f GiB of decoded rows are kept there, the others are "
                "read from the store again in every segment", self._folder, error.strerror, self._end / 2**30,
            )  # fmt: skip

    def close(self) -> None:
        """Give the room back; arrays that were given out stay readable."""
        self._close()


def _extent(layout: list[tuple[str, str, int, int]]) -> int:
    """Bytes from the first array to the end of the last; at least one, since nothing can not be mapped."""
    return max(1, *(at + count * np.dtype(kind).itemsize for _, kind, count, at in layout))


def _write(descriptor: int, array: npt.NDArray[Any], offset: int) -> None:
    data = array.view(np.uint8).data
    while data:
        done = os.pwrite(descriptor, data, offset)
        data, offset = data[done:], offset + done
