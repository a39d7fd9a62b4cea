"""What forks share: a collection in one leaves it untouched."""

import subprocess
import sys

CODE = """
import gc
from etl.engines.forks import freeze_for_forks
from etl.hashing import hash128
import pyarrow as pa
freeze_for_forks()
before = gc.get_freeze_count()
hash128([pa.array(["another row"])])
print(before > 50_000, len(gc.get_objects()) < 10_000)
"""


def test_what_a_first_kernel_loads_is_frozen():
    # In a process of its own, since what is frozen remains so.
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.stdout == "True True\n", done.stderr
