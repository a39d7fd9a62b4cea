"""A profile of some steps by torch.profiler: a trace for Perfetto or chrome://tracing, and a table of top operators.

The first step is skipped (it compiles and allocates), the second warms up the profiler, later ones are recorded.
A recorded step is slower, and a trace takes some MB a step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

SKIPPED_STEPS = 2
"""Steps before the first that is recorded."""


@contextmanager
def profiled(folder: Path, num_steps: int) -> Iterator[Callable[[], None]]:
    """Record `num_steps` steps; yields what must be called at the end of each step of the run.

    Writes trace.json.gz and top_ops.txt into the folder once they are over, and nothing when the run ends before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"

    def write(found: profile) -> None:
        found.export_chrome_trace(str(folder / "trace.json.gz"))
        (folder / "top_ops.txt").write_text(found.key_averages().table(sort_by=order, row_limit=40) + "\n")

    steps = schedule(skip_first=SKIPPED_STEPS - 1, wait=0, warmup=1, active=num_steps, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=write, record_shapes=True) as running:
        yield running.step
