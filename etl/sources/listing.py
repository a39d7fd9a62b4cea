"""Which files a path, glob or folder names, and which of those that lie there are left out, and why.

Links of the local disk are followed, to files and to folders, as `find -L` does: a file is called as the link is, and
one that several links lead to is there several times. A folder that leads back to one above it is not entered again.
`*`, `?`, `[…]` and `**` are fsspec's; a part of a path that is there as it stands is that, whatever signs it holds.
Costs one scandir a folder, and a stat a file; on an object store one listing.
"""

import contextlib
import errno
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fsspec.utils import glob_translate

from etl.errors import SourceError
from etl.sources.formats.endings import COMPRESSIONS, FORMATS, format_of
from etl.sources.partitions import is_partition
from etl.storage.location import Location

MAX_NAMES = 5
"""So many of the files that are left out for one reason are named."""
HIDDEN = "hidden"
ENDING = "unknown ending"
FOLDER = "a folder, which the pattern does not match inside"
BESIDE = "text beside other data"
SPECIAL = "not a regular file"
CYCLE = "a link to a folder above it"
_SIGNS = "*?["
_WEB = frozenset({"http", "https"})
"""Schemes of pages: what links there are is a folder's content, without sizes."""
FormatOf = Callable[[str], str | None]
LeftOut = dict[str, dict[str, Any]]
"""Reason -> {"files": how many, "names": the first of them, sorted}."""


@dataclass(frozen=True)
class Found:
    """A file, as it is called and as the store describes it."""

    path: str
    """In its file system; of a link its own."""
    relative: str
    """Below the folder that the pattern starts with."""
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Pattern:
    """What a user wrote, as a folder and what is wanted below it."""

    folder: str
    wanted: str | None
    """A glob below the folder; None for all that is in it."""

    @cached_property
    def _pieces(self) -> list[str]:
        return (self.wanted or "**").split("/")

    @cached_property
    def _glob(self) -> re.Pattern[str]:
        return re.compile(glob_translate(self.wanted or "**"))

    def matches(self, relative: str) -> bool:
        """Whether a file is named."""
        return self._glob.match(relative) is not None

    def enters(self, relative: str) -> bool:
        """Whether something below a folder may be named."""
        depth = relative.count("/") + 1
        first = self._pieces[:depth]
        if "**" in first:
            return True
        return depth < len(self._pieces) and re.match(glob_translate("/".join(first)), relative) is not None


@dataclass
class Listing:
    """What a pattern comes to."""

    folder: str
    files: list[Found] = field(default_factory=list)
    left_out: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Path in the file system -> the reason, and the path below the folder."""
    entered: list[tuple[str, str]] = field(default_factory=list)
    """Of the local disk, the folders that were looked into: path below the folder ("" for itself), and the real one."""
    format_of: FormatOf = format_of
    """How a file of a name is read, None where it is not."""

    def leave_out(self, reason: str, relative: str) -> None:
        """Note what is not read."""
        self.left_out[posixpath.join(self.folder, relative)] = (reason, relative)


def summary(left_out: Iterable[tuple[str, str]]) -> LeftOut:
    """How many files are left out for each reason, and the first of them, from reasons and paths."""
    names: dict[str, list[str]] = {}
    for reason, name in sorted(left_out):
        names.setdefault(reason, []).append(name)
    return {reason: {"files": len(found), "names": found[:MAX_NAMES]} for reason, found in names.items()}


def told(left_out: LeftOut) -> Iterator[str]:
    """A line for each reason: `2 left out (unknown ending): a.csv, b.txt`."""
    for reason, what in left_out.items():
        names = ", ".join(what["names"])
        more = ", …" if what["files"] > len(what["names"]) else ""
        yield f"{what['files']:,} skipped ({reason}): {names}{more}"


def pattern_of(place: Location) -> Pattern | None:
    """A path, glob or folder as a Pattern; None for one file, and where there is nothing.

    Raises:
        SourceError: it is no pattern.
    """
    path = place.path
    is_odd = "**" in path and any("**" in piece and piece != "**" for piece in path.split("/"))
    if is_odd and not _exists(place, path):
        raise SourceError(f"{place.url}: '**' is a whole part of a path, as in folder/**/*.jsonl")
    if place.scheme in _WEB and format_of(path) is not None and not any(sign in path for sign in _SIGNS):
        # To see whether a URL is a folder, its file system would read all of it.
        return None
    pattern = pattern_in_words(path, lambda path: _exists(place, path))
    return pattern if pattern.wanted is not None or _is_folder(place, path) else None


def _exists(place: Location, path: str) -> bool:
    return bool(place.fs.exists(path)) if place.scheme != "hf" else _kind_on_hub(place, path) is not None


def _is_folder(place: Location, path: str) -> bool:
    return bool(place.fs.isdir(path)) if place.scheme != "hf" else _kind_on_hub(place, path) == "directory"


def _kind_on_hub(place: Location, path: str) -> str | None:
    """`file` or `directory`; None where nothing is. `exists` and `isdir` there take every failure for an absence."""
    try:
        return str(place.fs.info(path)["type"])
    except FileNotFoundError:
        return None


def pattern_in_words(path: str, exists: Callable[[str], bool] = lambda path: False) -> Pattern:
    """A path as a Pattern by its signs alone; `exists` says of a path with signs whether it is there as it stands."""
    pieces = path.split("/")
    for number, piece in enumerate(pieces):
        if any(sign in piece for sign in _SIGNS) and not exists("/".join(pieces[: number + 1])):
            return Pattern("/".join(pieces[:number]) or "/" * (number > 0), "/".join(pieces[number:]))
    return Pattern(path.rstrip("/") or "/", None)


def list_pattern(place: Location, format_of: FormatOf = format_of) -> Listing:
    """The files that a path, glob or folder names, in no order.

    A file that is named outright may be hidden; one that a pattern finds may not.

    Args:
        place: the path, glob or folder.
        format_of: how a file of a name is read, None where it is not.

    Raises:
        SourceError: a link leads nowhere, or a file that was named has an ending that we cannot read.
    """
    pattern = pattern_of(place)
    if pattern is None:
        return _one_file(place, format_of)
    if place.is_local:
        listing = Listing(pattern.folder, format_of=format_of)
        if place.fs.isdir(pattern.folder):
            real = os.path.realpath(pattern.folder)
            _walk(pattern, listing, "", real, (real,))
        return listing
    return _remote(place, pattern, format_of)


def _one_file(place: Location, format_of: FormatOf) -> Listing:
    path = place.path
    _check_name(path)
    listing = Listing(posixpath.dirname(path), format_of=format_of)
    if place.is_local and Path(path).is_symlink() and not Path(path).exists():
        raise _broken(path)
    if _exists(place, path):
        if format_of(path) is None:
            raise SourceError(
                f"{path} is not one of {FORMATS} (also with {COMPRESSIONS}); with `text_rows` any file is read as text"
            )
        listing.files.append(Found(path, posixpath.basename(path), place.fs.info(path)))
    return listing


def _remote(place: Location, pattern: Pattern, format_of: FormatOf) -> Listing:
    listing = Listing(pattern.folder, format_of=format_of)
    depth = None if pattern.wanted is None or "**" in pattern.wanted else pattern.wanted.count("/") + 1
    prefix = pattern.folder.rstrip("/") + "/"
    with_folders = pattern.wanted is not None
    for path, info in place.fs.find(pattern.folder, maxdepth=depth, withdirs=with_folders, detail=True).items():
        relative = path.rstrip("/").removeprefix(prefix)
        is_folder = info["type"] == "directory" or path.endswith("/")
        if not path.startswith(prefix) or not relative or not pattern.matches(relative):
            continue
        if not is_folder:
            if place.scheme in _WEB and listing.format_of(relative) is not None:
                info = place.fs.info(path)
            _sort(listing, path, relative, info)
        elif not pattern.enters(relative):
            reason = HIDDEN if any(map(_hides, relative.split("/"))) else FOLDER
            listing.leave_out(reason, f"{relative}/")
    return listing


def _sort(listing: Listing, path: str, relative: str, info: Mapping[str, Any]) -> None:
    """A file that is named is read, or left out for a reason."""
    _check_name(relative)
    if _is_hidden(relative):
        listing.leave_out(HIDDEN, relative)
    elif listing.format_of(relative) is None:
        listing.leave_out(ENDING, relative)
    elif info["type"] != "file":
        listing.leave_out(SPECIAL, relative)
    else:
        listing.files.append(Found(path, relative, info))


def _check_name(path: str) -> None:
    """Refuse a name that is no text: the rows could not say where they were read."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        shown = path.encode("utf-8", "backslashreplace").decode()
        raise SourceError(f"the name of the file {shown} is not UTF-8; rename it") from error


def _is_hidden(relative: str) -> bool:
    """As Spark sees it: what begins with `.` or `_`, or lies below such a folder, unless the folder is a column."""
    *folders, name = relative.split("/")
    return name.startswith(("_", ".")) or any(_hides(folder) for folder in folders)


def _hides(folder: str) -> bool:
    return folder.startswith(".") or (folder.startswith("_") and not is_partition(folder))


# --- the local disk -------------------------------------------------------------------------------------------------


def _walk(pattern: Pattern, listing: Listing, relative: str, real: str, above: tuple[str, ...]) -> None:
    """Look into a folder and those below it.

    Args:
        pattern: what is wanted.
        listing: gets what is found.
        relative: path of the folder below the pattern's, "" for that itself.
        real: the folder without links.
        above: it and those that were entered on the way to it, without links.
    """
    listing.entered.append((relative, real))
    path = posixpath.join(pattern.folder, relative) if relative else pattern.folder
    with os.scandir(path) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        below = f"{relative}/{entry.name}" if relative else entry.name
        is_named, is_way = pattern.matches(below), pattern.enters(below)
        if not (is_named or is_way):
            continue
        if _hides(entry.name):
            _count_hidden(pattern, listing, entry, below)
            continue
        try:
            info = entry.stat()
        except FileNotFoundError as error:
            raise _broken(entry.path) from error
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise SourceError(f"{entry.path} is a link that leads back to itself; fix or remove it") from error
        if not stat.S_ISDIR(info.st_mode):
            if is_named:
                kind = "file" if stat.S_ISREG(info.st_mode) else "other"
                described = {"size": info.st_size, "type": kind, "islink": entry.is_symlink()}
                _sort(listing, entry.path, below, described)
        elif not is_way:
            listing.leave_out(FOLDER, f"{below}/")
        else:
            target = os.path.realpath(entry.path) if entry.is_symlink() else f"{real.rstrip('/')}/{entry.name}"
            if target in above:
                listing.leave_out(CYCLE, f"{below}/")
            else:
                _walk(pattern, listing, below, target, (*above, target))


def _count_hidden(pattern: Pattern, listing: Listing, entry: os.DirEntry[str], relative: str) -> None:
    """Count what is hidden; no link is followed there, and a folder that may not be listed counts as one file."""
    if not entry.is_dir(follow_symlinks=False):
        if pattern.matches(relative):
            listing.leave_out(HIDDEN, relative)
        return
    if not pattern.enters(relative):
        if pattern.matches(relative):
            listing.leave_out(HIDDEN, f"{relative}/")
        return
    try:
        with os.scandir(entry.path) as found:
            inside = list(found)
    except PermissionError:
        listing.leave_out(HIDDEN, f"{relative}/")
        return
    for one in inside:
        _count_hidden(pattern, listing, one, f"{relative}/{one.name}")


def _broken(path: str) -> SourceError:
    with contextlib.suppress(OSError):
        return SourceError(f"{path} is a link to {Path(path).readlink()}, which does not exist; fix or remove the link")
    return SourceError(f"{path} was removed while it was listed; run again when nobody writes there")
