"""What people see of a job while it runs: a bar on a terminal, and at its end one line in the log."""

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

from etl.engine import Counts
from etl.library_log import screen
from etl.terminal import Terminal


def progress_bar() -> Progress:
    """A bar for jobs with a field `counts`; it goes when the job ends, and there is none without a terminal."""
    return progress_of(
        TextColumn("{task.description:>24}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[counts]}", markup=False),
    )  # fmt: skip


def progress_of(*columns: ProgressColumn) -> Progress:
    """Progress on the screen, gone at its end; none without a terminal. What libraries write is not drawn into it."""
    stream = screen()
    return Progress(
        *columns, console=Terminal(file=stream), transient=True, redirect_stderr=False, disable=not stream.isatty()
    )


def counts_line(counts: Counts) -> str:
    """What the tasks of a job have counted so far."""
    return f"{counts.rows_in:,} rows in, {counts.rows_out:,} out, {counts.dropped:,} dropped, {counts.tokens:,} tokens"
