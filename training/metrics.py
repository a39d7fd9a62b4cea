"""What is written down about training: one JSON line a step, one a held-out evaluation, and a progress bar.

The file is flushed at every line. A run that resumes at step s first cuts off the lines after s, which the
interrupted run wrote and which are about to be written again. Only rank 0 writes.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Journal:
    """A JSONL file of records that each have a `step`, and the bar on standard error."""

    def __init__(self, path: Path, resumed_step: int, max_steps: int, writes: bool) -> None:
        """`writes` is False on all ranks but one, whose calls then do nothing."""
        self._path = path
        self._writes = writes
        self._resumed_step = resumed_step
        self._progress = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not writes,
        )
        self._task = self._progress.add_task("", total=max_steps, completed=resumed_step)
        self._stack = ExitStack()

    def __enter__(self) -> "Journal":
        if self._writes:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _cut(self._path, self._resumed_step)
            self._file = self._stack.enter_context(self._path.open("a"))
            self._stack.enter_context(self._progress)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def write(self, record: dict[str, Any]) -> None:
        """One line."""
        if self._writes:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def step(self, record: dict[str, Any]) -> None:
        """The line of an optimizer step; moves the bar."""
        self.write(record)
        text = f"loss {record['loss']:.3f}  {record['tokens_per_s']:.0f} tokens/s"
        self._progress.update(self._task, completed=record["step"], description=text)


def _cut(path: Path, step: int) -> None:
    """Keep the whole lines up to a step; none for step 0, where a run begins."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True) if step else []
        path.write_text("".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step))


def router_metrics(load: torch.Tensor) -> dict[str, Any]:
    """How evenly experts are used, from int64 [layers, experts] token counts.

    `entropy` is that of the load over log(experts): 1 is even, 0 is one expert. `max_violation` is the largest load
    over the mean, minus 1; both are means over layers. `load` is the histogram itself.
    """
    if load.numel() == 0:
        return {}
    share = load.double() / load.sum(dim=1, keepdim=True).clamp(min=1)
    entropy = torch.special.entr(share).sum(dim=1) / torch.log(torch.tensor(max(load.shape[1], 2), dtype=torch.float64))
    violation = share.amax(dim=1) * load.shape[1] - 1
    return {"entropy": float(entropy.mean()), "max_violation": float(violation.mean()), "load": load.tolist()}
