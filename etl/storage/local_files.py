"""Files of the local disk that are whole as soon as they are visible, and what tells two versions of one apart."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


def local_stamp(found: os.stat_result) -> str:
    """Changes when the file is written again: its modification time in ns and its size."""
    return f"{found.st_mtime_ns}-{found.st_size}"


@contextlib.contextmanager
def temporary_beside(path: str) -> Iterator[str]:
    """A name in the same folder (made if need be) for a file that is renamed into place; removed if it is not."""
    folder, name = os.path.split(path)
    Path(folder).mkdir(parents=True, exist_ok=True)
    temporary = str(Path(folder) / f"_{name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
    finally:
        Path(temporary).unlink(missing_ok=True)


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
