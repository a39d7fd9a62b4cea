"""What a run reports while it works: one line a stage, and between them a progress line.

    stage           rows in    lost    left   time  rows/s  lost to
    1/8 ingest        4,732       3   4,729  0.9 s   5,258  invalid_json 1, missing_query 1, not_an_object 1
    2/8 filter        4,729   2,457   2,272  2.1 s   2,252  over_share 1,569, language_not_kept 788, 1 more
    3/8 dedup: pairs, 12 of 40 parts, 81,220 rows, 1,204 rows/s, 1m 05s left

A stage's line is printed when all of its datasets are committed, followed by the stage's own notes. Stages that share a
job end together; each shows the time of its own datasets. On a terminal the reasons are cut to the width, most rows
first; the funnel at the end of the run has them all. Without a terminal every line is whole.

The progress line is made from what tasks leave beside the datasets (etl/storage/progress.py), so it is the same on a
cluster. A thread updates it and is busy for at most a twentieth of its time.
"""

import contextlib
import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from etl.columns import cut, left, width
from etl.engine import Onlooker
from etl.errors import StillhouseError
from etl.live import amount, duration, rate
from etl.stages.context import Telling
from etl.storage.dataset import Dataset
from etl.storage.manifest import ASSEMBLED, Accounting, add_counts, losses, totals
from etl.storage.progress import Seen, Watched, Writing
from etl.voice import Voice

_POLL_S = 0.5
_LOOKING_SHARE = 20
_MAX_NAME = 20
_HEADS = ("rows in", "lost", "left", "time", "rows/s")
_QUARANTINED = "quarantined:"


@dataclass(frozen=True)
class StageOutcome:
    """What a stage did to the rows of a run."""

    label: str
    rows_in: int
    made: int
    """Rows that were made from one or several others."""
    assembled: int
    """Rows that they were made from."""
    lost: Mapping[str, int]
    """By reason, most rows first; for rows that could not be read, just the reason."""
    left: int
    tokens: int
    """Tokens that it wrote."""
    wall_s: float | None
    """None if everything was committed before."""
    is_resumed: bool = False
    """Whether an earlier run wrote a part of it."""

    @property
    def num_lost(self) -> int:
        return sum(self.lost.values())


class Lines:
    """Lines held back until a run has something to do: what is already there is no news."""

    def __init__(self, voice: Voice) -> None:
        self.voice = voice
        self._held: list[Callable[[], None]] = []
        self.are_held = True
        self.has_begun = False
        """Whether the run has changed its output."""

    def say(self, line: Callable[[], None]) -> None:
        """Print something, now or as soon as there is something to do."""
        if self.are_held:
            self._held.append(line)
        else:
            line()

    def tell_nothing(self, why: str) -> None:
        """Print this instead of the lines, if there was nothing to do."""
        if self.are_held:
            self.voice(f"nothing to do: {why}")

    def begin(self) -> None:
        """Note that there is something to do."""
        self.has_begun = True
        self.release()

    def release(self) -> None:
        """Print what was held back."""
        self.are_held = False
        for line in self._held:
            line()
        self._held = []


@dataclass
class _Stage:
    number: int
    label: str
    datasets: set[str] = field(default_factory=set)
    """Folders that it has begun."""
    num_open: int = 0
    """Its folders that are not committed yet."""
    is_over: bool = False
    """Whether it begins no more folders."""
    accounting: Accounting = field(default_factory=dict)
    tokens: int = 0
    wall_s: float = 0.0
    was_run: bool = False
    is_resumed: bool = False
    notes: list[tuple[str, bool]] = field(default_factory=list)
    """Notes to print after its line; for each, whether it is also printed by a run that has nothing to do."""


class StageLines(Telling, Onlooker):
    """Gathers the reports of stages, engine and datasets, and prints one line a stage.

    Args:
        labels: the labels of the numbered stages, in their order.
        lines: the lines of the run.
        clock: returns seconds, for rates of what is under way.
    """

    def __init__(self, labels: Sequence[str], lines: Lines, clock: Callable[[], float] = time.monotonic) -> None:
        self.outcomes: list[StageOutcome] = []
        self._lines = lines
        self._clock = clock
        self._stages = {label: _Stage(number, label) for number, label in enumerate(labels, 1)}
        self._at: _Stage | None = None
        self._left: dict[str, int] = {}
        self._widths: list[int] = []
        self._rest = list(self._stages.values())
        self._beside: set[str] = set()
        """Folders that belong to no stage of the recipe."""

    # Reports of stages.

    def enter(self, label: str) -> None:
        self._leave()
        self._at = self._stages.get(label)

    def began(self, label: str, folder: str) -> None:
        stage = self._stages.get(label)
        if stage is None:
            self._beside.add(folder)
        else:
            stage.datasets.add(folder)
            stage.num_open += 1

    def ended(self, label: str, dataset: Dataset) -> None:
        self._detail(dataset)
        stage = self._stages.get(label)
        if stage is not None:
            manifest = dataset.manifest
            if manifest.accounts_rows:
                stage.accounting = add_counts(stage.accounting, manifest.accounting)
            stage.tokens += manifest.num_tokens
            stage.num_open -= 1
            self._tell_finished()

    def note(self, label: str, line: str, always: bool = False) -> None:
        stage = self._stages.get(label)
        if stage is None or stage not in self._rest:
            self._say_note(line, always)
        else:
            stage.notes.append((line, always))

    def detail(self, line: str) -> None:
        self._lines.say(functools.partial(self._lines.voice.detail, f"  {line}"))

    def close(self) -> None:
        """The last stage is over."""
        self._leave()

    def say_rest(self) -> None:
        """The run has ended, perhaps by an error: the remaining notes of stages are printed, as they may explain it."""
        for stage in self._rest:
            for line, always in stage.notes:
                self._say_note(line, always)
        self._rest = []

    # Reports of the engine.

    def committed(self, dataset: Dataset, wall_s: float, is_resumed: bool) -> None:
        stage = self._owner(dataset.ref.stage)
        if stage is not None:
            stage.wall_s += wall_s
            stage.was_run = True
            stage.is_resumed |= is_resumed

    @contextlib.contextmanager
    def job(self, writing: Sequence[Writing]) -> Iterator[None]:
        live = self._lines.voice.live
        if live is None:
            yield
            return
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(writing, over), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            live.clear()

    # The progress line.

    def _watch(self, writing: Sequence[Writing], over: threading.Event) -> None:
        live = self._lines.voice.live
        assert live is not None, "without one nobody watches"
        began_s, name = self._clock(), self._name_of(writing)
        watched: list[Watched] = []
        pause_s = _POLL_S if live.moves else live.pause_s
        while not over.wait(pause_s):
            looked_s = time.monotonic()
            try:
                watched = watched or [Watched(one) for one in writing]
                seen = [one.look() for one in watched]
            except StillhouseError as error:
                # If it matters, the run itself fails because of it.
                live.show(f"{name}: how far it is cannot be seen ({error})")
            else:
                live.show(f"{name}: {under_way(seen, self._clock() - began_s)}")
            pause_s = max(pause_s, _LOOKING_SHARE * (time.monotonic() - looked_s))

    def _name_of(self, writing: Sequence[Writing]) -> str:
        owners = [self._owner(one.ref.stage) for one in writing]
        stages = list({stage.number: stage for stage in owners if stage is not None}.values())
        folders = ", ".join(one.ref.stage for one in writing)
        if not stages:
            return folders
        first, last = stages[0].number, stages[-1].number
        number = f"{first}/{len(self._stages)}" if first == last else f"{first}-{last}/{len(self._stages)}"
        labels = ", ".join(stage.label for stage in stages)
        return f"{number} {labels}" + (f": {folders}" if len(writing) == 1 and folders != labels else "")

    def _owner(self, folder: str) -> _Stage | None:
        """The stage that writes a folder; rounds, which no stage announces, belong to the one at work."""
        found = (stage for stage in self._stages.values() if folder in stage.datasets)
        return next(found, None if folder in self._beside else self._at)

    # The lines.

    def _leave(self) -> None:
        if self._at is not None:
            self._at.is_over = True
            self._at = None
            self._tell_finished()

    def _tell_finished(self) -> None:
        while self._rest and self._rest[0].is_over and not self._rest[0].num_open:
            stage = self._rest.pop(0)
            outcome = self._outcome(stage)
            self.outcomes.append(outcome)
            self._lines.say(functools.partial(self._say_line, stage, outcome))
            for line, always in stage.notes:
                self._say_note(line, always)

    def _outcome(self, stage: _Stage) -> StageOutcome:
        came, lost, made, assembled = 0, Counter[str](), 0, 0
        for source in self._left | stage.accounting:
            steps = stage.accounting.get(source)
            if steps is None:
                came += self._left[source]
                continue
            entered, _, self._left[source] = totals({source: steps})
            came += entered
            for counts in steps.values():
                made += counts["made"]
                assembled += counts.get(ASSEMBLED, 0)
            for reason, rows in losses(steps).items():
                lost[reason.removeprefix(_QUARANTINED)] += rows
        by_rows = dict(sorted(lost.items(), key=lambda item: (-item[1], item[0])))
        wall_s = stage.wall_s if stage.was_run else None
        left = sum(self._left.values())
        return StageOutcome(stage.label, came, made, assembled, by_rows, left, stage.tokens, wall_s, stage.is_resumed)

    def _say_line(self, stage: _Stage, outcome: StageOutcome) -> None:
        name = f"{stage.number}/{len(self._stages)} {stage.label}"
        cells = cells_of(outcome)
        if not self._widths:
            names = [f"{one.number}/{len(self._stages)} {one.label}" for one in self._stages.values()]
            first = max((width(one) for one in names if width(one) <= _MAX_NAME), default=0)
            digits = len(cells[0])
            self._widths = [first, max(7, digits), max(5, digits), max(5, digits), 6, 6]
            self._say_cells(["stage", *_HEADS], "lost to")
        self._say_cells([name, *cells], notes_of(outcome, self._room()))

    def _say_cells(self, cells: Sequence[str], rest: str) -> None:
        first, *numbers = cells
        wide = (f"{one:>{n}}" for one, n in zip(numbers, self._widths[1:], strict=True))
        line = "  ".join([left(first, self._widths[0]), *wide, rest]).rstrip()
        columns = self._lines.voice.columns
        self._lines.voice(line if columns is None else cut(line, columns))

    def _room(self) -> int | None:
        columns = self._lines.voice.columns
        return None if columns is None else columns - sum(self._widths) - 2 * len(self._widths)

    def _say_note(self, line: str, always: bool) -> None:
        say = functools.partial(self._lines.voice.wrapped, f"  {line}")
        if always:
            say()
        else:
            self._lines.say(say)

    def _detail(self, dataset: Dataset) -> None:
        manifest = dataset.manifest
        told = f"{manifest.rows_out:,} rows"
        if manifest.accounts_rows and manifest.accounting:
            entered, lost, rows_left = totals(manifest.accounting)
            told = f"{entered:,} in, {lost:,} lost, {rows_left:,} left"
        self.detail(f"{manifest.stage}: {told}, {len(manifest.parts):,} files in {dataset.folder}")


# --- in words --------------------------------------------------------------------------------------------------------


def cells_of(outcome: StageOutcome) -> list[str]:
    """The numbers of a stage's line."""
    time_s = outcome.wall_s
    speed = "-" if time_s is None else rate(outcome.rows_in, time_s)
    rows = (f"{number:,}" for number in (outcome.rows_in, outcome.num_lost, outcome.left))
    return [*rows, "-" if time_s is None else duration(time_s), speed]


def notes_of(outcome: StageOutcome, room: int | None) -> str:
    """The notes after the numbers: why rows were lost, and whatever else there is to know.

    Args:
        outcome: the outcome of the stage.
        room: width in columns; reasons that do not fit are only counted; None for no limit.
    """
    made = f"{outcome.assembled:,} assembled into {outcome.made:,}" if outcome.assembled else f"made {outcome.made:,}"
    others = [made] if outcome.made else []
    if outcome.tokens:
        speed = f" ({rate(outcome.tokens, outcome.wall_s)}/s)" if outcome.wall_s else ""
        others.append(f"{amount(outcome.tokens)} tokens{speed}")
    if outcome.wall_s is None:
        others.append("done before")
    elif outcome.is_resumed:
        others.append("resumed")
    reasons = [f"{reason} {rows:,}" for reason, rows in outcome.lost.items()]
    for shown in range(len(reasons), 0, -1):
        text = _joined(reasons, shown, others)
        if room is None or width(text) <= room:
            return text
    return _joined(reasons, 0, others) if len(reasons) > 1 else "; ".join([*reasons, *others])


def _joined(reasons: Sequence[str], shown: int, others: Sequence[str]) -> str:
    left_out = len(reasons) - shown
    more = [f"{left_out} more" if shown else f"{left_out} reasons"] if left_out else []
    return "; ".join(filter(None, [", ".join([*reasons[:shown], *more]), *others]))


def under_way(seen: Sequence[Seen], elapsed_s: float) -> str:
    """The progress of a job: its datasets' parts, the rows that they have read, the speed, and the remaining time.

    Args:
        seen: progress of each dataset of the job; all are written from the same rows.
        elapsed_s: since the job began.
    """
    tasks, done = sum(one.tasks for one in seen), sum(one.tasks_done for one in seen)
    rows = max(one.counts.rows_in + one.rows_in_checkpoints for one in seen)
    tokens = sum(one.counts.tokens for one in seen)
    lost = sum(one.counts.dropped for one in seen)
    said = [f"{done:,} of {tasks:,} parts"]
    if rows:
        said.append(f"{rows:,} rows")
    if lost:
        said.append(f"{lost:,} lost")
    if tokens:
        said.append(f"{rate(tokens, elapsed_s)} tokens/s")
    elif rows:
        said.append(f"{rate(rows, elapsed_s)} rows/s")
    said.append(f"{duration(elapsed_s * (tasks - done) / done)} left" if done else f"{duration(elapsed_s)} so far")
    return ", ".join(said)
