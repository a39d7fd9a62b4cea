"""What every contestant of bench_dedup does alike: count its CPU-seconds, take its turns, hand back its result.

Contestants run as `python -m`, ours in the project's environment and the others in their own, so this file imports
nothing but numpy and pyarrow. A contestant's last line on stdout is a JSON object with its figures.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

WARM_UP_ROWS = 300
"""Documents that every contestant handles before anything is counted: they load kernels, models and modules."""


def cpu_s() -> float:
    """CPU-seconds, user and system, of this process and of the children that it has waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def peak_gb() -> float:
    """Largest resident set of this process since it started, or of one of its children if that was larger."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    # Not ru_maxrss of the process itself: at exec it takes over what the process that started it had.
    lines = Path("/proc/self/status").read_text().splitlines()
    own = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return max(own, children) * 1024 / 1e9


class Meter:
    """Counts CPU-seconds and seconds from one call of `lap` to the next."""

    def __init__(self) -> None:
        self._cpu, self._wall = cpu_s(), time.monotonic()

    def lap(self) -> tuple[float, float]:
        """CPU-seconds and seconds since the last lap."""
        before = self._cpu, self._wall
        self._cpu, self._wall = cpu_s(), time.monotonic()
        return self._cpu - before[0], self._wall - before[1]


def answer(**figures: Any) -> None:
    """Hand figures back."""
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def write_found(path: str, left: npt.NDArray[Any], right: npt.NDArray[Any], label: npt.NDArray[Any]) -> None:
    """Hand a result back: row numbers of the reported pairs, and a label of each row's cluster."""
    np.savez(path, left=left, right=right, label=label)


def take_turns(corpus: str, num_slices: int, ready: Callable[[pa.Array], Any], sign: Callable[[Any], Any]) -> None:
    """Sign the slices of a corpus whose numbers come on stdin, and answer each with its CPU-seconds and bytes.

    Args:
        corpus: Parquet with a column `text`.
        num_slices: into which its rows are cut.
        ready: brings a slice into the form that `sign` starts from, uncounted.
        sign: makes the signatures, [rows, permutations].
    """
    texts = pq.read_table(corpus, columns=["text"])["text"]
    size = len(texts) // num_slices
    for line in sys.stdin:
        piece = texts.slice(int(line) * size, size).combine_chunks()
        num_bytes = pc.sum(pc.binary_length(piece)).as_py()
        prepared = ready(piece)
        meter = Meter()
        signed = sign(prepared)
        cpu, _ = meter.lap()
        assert len(signed) == len(piece), (len(signed), len(piece))
        answer(cpu_s=cpu, bytes=num_bytes)
