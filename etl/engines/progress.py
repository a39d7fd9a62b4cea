"""What people see of a job while it runs: a bar on a terminal, and at its end one line in the log."""

import sys

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from etl.engine import Counts


def progress_bar() -> Progress:
    """A bar for jobs with a field `counts`; it goes when the job ends, and there is none without a terminal."""
    columns = (
        TextColumn("{task.description:>24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[counts]}"),
    )  # fmt: skip
    return Progress(*columns, transient=True, disable=not sys.stderr.isatty())


def counts_line(counts: Counts) -> str:
    """What the tasks of a job have counted so far."""
    return f"{counts.rows_in:,} rows in, {counts.rows_out:,} out, {counts.dropped:,} dropped, {counts.tokens:,} tokens"
