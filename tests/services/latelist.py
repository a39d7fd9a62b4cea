"""`latelist://`: objects on a local disk behind a store whose LIST lags, while access by name does not.

The clock counts operations, not seconds: LIST hides an object that was written fewer than `lag` operations ago and
still shows one that was deleted fewer than `lag` operations ago, as a replicated index may. The clock and the history
are lines of a journal beside the objects, so several processes see one store. `settle` ends all lag. Every operation
reads the journal: for hundreds of objects, not more.
"""

import contextlib
import io
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.spec import AbstractFileSystem

from etl.storage.location import Location

PROTOCOL = "latelist"
_JOURNAL = ".journal"


class LateListing(AbstractFileSystem):  # type: ignore[misc]
    """Args:
    root: folder of the journal; objects are below it too.
    lag: operations after which LIST has caught up.
    """

    protocol = PROTOCOL
    cachable = False

    def __init__(self, root: str, lag: int, **options: Any) -> None:
        super().__init__(**options)
        self._journal = Path(root) / _JOURNAL
        self._lag = lag

    def settle(self) -> None:
        """Let LIST catch up with everything."""
        self._note("settle")

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        self._note("tick")
        return self._info(self._strip_protocol(path))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        self._note("tick")
        path = self._strip_protocol(path)
        listed = self._listed(path)
        found = {}
        for name, size in listed.items():
            child, is_folder, _ = name.removeprefix(f"{path}/").partition("/")
            kind, size = ("directory", 0) if is_folder else ("file", size)
            found[f"{path}/{child}"] = {"name": f"{path}/{child}", "size": size, "type": kind}
        if not found:
            found = {path: self._info(path)} if Path(path).is_file() else {}
        if not found:
            raise FileNotFoundError(path)
        return [found[name] for name in sorted(found)] if detail else sorted(found)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        self._note("tick")
        return Path(self._strip_protocol(path)).read_bytes()[start:end]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        path = self._strip_protocol(path)
        with _whole(path) as temporary:
            temporary.write_bytes(value)
            if mode == "create":
                os.link(temporary, path)
            else:
                os.replace(temporary, path)
        self._note(f"put {len(value)} {path}")

    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def rm_file(self, path: str) -> None:
        path = self._strip_protocol(path)
        size = Path(path).stat().st_size
        Path(path).unlink()
        self._note(f"del {size} {path}")

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Delete what LIST shows, as clients of an object store do."""
        path = self._strip_protocol(path)
        if not recursive or Path(path).is_file():
            self.rm_file(path)
            return
        self._note("tick")
        for name in self._listed(path):
            with contextlib.suppress(FileNotFoundError):
                self.rm_file(name)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> IO[bytes]:
        self._note("tick")
        return io.BytesIO(Path(self._strip_protocol(path)).read_bytes())

    def _note(self, line: str) -> None:
        with self._journal.open("a") as journal:
            journal.write(f"{line}\n")

    def _info(self, path: str) -> dict[str, Any]:
        if not Path(path).is_file() and not any(Path(path).rglob("*")):
            raise FileNotFoundError(path)
        kind = "file" if Path(path).is_file() else "directory"
        return {"name": path, "size": Path(path).stat().st_size if kind == "file" else 0, "type": kind}

    def _listed(self, folder: str) -> dict[str, int]:
        """Name and bytes of the objects that LIST shows below a folder."""
        lines = self._journal.read_text().splitlines()
        listed: dict[str, int] = {}
        settled = max((number for number, line in enumerate(lines) if line == "settle"), default=0)
        for line in lines[: max(settled, len(lines) - self._lag)]:
            verb, _, rest = line.partition(" ")
            size, _, name = rest.partition(" ")
            if verb == "put" and name.startswith(f"{folder}/"):
                listed[name] = int(size)
            elif verb == "del":
                listed.pop(name, None)
        return listed


fsspec.register_implementation(PROTOCOL, LateListing, clobber=True)


def late_listing(root: Path, folder: str, lag: int) -> Location:
    """A folder of a late-listing store whose objects and journal are below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / _JOURNAL).touch()
    return Location.of(f"{PROTOCOL}://{root}/{folder}", {"root": str(root), "lag": lag})


@contextlib.contextmanager
def _whole(path: str) -> Iterator[Path]:
    """A temporary file outside the listings, in the same file system."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{uuid.uuid4().hex}"
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
