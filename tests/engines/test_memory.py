"""Memory that a process keeps after it was freed: seen by the page faults of a loop that allocates and frees."""

import subprocess
import sys

import pytest

_LOOP = """
import resource, sys
import numpy as np, pyarrow as pa
from etl.engines.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
    keep_freed_memory()
values = pa.array(np.arange(1 << 20))
places = pa.array(np.arange(1 << 20)[::-1].copy())
for _ in range(3):
    values.take(places)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    for _ in range(3):
        np.ones(1 << 20)
    values.take(places)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", _LOOP, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_batches_that_come_and_go_touch_the_same_pages() -> None:
    """Each round allocates 32 MB, 8,192 pages."""
    assert faults("keep") < 8192
    assert faults("leave") > 3 * 8192
