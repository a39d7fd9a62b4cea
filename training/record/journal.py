"""Where the records of a run are written: metrics.jsonl, TensorBoard, W&B, a JSON stream, the live line.

`Journal` writes each record to metrics.jsonl, to TensorBoard (output/tensorboard) and to W&B where that is asked for,
one JSON line a logged step to a stream (`--json`), and moves the live line on standard error. One rank has a journal. A
run that resumes at step s first takes back what the interrupted run wrote about the steps after s: exactly in
metrics.jsonl, by TensorBoard's purge there. Every record has a `step`. A record of 60 numbers costs 0.7 ms, and 5 ms
with TensorBoard (2 busy cores).
"""

import importlib
import json
import math
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from etl.errors import ConfigError
from etl.live import LiveLine, duration
from training.record.metrics import MetricsConfig, Record


class Sink(Protocol):
    """A place for records."""

    def write(self, record: Record) -> None:
        """Keep one record."""

    def close(self) -> None:
        """Nothing more comes."""


class JsonLines:
    """A file of one JSON object a line, flushed at every line."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        """Cuts off the lines after the step, and all lines where a run begins (step 0)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with path.open("r+b") as file:
            file.truncate(_whole_bytes(file, resumed_step))
        self._file = path.open("a")

    def write(self, record: Record) -> None:
        self._file.write(to_json(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _whole_bytes(lines: Iterator[bytes], step: int) -> int:
    """Bytes of the lines from the start that are whole and not after the step."""
    total = 0
    for line in lines:
        if step == 0 or not line.endswith(b"\n") or json.loads(line)["step"] > step:
            break
        total += len(line)
    return total


class JsonStream:
    """Writes one JSON object per line to an open stream, and leaves it open."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, record: Record) -> None:
        self._stream.write(to_json(record) + "\n")
        self._stream.flush()

    def close(self) -> None:
        pass


class TensorBoard:
    """Scalars of each record as event files; histograms of experts stay in metrics.jsonl."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        # Here, because it takes a second to import and not every process has a journal.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resumed_step + 1 if resumed_step else 0, flush_secs=10)

    def write(self, record: Record) -> None:
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Scalars of each record in a run on W&B, the same run when training resumes."""

    def __init__(self, folder: Path, project: str) -> None:
        """Raises ConfigError where the package is missing."""
        try:
            wandb = importlib.import_module("wandb")
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"metrics.wandb_project is '{project}', but the package wandb is not installed; "
                "install it or set metrics.wandb_project to null"
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        name = folder / "wandb_id.txt"
        if not name.exists():
            name.write_text(uuid.uuid4().hex)
        self._run = wandb.init(project=project, dir=str(folder), id=name.read_text(), resume="allow")

    def write(self, record: Record) -> None:
        self._run.log(scalars(record), step=record["step"])

    def close(self) -> None:
        self._run.finish()


def to_json(record: Record) -> str:
    """One line of JSON; what is NaN or infinite is null."""
    return json.dumps(_finite(record), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(found) for name, found in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(found) for found in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by path ("span_loss/final", "router/layer_entropy/0"), without step and histograms."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{path}": number for path, number in scalars(value).items()}
        elif isinstance(value, list | tuple) and all(isinstance(part, int | float) for part in value):
            found |= {f"{name}/{place}": float(part) for place, part in enumerate(value)}
        elif isinstance(value, int | float) and name != "step":
            found[name] = float(value)
    return found


class ProgressLine:
    """The line that moves, on standard error: stage, how far, time left, and the numbers of the step."""

    def __init__(self, place: "Place", line: LiveLine, clock: Callable[[], float] = time.monotonic) -> None:
        self._place = place
        self._line = line
        self._clock = clock
        self._began_s = clock()
        self._stack = ExitStack()
        self._stack.enter_context(line.guarded())

    def update(self, record: Record, done: int) -> None:
        """A step was taken; `done` is in the unit of the run's target."""
        place = self._place
        spent_s, now = self._clock() - self._began_s, done - place.done
        rest = f"{duration(spent_s * max(0, place.total - done) / now)} left, " if now > 0 else ""
        # On a narrow screen the numbers of the step are cut, not how far the run is.
        number = place.stages.index(record["stage"]) + 1
        self._line.show(
            f"{number}/{len(place.stages)} {record['stage']}: {done / place.total:.0%}, {rest}{live_text(record)}"
        )

    def close(self) -> None:
        self._line.clear()
        self._stack.close()


def live_text(record: Record) -> str:
    """What the live line says of a step; the objective where it is another number than the loss."""
    objective = (
        f"  objective {record['objective']:.3f}" if f"{record['objective']:.3f}" != f"{record['loss']:.3f}" else ""
    )
    utilisation = f"  MFU {record['mfu']:.1%}" if "mfu" in record else ""
    return (
        f"step {record['step']}  loss {record['loss']:.3f}{objective}  lr {record['lr']:.2e}  "
        f"{record['tokens_per_s']:,.0f} tokens/s{utilisation}"
    )


@dataclass(frozen=True)
class Place:
    """The position of a run when its journal opens."""

    step: int
    """Optimizer steps taken; 0 for a run that begins."""
    done: int
    """In the unit of `total`."""
    total: int
    """The run's target in steps or tokens."""
    stages: tuple[str, ...]
    """Of the run, in their order."""


class Journal:
    """The records of a run, on the rank that writes them. A journal without sinks and line is what other ranks have."""

    def __init__(
        self, sinks: Sequence[Sink] = (), step_sinks: Sequence[Sink] = (), line: ProgressLine | None = None
    ) -> None:
        """`step_sinks` get the records of steps only."""
        self._sinks = sinks
        self._step_sinks = step_sinks
        self._line = line

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            for sink in [*self._sinks, *self._step_sinks]:
                stack.callback(sink.close)
            if self._line is not None:
                stack.callback(self._line.close)

    def write(self, record: Record) -> None:
        """Keep a record of anything but a step."""
        for sink in self._sinks:
            sink.write(record)

    def step(self, record: Record, done: int) -> None:
        """Keep the record of an optimizer step and move the line to `done`."""
        for sink in [*self._sinks, *self._step_sinks]:
            sink.write(record)
        if self._line is not None:
            self._line.update(record, done)


def _standard_error() -> Callable[[], TextIO]:
    """The stream as it is now, whoever stands in its place later."""
    stream = sys.stderr
    return lambda: stream


def open_journal(output: Path, config: MetricsConfig, place: Place, stream: TextIO | None) -> Journal:
    """The journal of the rank that writes: metrics.jsonl and what the configuration asks for, in the run's folder.

    `stream` gets one JSON line a step as well (`--json`), and then there is no live line.

    Raises:
        ConfigError: W&B is asked for and not installed.
    """
    sinks: list[Sink] = [] if config.wandb_project is None else [WeightsAndBiases(output, config.wandb_project)]
    sinks.append(JsonLines(output / "metrics.jsonl", place.step))
    if config.tensorboard:
        sinks.append(TensorBoard(output / "tensorboard", place.step))
    if stream is not None:
        return Journal(sinks, [JsonStream(stream)])
    return Journal(sinks, line=ProgressLine(place, LiveLine(_standard_error())))
