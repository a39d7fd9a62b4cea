"""Local files that appear atomically, and a stamp that distinguishes two versions of a file."""

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path


def local_stamp(found: os.stat_result) -> str:
    """Changes when the file is written again: its modification time in ns and its size."""
    return f"{found.st_mtime_ns}-{found.st_size}"


@contextlib.contextmanager
def temporary_beside(path: str) -> Iterator[str]:
    """A temporary name in the same folder (created if needed), to be renamed into place; else the file is removed."""
    folder, name = os.path.split(path)
    Path(folder).mkdir(parents=True, exist_ok=True)
    temporary = str(Path(folder) / f"_{name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_regular(path: str, limit: int) -> bytes:
    """At most `limit` bytes of a file from its start.

    Raises:
        OSError: there is none, or what is there is a folder, a pipe or a device, which may never end.
    """
    # So that opening a pipe without a writer does not block.
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except NotADirectoryError as error:
        # A folder of the path is a file, so nothing can be below it.
        raise FileNotFoundError(errno.ENOENT, "no such file", path) from error
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EINVAL, "not a regular file", path)
    with open(opened, "rb") as file:
        return file.read(limit)


def link_above(folder: str, relative: str) -> str | None:
    """The first link among the folders between a folder and a path below it; None where there is none."""
    place = folder
    for piece in relative.split("/")[:-1]:
        place = f"{place}/{piece}"
        if Path(place).is_symlink():
            return place
    return None


def linked_folder(root: str, below: str) -> str | None:
    """The first link to a folder on the way from a folder to one below it, or anywhere in that; None where none is."""
    if (link := link_above(root, f"{below}/")) is not None:
        return link
    for folder, names, _ in os.walk(f"{root}/{below}"):
        for name in names:
            if Path(folder, name).is_symlink():
                return f"{folder}/{name}"
    return None


def link_local(path: str, data: bytes) -> bool:
    """O_EXCL semantics with whole content: a hard link to a finished file fails when the name is taken."""
    with temporary_beside(path) as temporary:
        Path(temporary).write_bytes(data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            # NFS repeats a request whose answer was lost, and then meets its own link.
            return Path(temporary).stat().st_nlink == 2
        return True
