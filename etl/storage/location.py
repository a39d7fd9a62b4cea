"""Where bytes live: one folder or object on any fsspec file system, and the few operations that commits rest on.

`create` never overwrites and never shows a half-written object: on a local disk it hard-links a finished temporary
file, on an object store it is a conditional PUT. `replace` is atomic in the same sense. Everything else is a thin
call to fsspec. A Location pickles to its URL and options, so workers open their own connection.
"""

import contextlib
import os
import posixpath
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, cast

import fsspec
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from etl.errors import DataError, SourceError


@dataclass(frozen=True)
class Location:
    """A URL (or local path) with the fsspec options that open it."""

    url: str
    options: dict[str, Any] = field(default_factory=dict, hash=False, repr=False)

    @classmethod
    def of(cls, url: "str | Path | Location", options: dict[str, Any] | None = None) -> "Location":
        """A Location from what a user wrote; local paths become absolute."""
        if isinstance(url, Location):
            return url
        text = str(url)
        if "://" not in text:
            text = str(Path(text).expanduser().resolve())
        return cls(text.rstrip("/"), options or {})

    @cached_property
    def fs(self) -> Any:
        """The fsspec file system (cached per process by fsspec)."""
        return fsspec.core.url_to_fs(self.url, **self.options)[0]

    @property
    def path(self) -> str:
        """The path inside the file system."""
        return cast(str, self.fs._strip_protocol(self.url))

    @property
    def name(self) -> str:
        return posixpath.basename(self.url)

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __truediv__(self, relative: str) -> "Location":
        return Location(f"{self.url}/{relative}", self.options)

    def __str__(self) -> str:
        return self.url

    def exists(self) -> bool:
        return bool(self.fs.exists(self.path))

    def size(self) -> int | None:
        """Bytes of the object; None when there is none."""
        try:
            return int(self.fs.info(self.path)["size"])
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open(self) -> IO[bytes]:
        """The object for reading."""
        return cast("IO[bytes]", self.fs.open(self.path, "rb"))

    def read(self) -> bytes:
        """All bytes of the object.

        Raises:
            FileNotFoundError: there is no such object.
        """
        return cast(bytes, self.fs.cat_file(self.path))

    def create(self, data: bytes) -> bool:
        """Write the object if none is there yet; False (and nothing written) when one is."""
        if self.is_local:
            return _link_local(self.path, data)
        try:
            self.fs.pipe_file(self.path, data, mode="create")
        except FileExistsError:
            return False
        return True

    def replace(self, data: bytes) -> None:
        """Write the object, in place of any that is there."""
        if self.is_local:
            with _temporary_beside(self.path) as temporary:
                Path(temporary).write_bytes(data)
                os.replace(temporary, self.path)
        else:
            self.fs.pipe_file(self.path, data)

    def upload(self, local_file: str | Path) -> None:
        """Copy a finished local file to this object, visible only when whole."""
        if self.is_local:
            with _temporary_beside(self.path) as temporary:
                shutil.copyfile(local_file, temporary)
                os.replace(temporary, self.path)
        else:
            self.fs.put_file(str(local_file), self.path)

    def remove(self) -> None:
        """Delete the object; nothing happens when there is none."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path)

    def remove_tree(self) -> None:
        """Delete a folder with all that is in it; nothing happens when there is none."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.path, recursive=True)

    def remove_children(self, keep: str) -> None:
        """Delete everything in this folder but the object named `keep`; nothing happens when there is no folder."""
        self.fs.invalidate_cache(self.path)
        with contextlib.suppress(FileNotFoundError):
            for child in self.fs.ls(self.path, detail=False):
                if posixpath.basename(child.rstrip("/")) != keep:
                    self.fs.rm(child, recursive=True)

    def walk(self) -> Iterator[tuple[str, int]]:
        """(path relative to this folder, bytes) of every object below it, sorted."""
        self.fs.invalidate_cache(self.path)
        try:
            found = self.fs.find(self.path, detail=True)
        except FileNotFoundError:
            return
        prefix = self.path.rstrip("/") + "/"
        for path, info in sorted(found.items()):
            yield path.removeprefix(prefix), int(info["size"])

    def open_parquet(self) -> pq.ParquetFile:
        """The object as a Parquet file.

        Raises:
            DataError: there is no such object.
            SourceError: it is not Parquet, or its footer is damaged.
        """
        try:
            source = self.path if self.is_local else self.fs.open(self.path, "rb")
            return pq.ParquetFile(source, memory_map=self.is_local, pre_buffer=not self.is_local)
        except FileNotFoundError as error:
            raise DataError(f"{self.url} is gone; run `stillhouse verify` on its dataset") from error
        except (OSError, ValueError) as error:
            raise SourceError(f"{self.url} is not a readable Parquet file ({error}); replace or remove it") from error


@contextlib.contextmanager
def _temporary_beside(path: str) -> Iterator[str]:
    """A name in the same folder (made if need be) for a file that is renamed into place; removed if it is not."""
    folder, name = os.path.split(path)
    Path(folder).mkdir(parents=True, exist_ok=True)
    temporary = str(Path(folder) / f"_{name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
    finally:
        Path(temporary).unlink(missing_ok=True)


def _link_local(path: str, data: bytes) -> bool:
    """O_EXCL semantics with whole content: a hard link to a finished file fails when the name is taken."""
    with _temporary_beside(path) as temporary:
        Path(temporary).write_bytes(data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        return True
