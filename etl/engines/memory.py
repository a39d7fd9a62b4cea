"""How a worker's process keeps memory that it has freed, so that the next batch need not ask the kernel for it.

Batches come and go by the megabyte. Arrow's own pool and the C library hand freed pages back at once, and every page that
is touched again costs a fault: a third of the CPU-seconds of near dedup (measured on Linux with glibc: 5.2 of 13.3
seconds in the kernel, 1.0 of 9.4 with what is done here; peak memory the same). One heap for all threads, Arrow on that
heap, and up to KEPT_BYTES of it kept when they are free.
"""

import ctypes
import functools
from typing import Final

import pyarrow as pa

KEPT_BYTES: Final = 256 << 20
_MAPPED_BYTES: Final = 32 << 20
"""From this size on an array is mapped by itself; the C library takes no higher value."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of mallopt(3)."""


@functools.cache
def keep_freed_memory() -> None:
    """Set up this process, once; nothing where the C library has no mallopt."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for parameter, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, _MAPPED_BYTES), (_TRIM_THRESHOLD, KEPT_BYTES)):
        mallopt(parameter, value)
    pa.set_memory_pool(pa.system_memory_pool())
