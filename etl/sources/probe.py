"""What a path holds, and the description that its rows fit: what `stillhouse probe` prints.

Files are listed as a source's are, but not hashed. Some of them are glanced at (etl/sources/glance.py), the best
description is found (etl/sources/nearest.py), and then the first rows are really read with it, by the code that ingest
runs. Costs the heads of MAX_FILES files, and ROWS rows or 16 MB of each format.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from etl import conf
from etl.errors import SourceError
from etl.filters.blank import drop_blank
from etl.sources.files import InputFile, InputPiece, InputSplit, listing_of, source_places, url_of
from etl.sources.formats.endings import FORMATS
from etl.sources.glance import Column, Glance, glance
from etl.sources.hub import repo_of, resolve
from etl.sources.leaves import leaves_of
from etl.sources.listing import LeftOut, summary, told
from etl.sources.nearest import Fit, nearest, tried
from etl.sources.paths import root_of
from etl.sources.prompts import INGEST
from etl.sources.raw import Bad
from etl.sources.read import read_split
from etl.sources.row_groups import Limits
from etl.sources.spec import Description, Source, TextRows
from etl.step import live

NAME: Final = "mine"
"""What the source is called."""
ROWS: Final = 1000
MAX_FILES: Final = 12
"""So many files are glanced at."""
GLANCED: Final = 100
"""Rows of each."""
SHOWN: Final = 3
_FEWEST: Final = 0.5
"""Share of the rows below which a description does not fit at all."""
_LONG_FILE: Final = 20_000
"""Characters from which on a text file may be many documents, of _LONG_PIECE characters on average, _MANY at least."""
_LONG_PIECE: Final = 80
_MANY: Final = 10
_NO_PIN: Final = "?"


@dataclass(frozen=True)
class Lost:
    """Rows that are no examples, for one reason."""

    reason: str
    rows: int
    file: str
    position: int
    detail: str
    """Of the first of them."""


@dataclass
class Check:
    """What ingest would make of the first rows."""

    rows: int = 0
    kept: int = 0
    quarantined: list[Lost] = field(default_factory=list)
    blank: list[Lost] = field(default_factory=list)
    """By ingest's own verdict."""
    shown: list[dict[str, Any]] = field(default_factory=list)
    """The first PROMPT rows that are kept."""

    @property
    def num_quarantined(self) -> int:
        return sum(lost.rows for lost in self.quarantined)


@dataclass
class Probe:
    """What a path holds."""

    source: Source
    """The path, with `text_rows` where plain text is cut."""
    files: list[InputFile]
    left_out: LeftOut
    columns: list[Column]
    without_json: dict[str, str]
    num_glanced: int
    fits: list[Fit]
    """The best first."""
    spec: str | None
    """The shipped description that says the same as the best."""
    chosen: list[InputFile]
    """The files that it describes; all but where some have been seen to be others."""
    others: dict[str, str]
    """By file that fits another description, that one in words."""
    damage: list[str]
    check: Check

    @property
    def best(self) -> Fit:
        return self.fits[0]

    @property
    def used_columns(self) -> set[str]:
        """The columns that the description reads."""
        names = {column.name for column in self.columns}
        return {root_of(path, names) for path in self.best.shape.columns}

    @property
    def formats(self) -> list[tuple[str, str | None]]:
        """The formats with their compressions."""
        return list(dict.fromkeys(map(self.format_of, self.files)))

    def format_of(self, file: InputFile) -> tuple[str, str | None]:
        """The format of a file and its compression."""
        return _format(self.source, file), file.compression


def probe(path: str, rows: int = ROWS) -> Probe:
    """Look at a path, glob, folder or URL.

    Args:
        path: as `sources.NAME.path` takes it.
        rows: how many are read to see what would be rejected.

    Raises:
        SourceError: no file is found, none can be read, or no description fits the rows.
    """
    repo = repo_of(path)
    # What is looked at twice must be the same, though a branch moves.
    place = path if repo is None or repo.is_commit else repo.at(resolve(repo, {}))
    source = Source(spec="text", path=place)
    files, left_out = _listed(source, path)
    seen = {file.url: _glanced(source, file) for file in _spread(source, files)}
    rows_are = _text_rows(seen.values())
    if rows_are is not None:
        source = source.model_copy(update={"text_rows": rows_are})
        seen = {url: _cut(found, rows_are) for url, found in seen.items()}
    damage = [found.damage for found in seen.values() if found.damage is not None]
    groups = _groups(seen)
    if not any(found.rows for found in seen.values()):
        raise SourceError(_nothing(path, seen, damage))
    best = max(groups, key=lambda urls: sum(len(seen[url].rows) for url in urls))
    whole = _joined([seen[url] for url in best])
    fits = nearest(whole)
    if not fits or not (fits[0].fits or fits[0].share >= _FEWEST):
        raise SourceError(_no_fit(path, whole, fits))
    others = {
        file.relative: (of_it[0].reason if (of_it := nearest(seen[file.url])) else "nothing fits")
        for file in files
        if file.url in seen and file.url not in best
    }
    chosen = [file for file in files if file.url not in seen or file.url in best]
    check = _check(source, fits[0], chosen, rows)
    num_glanced = len(whole.rows) + len(whole.unread)
    return Probe(
        source, files, left_out, whole.columns, whole.without_json, num_glanced, fits, shipped_as(fits[0]), chosen,
        others, damage, check,
    )  # fmt: skip


def _listed(source: Source, path: str) -> tuple[list[InputFile], LeftOut]:
    found: dict[str, InputFile] = {}
    left_out: dict[str, tuple[str, str]] = {}
    for place in source_places(source, {}):
        listing = listing_of(source, place)
        for one in listing.files:
            url = url_of(place, one.path)
            size = int(one.info["size"])
            found[url] = InputFile(url=url, relative=one.relative, bytes=size, etag=_NO_PIN, stamp=_NO_PIN)
        left_out |= listing.left_out
    if not found:
        there = "; ".join(told(summary(left_out.values())))
        raise SourceError(f"no file of {FORMATS} at {path}; check the path" + (f" ({there})" if there else ""))
    return sorted(found.values(), key=lambda file: (file.relative, file.url)), summary(left_out.values())


def _format(source: Source, file: InputFile) -> str:
    found = source.format_of(file.relative)
    assert found is not None, file.relative
    return found


def _spread(source: Source, files: Sequence[InputFile]) -> list[InputFile]:
    """The first file of each format, and others evenly."""
    first = {(_format(source, file), file.compression): file for file in reversed(files)}
    step = max(1, len(files) // MAX_FILES)
    return list(dict.fromkeys((*first.values(), *files[::step], files[-1])))[: max(MAX_FILES, len(first))]


def _glanced(source: Source, file: InputFile) -> Glance:
    found = glance(source.locate(file.url, {}), _format(source, file), GLANCED)
    folders = file.partitions
    found.rows = [{**row, **{key: value for key, value in folders.items() if key not in row}} for row in found.rows]
    return found


def _text_rows(glances: Iterable[Glance]) -> TextRows | None:
    """What the rows of plain text are: a long file of many blocks or long lines is no one document."""
    texts = [row["text"] for found in glances if found.format == "text" for row in found.rows]
    long = [text for text in texts if len(text) >= _LONG_FILE]
    if not long or 2 * len(long) < len(texts):
        return None
    for rows_are in ("paragraph", "line"):
        pieces = [piece for text in long for piece in _pieces(text, rows_are)]
        if len(pieces) >= _MANY * len(long) and sum(map(len, pieces)) >= _LONG_PIECE * len(pieces):
            return rows_are
    return None


def _pieces(text: str, rows_are: TextRows) -> list[str]:
    pieces = re.split(r"\n\s*\n" if rows_are == "paragraph" else r"\n", text)
    return [piece for piece in pieces if piece.strip()]


def _cut(found: Glance, rows_are: TextRows) -> Glance:
    rows = [{**row, "text": piece} for row in found.rows for piece in _pieces(row["text"], rows_are)]
    return replace(found, rows=[{**row, "id": f"{row['path']}:{n}"} for n, row in enumerate(rows[:GLANCED])])


def _groups(seen: dict[str, Glance]) -> list[list[str]]:
    """The files that one description fits."""
    if len(seen) == 1:
        return [list(seen)]
    groups: list[tuple[Fit, list[str]]] = []
    for url, found in seen.items():
        if not found.rows:
            continue
        leaves = leaves_of(found.rows)
        for fit, urls in groups:
            of_it = tried(fit.tree, found.rows, leaves)
            if of_it is not None and of_it.fits:
                urls.append(url)
                break
        else:
            groups += [(fit, [url]) for fit in nearest(found)[:1]]
    return [urls for _, urls in groups] or [list(seen)]


def _joined(glances: Sequence[Glance]) -> Glance:
    whole = Glance(glances[0].format)
    for found in glances:
        whole.rows += found.rows
        whole.unread += found.unread
        whole.without_json |= found.without_json
    return whole


def _check(source: Source, fit: Fit, files: Sequence[InputFile], rows: int) -> Check:
    """Read the first rows of each format as ingest does."""
    check = Check()
    bad: dict[str, list[Bad]] = {}
    blank: dict[str, list[tuple[str, int]]] = {}
    for kind in dict.fromkeys(_format(source, file) for file in files):
        wanted = check.rows + rows
        for batch, lost in _read(source, fit, [file for file in files if _format(source, file) == kind]):
            batch = drop_blank(batch, INGEST, fit.shape.has_answers)
            alive = live(batch)
            check.rows += len(batch) + len(lost)
            check.kept += alive.true_count
            check.shown += batch.filter(alive).slice(0, SHOWN - len(check.shown)).to_pylist()
            for one in lost:
                bad.setdefault(one.reason, []).append(one)
            for row in batch.select(["verdict", "file", "position"]).to_pylist():
                if row["verdict"] is not None:
                    blank.setdefault(row["verdict"]["reason"], []).append((row["file"], row["position"]))
            if check.rows >= wanted:
                break
    check.quarantined = [
        Lost(reason, len(ones), ones[0].file, ones[0].position, ones[0].detail) for reason, ones in bad.items()
    ]
    check.blank = [Lost(reason, len(places), *places[0], "") for reason, places in blank.items()]
    return check


def _read(source: Source, fit: Fit, files: Sequence[InputFile]) -> Iterator[tuple[Any, list[Bad]]]:
    for file in files:
        split = InputSplit(source=NAME, pieces=(InputPiece(file=file, start=0, end=file.bytes),))
        yield from read_split(source, fit.shape, split, {}, Limits())


def shipped_as(fit: Fit) -> str | None:
    """The shipped description that is equal to this one."""
    shapes = ((name, conf.read(Description, name, "sources").root) for name in conf.shipped("sources"))
    wanted = fit.description.root
    return next((name for name, shape in shapes if shape.model_copy(update={"hub": None}) == wanted), None)


# --- errors -----------------------------------------------------------------------------------------------------------


def _nothing(path: str, seen: dict[str, Glance], damage: Sequence[str]) -> str:
    unread = Counter(reason for found in seen.values() for reason in found.unread)
    if unread:
        ((reason, _),) = unread.most_common(1)
        return f"{path}: none of the first {unread.total():,} rows can be read ({reason}); a row must be a JSON object"
    return damage[0] if damage else f"{path}: {len(seen):,} files without any row"


def _no_fit(path: str, whole: Glance, fits: Sequence[Fit]) -> str:
    columns = ", ".join(f"{column.name} ({column.kind})" for column in whole.columns[:20])
    near = f"the nearest is {fits[0].reason}" if fits else "no column has text of a conversation"
    return f"{path}: no shape fits the columns {columns}; {near}. Write a description, see docs/reference/sources.md"
