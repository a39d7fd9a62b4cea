"""The summary at the end of a run: the funnel from raw rows to the corpus, by step and source, and the next command.

    rows left after         stack        web     code  2 others        all  lost to
    (read)              1,200,000    900,000   40,000     9,100  2,149,100
    ingest              1,199,990    900,000   40,000     9,100  2,149,090  parse 10
    …

Each line is a step, in the order of the run. Its columns are the sources, largest first; those that do not fit share
one column. The rows that a step dropped are summed over the sources; their reasons follow the numbers, or are below
them where they do not fit. No name is cut: a long step name has its own line, and sources with long names, or that
share a column, are named below the table. It is made from the accounts of manifests: no row is read.
"""

import shlex
import textwrap
from collections.abc import Iterator, Sequence

from etl.columns import left, right, width
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from etl.storage.manifest import FLOW, Accounting

WIDTH = 80
_MIN_REASONS = 20
_MAX_NAME = 18
_NO_BREAK = "\xa0"
"""Keeps a name, or a reason and its rows, on one line."""
_TITLE, _READ, _ALL, _LOST = "rows left after", "(read)", "all", "lost to"


def funnel(accounting: Accounting, order: Sequence[str], screen: int = WIDTH) -> list[str]:
    """The lines of a funnel; none where no row was accounted for.

    Args:
        accounting: source -> step -> reason -> rows of the whole run.
        order: the steps in the order of the run; those that have no account are left out.
        screen: width of the terminal in columns.
    """
    steps = [step for step in order if any(step in of_source for of_source in accounting.values())]
    if not steps:
        return []
    columns = {source: _left(of_source, steps) for source, of_source in accounting.items()}
    by_size = dict(sorted(columns.items(), key=lambda item: (-item[1][0], item[0])))
    names = [_READ, *steps]
    first = max(width(name) for name in (_TITLE, *names) if width(name) <= _MAX_NAME)
    cells, legend = _folded(by_size, screen - first - _MIN_REASONS)
    reasons = {step: _reasons(accounting, step) for step in steps}
    widest = max((width(bound) + 1 for told in reasons.values() for bound in told.split(", ")), default=0)
    widths = [max(width(title), *(len(f"{rows:,}") for rows in column)) for title, column in cells]
    head = "  ".join([left(_TITLE, first), *(right(title, n) for (title, _), n in zip(cells, widths, strict=True))])
    lines = [f"{head}  {_LOST}"]
    for row, name in enumerate(names):
        if width(name) > _MAX_NAME:
            lines.append(name)
            name = ""
        numbers = (f"{column[row]:>{n},}" for (_, column), n in zip(cells, widths, strict=True))
        text = "  ".join([left(name, first), *numbers])
        lines += _beside(text, reasons[steps[row - 1]] if row else "", screen, widest)
    return [*lines, *legend]


def _left(of_source: dict[str, dict[str, int]], steps: Sequence[str]) -> list[int]:
    """The rows of one source, as read and after each step; a step that does not apply to the source keeps them all."""
    left = [next((of_source[step]["in"] for step in steps if step in of_source), 0)]
    for step in steps:
        left.append(of_source[step]["kept"] if step in of_source else left[-1])
    return left


def _folded(columns: dict[str, list[int]], num_columns: int) -> tuple[list[tuple[str, list[int]]], list[str]]:
    """(title, rows) of each column shown: as many sources as fit, the others together, and the total.

    Also the lines that list the sources of each title that is not the name of a source.
    """
    total = [sum(rows) for rows in zip(*columns.values(), strict=True)]
    sources = list(columns)
    titles = [name if width(name) <= _MAX_NAME else f"({n})" for n, name in enumerate(sources, 1)]
    legend = [f"{title} {name}" for title, name in zip(titles, sources, strict=True)]
    if len(sources) == 1:
        return [(titles[0], total)], [legend[0]] if titles != sources else []
    for shown in range(len(sources), 0, -1):
        cells = [(title, columns[source]) for title, source in zip(titles[:shown], sources, strict=False)]
        said = [legend[n] for n in range(shown) if titles[n] != sources[n]]
        rest = sources[shown:]
        if rest:
            title = f"{len(rest)} other{'' if len(rest) == 1 else 's'}"
            cells.append((title, [sum(rows) for rows in zip(*(columns[source] for source in rest), strict=True)]))
            said += _listed(title, rest)
        cells.append((_ALL, total))
        if sum(2 + max(width(title), len(f"{max(rows):,}")) for title, rows in cells) <= num_columns:
            return cells, said
    title = f"{len(sources)} sources"
    return [(title, total)], _listed(title, sources)


def _listed(title: str, names: Sequence[str]) -> list[str]:
    """Names as lines, without breaking a name."""
    text = f"{title}: {', '.join(name.replace(' ', _NO_BREAK) for name in names)}"
    wrapped = textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return [line.replace(_NO_BREAK, " ") for line in wrapped]


def _reasons(accounting: Accounting, step: str) -> str:
    """The reasons why a step dropped rows, most rows first, and the rows that it made."""
    total: dict[str, int] = {}
    for of_source in accounting.values():
        for reason, rows in of_source.get(step, {}).items():
            total[reason] = total.get(reason, 0) + rows
    made = [f"made {total['made']:,}"] if total.get("made") else []
    lost = sorted(((-rows, reason) for reason, rows in total.items() if rows and reason not in FLOW))
    return ", ".join([*made, *(f"{reason} {-rows:,}" for rows, reason in lost)])


def _beside(text: str, reasons: str, screen: int, widest: int) -> list[str]:
    """A line followed by its reasons. Those that do not fit continue below; if not even one fits, all are below.

    Args:
        text: text of the line.
        reasons: reasons with their rows.
        screen: width of the terminal in columns.
        widest: width of the longest reason of all lines.
    """
    if not reasons:
        return [text]
    bound = [reason.replace(" ", _NO_BREAK) for reason in reasons.split(", ")]
    room = screen - width(text) - 2
    if is_below := room < max(map(width, bound)) + 1:
        room = max(widest, _MIN_REASONS)
    wrapped = textwrap.wrap(", ".join(bound), room, break_long_words=False, break_on_hyphens=False)
    shown = [line.replace(_NO_BREAK, " ") for line in wrapped]
    if is_below:
        return [text, *(" " * max(0, screen - room) + line for line in shown)]
    return [f"{text}  {shown[0]}", *(f"{'':{width(text)}}  {line}" for line in shown[1:])]


def last_lines(
    accounting: Accounting, order: Sequence[str], corpus: Dataset | None, output: Location, screen: int | None = None
) -> Iterator[str]:
    """The funnel, the contents of the corpus, and the next command, with blank lines between them.

    Args:
        accounting: of the whole run.
        order: its steps in their order.
        corpus: None if the recipe lays none out.
        output: output of the run.
        screen: width of the terminal in columns; None if there is no terminal.
    """
    table = funnel(accounting, order, max(screen or WIDTH, WIDTH))
    yield from ["", *table, ""] if table else []
    if corpus is None:
        yield f"next: stillhouse catalog {shlex.quote(str(output))} --dialect duckdb"
        return
    manifest = corpus.manifest
    yield f"corpus: {manifest.rows_out:,} rows, {manifest.num_tokens:,} tokens"
    sets = f"data.corpus={corpus.folder}", f"output={output / 'student'}"
    words = ["stillhouse", "train", "CONF", *(word for item in sets for word in ("--set", shlex.quote(item)))]
    yield f"next: {' '.join(words)}"
