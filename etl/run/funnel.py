"""What a run says at its end: the funnel from raw rows to the corpus, by step and source, and the next command.

    rows left after         stack        web     code  2 others        all  lost to
    (read)              1,200,000    900,000   40,000     9,100  2,149,100
    ingest              1,199,990    900,000   40,000     9,100  2,149,090  parse 10
    …

A line is a step in the order of the run. Its columns are the sources, largest first; those that 80 columns do not hold
are one column. What the step dropped is summed over the sources. Made from the accounts of manifests: no row is read.
"""

import shlex
import textwrap
from collections.abc import Iterator, Sequence

from etl.storage.dataset import Dataset
from etl.storage.location import Location
from etl.storage.manifest import FLOW, Accounting

_WIDTH = 80
_MIN_REASONS = 20
_MAX_NAME = 18
_TITLE, _READ, _ALL, _LOST = "rows left after", "(read)", "all", "lost to"


def funnel(accounting: Accounting, order: Sequence[str]) -> list[str]:
    """The lines of a funnel; none where no row was accounted for.

    Args:
        accounting: source -> step -> reason -> rows of the whole run.
        order: the steps in the order of the run; those that have no account are left out.
    """
    steps = [step for step in order if any(step in of_source for of_source in accounting.values())]
    if not steps:
        return []
    columns = {source: _left(of_source, steps) for source, of_source in accounting.items()}
    by_size = dict(sorted(columns.items(), key=lambda item: (-item[1][0], item[0])))
    names = [_READ, *(_cut(step) for step in steps)]
    first = max(map(len, (_TITLE, *names)))
    cells = _folded(by_size, _WIDTH - first - _MIN_REASONS)
    widths = [max(len(title), *(len(f"{rows:,}") for rows in column)) for title, column in cells]
    head = "  ".join([f"{_TITLE:<{first}}", *(f"{title:>{n}}" for (title, _), n in zip(cells, widths, strict=True))])
    lines = [f"{head}  {_LOST}"]
    for row, name in enumerate(names):
        numbers = (f"{column[row]:>{n},}" for (_, column), n in zip(cells, widths, strict=True))
        text = "  ".join([f"{name:<{first}}", *numbers])
        reasons = _reasons(accounting, steps[row - 1]) if row else ""
        lines += _beside(text, reasons)
    return lines


def _left(of_source: dict[str, dict[str, int]], steps: Sequence[str]) -> list[int]:
    """The rows of one source: as read, and after each step; a step that is not for the source keeps them all."""
    left = [next((of_source[step]["in"] for step in steps if step in of_source), 0)]
    for step in steps:
        left.append(of_source[step]["kept"] if step in of_source else left[-1])
    return left


def _folded(columns: dict[str, list[int]], width: int) -> list[tuple[str, list[int]]]:
    """(title, rows) of each column that is shown: sources as far as they fit, the others together, and all of them."""
    total = [sum(rows) for rows in zip(*columns.values(), strict=True)]
    if len(columns) == 1:
        return [(_cut(source), rows) for source, rows in columns.items()]
    sources = list(columns)
    for shown in range(len(sources), 0, -1):
        cells = [(_cut(source), columns[source]) for source in sources[:shown]]
        rest = [columns[source] for source in sources[shown:]]
        if rest:
            title = f"{len(rest)} other{'' if len(rest) == 1 else 's'}"
            cells.append((title, [sum(rows) for rows in zip(*rest, strict=True)]))
        cells.append((_ALL, total))
        if sum(2 + max(len(title), len(f"{max(rows):,}")) for title, rows in cells) <= width:
            return cells
    return [(f"{len(sources)} sources", total)]


def _reasons(accounting: Accounting, step: str) -> str:
    """What a step dropped rows for, most rows first, and what it made."""
    total: dict[str, int] = {}
    for of_source in accounting.values():
        for reason, rows in of_source.get(step, {}).items():
            total[reason] = total.get(reason, 0) + rows
    made = [f"made {total['made']:,}"] if total.get("made") else []
    lost = sorted(((-rows, reason) for reason, rows in total.items() if rows and reason not in FLOW))
    return ", ".join([*made, *(f"{reason} {-rows:,}" for rows, reason in lost)])


def _beside(text: str, reasons: str) -> list[str]:
    """A line with reasons behind it, which go on below where they do not fit."""
    if not reasons:
        return [text]
    # A no-break space keeps a reason and its rows on one line.
    bound = ", ".join(reason.replace(" ", "\xa0") for reason in reasons.split(", "))
    wrapped = textwrap.wrap(bound, max(_MIN_REASONS - 2, _WIDTH - len(text) - 2), break_long_words=False)
    shown = [line.replace("\xa0", " ") for line in wrapped]
    return [f"{text}  {shown[0]}", *(f"{'':{len(text)}}  {line}" for line in shown[1:])]


def _cut(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"


def last_lines(accounting: Accounting, order: Sequence[str], corpus: Dataset | None, output: Location) -> Iterator[str]:
    """The funnel, what the corpus holds, and the command that comes next.

    Args:
        accounting: of the whole run.
        order: its steps in their order.
        corpus: None where the recipe lays none out.
        output: of the run.
    """
    yield from funnel(accounting, order)
    if corpus is None:
        yield f"next: stillhouse catalog {shlex.quote(str(output))} --dialect duckdb"
        return
    manifest = corpus.manifest
    yield f"corpus: {manifest.rows_out:,} rows, {manifest.num_tokens:,} tokens"
    sets = f"data.corpus={corpus.folder}", f"output={output / 'student'}"
    words = ["stillhouse", "train", "CONF", *(word for item in sets for word in ("--set", shlex.quote(item)))]
    yield f"next: {' '.join(words)}"
