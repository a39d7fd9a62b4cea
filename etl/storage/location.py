"""A folder or object on any fsspec file system, and the few operations that commits need.

`create` never overwrites and never shows a half-written object: on a local disk it hard-links a finished temporary
file, on an object store it is a conditional PUT, on HDFS a rename that fails when the name is taken. `replace`,
`upload` and `take` show nothing half-written either; on HDFS, which cannot rename over a file, there is none for a
moment. Remote operations are tried again (`etl.storage.retry`), and every failure is one of the four errors with one
line that says what to do (`etl.storage.remote`). A Location pickles to its URL and options, so workers open their own
connection.
The file is long because one class covers every store, and each operation documents the differences.
"""

import contextlib
import io
import os
import posixpath
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from etl.errors import DataError, SourceError, StillhouseError, said
from etl.storage.local_files import link_above, link_local, local_stamp, read_regular, temporary_beside
from etl.storage.remote import (
    Options,
    ambient_options,
    explain,
    no_bucket,
    open_file_system,
    scheme_of,
)
from etl.storage.retry import persist, status_of
from etl.urls import check_url

T = TypeVar("T")

UPLOAD_PART_BYTES = 16 << 20
"""Larger files go to S3 and GCS in pieces of this size; on S3 from twice this size on, four pieces at a time."""
READ_BYTES = 8 << 20
"""What one request brings when an object is read from its beginning to its end."""
_LOCAL_BUFFER_BYTES = 1 << 20
_DELETE_THREADS = 16
_RENAMING = frozenset({"hdfs"})
"""Schemes whose files show while they are written, so that they are written aside and renamed."""
_UPLOAD: dict[str, Options] = {
    "s3": {"chunksize": UPLOAD_PART_BYTES, "max_concurrency": 4},
    "gs": {"chunksize": UPLOAD_PART_BYTES},
}
_READ: dict[str, Options] = {"s3": {"max_concurrency": 1}}
"""One GET, without a HEAD before it."""
_CHANGING = (
    "ETag", "etag", "md5Hash", "checksum", "crc32c", "blob_id", "mtime", "LastModified", "Last-Modified", "updated"
)  # fmt: skip
_MODIFIED = ("LastModified", "mtime", "last_modified", "updated", "created")


@dataclass(frozen=True)
class Entry:
    """One object of a listing."""

    path: str
    """Relative to the folder that was listed."""
    bytes: int
    modified_unix_s: float | None
    """None where the store does not say."""


@dataclass(frozen=True)
class Location:
    """A URL (or local path) with the fsspec options that open it."""

    url: str
    options: Options = field(default_factory=dict, hash=False, repr=False)
    single_writer: bool = field(default=False, repr=False)
    """`create` checks, then writes: for stores without conditional creation, while nobody else writes there."""

    @classmethod
    def of(cls, url: "str | Path | Location", options: Options | None = None) -> "Location":
        """A Location from what a user wrote; local paths become absolute.

        Args:
            url: local path or URL.
            options: fsspec options; None takes those of `etl.storage.remote.storage_options`.

        Raises:
            ConfigError: the URL holds credentials.
        """
        if isinstance(url, Location):
            return url
        text = str(url)
        if "://" not in text:
            text = str(Path(text).expanduser().resolve())
        check_url(text)
        return cls(text.rstrip("/"), ambient_options(text) if options is None else options)

    @cached_property
    def fs(self) -> Any:
        """The fsspec file system (cached per process by fsspec).

        Raises:
            ConfigError: unknown scheme, a package that is not installed, or options that it does not take.
        """
        return open_file_system(self.url, self.options)

    @cached_property
    def path(self) -> str:
        """The path inside the file system."""
        return cast(str, self.fs._strip_protocol(self.url))

    @property
    def name(self) -> str:
        return posixpath.basename(self.url)

    @property
    def scheme(self) -> str:
        """Of the URL, aliases resolved; `file` for a local path."""
        return scheme_of(self.url)

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "options": self.options, "single_writer": self.single_writer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __truediv__(self, relative: str) -> "Location":
        """A place below this one.

        Raises:
            DataError: the path has a `.` or `..` piece, which would lead somewhere else.
        """
        if not _leads_down(relative):
            raise DataError(f"{relative!r} is not a place below {self.url}: it has a piece '.' or '..'")
        return Location(f"{self.url}/{relative}", self.options, self.single_writer)

    def __str__(self) -> str:
        return self.url

    @contextlib.contextmanager
    def explained(self, verb: str) -> Iterator[None]:
        """Turns failures of the store or disk inside the block into one of the four errors.

        A missing object is still a FileNotFoundError.
        """
        try:
            yield
        except Exception as error:
            told = explain(error, self.url, self.options, verb)
            if told is error:
                raise
            raise told from error

    def ask(self, verb: str, call: Callable[[], T]) -> T:
        """The result of an operation on the store, with retries of transient failures.

        Args:
            verb: read, list, write or remove.
            call: may be done twice.
        """
        with self.explained(verb):
            return call() if self.is_local else persist(call, f"{self.scheme} {self.fs._fs_token}")

    def exists(self) -> bool:
        return bool(self.ask("read", lambda: self.fs.exists(self.path)))

    def size(self) -> int | None:
        """Bytes of the object; None if there is none."""
        try:
            return int(self.ask("read", lambda: self.fs.info(self.path))["size"])
        except (FileNotFoundError, NotADirectoryError):
            return None

    def stamp(self) -> str:
        """What is another one when the object is written again: the store's etag, or a local file's time and size.

        Raises:
            FileNotFoundError: there is no such object.
        """
        if self.is_local:
            return local_stamp(Path(self.path).stat())
        return stamp_of(self.ask("read", lambda: self.fs.info(self.path)))

    def check_unchanged(self, stamp: str | None) -> None:
        """Compare a local file with what `stamp` said; of an object every read does that by itself.

        Raises:
            FileNotFoundError: there is no such file.
            SourceError: it was written again.
        """
        if stamp is not None and self.is_local and self.stamp() != stamp:
            raise _changed(self.url)

    def open(self, stamp: str | None = None) -> IO[bytes]:
        """The object for reading from its beginning to its end; on S3 and GCS all of it is of one version.

        Args:
            stamp: what `stamp` said when the read was planned; None takes the object as it is.

        Raises:
            FileNotFoundError: there is no such object.
            SourceError: it was written again since then, or while it is read.
        """
        if self.is_local:
            with self.explained("read"):
                file = Path(self.path).open("rb", buffering=_LOCAL_BUFFER_BYTES)  # noqa: SIM115  # the caller's
            if stamp is not None and local_stamp(os.fstat(file.fileno())) != stamp:
                file.close()
                raise _changed(self.url)
            return file
        return io.BufferedReader(_RangeReader(self, stamp), READ_BYTES)

    def read(self) -> bytes:
        """All bytes of the object.

        Raises:
            FileNotFoundError: there is no such object.
        """
        options = _READ.get(self.scheme, {})
        return cast(bytes, self.ask("read", lambda: self.fs.cat_file(self.path, **options)))

    def read_at_most(self, limit: int) -> bytes:
        """All bytes of an object that anybody may have put there.

        Raises:
            FileNotFoundError: there is no such object.
            DataError: it has more than `limit` bytes, or is no object but a folder, a pipe or a device.
        """
        if self.is_local:
            with self.explained("read"):
                data = read_regular(self.path, limit + 1)
        else:
            data = self.ask("read", lambda: self._first_bytes(limit + 1))
        if len(data) > limit:
            raise DataError(f"{self.url} has more than {limit:,} bytes, too many for its name; remove it")
        return data

    def _first_bytes(self, size: int) -> bytes:
        """One ranged GET."""
        try:
            return cast(bytes, self.fs.cat_file(self.path, start=0, end=size))
        except Exception as error:
            if status_of(error) == 416:  # an empty object has no first byte
                return b""
            raise

    def create(self, data: bytes) -> bool:
        """Write the object if none is there yet; False (and nothing written) when another one is.

        An object that is there with the very same bytes counts as written: a store may have done what it was asked and
        lost its answer, and the next try meets its own work.
        """
        if self.is_local and not self.single_writer:
            with self.explained("write"):
                return link_local(self.path, data)
        if self.ask("write", lambda: self._create_once(data)):
            return True
        try:
            return self.read() == data
        except FileNotFoundError:
            return False

    def _create_once(self, data: bytes) -> bool:
        if self.single_writer:
            if self.fs.exists(self.path):
                return False
            self._write(data)
            return True
        try:
            if self.scheme in _RENAMING:
                with self._written_aside(data) as aside:
                    if self.fs.exists(self.path):
                        return False
                    self.fs.mv(aside, self.path)
            else:
                self.fs.pipe_file(self.path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            # s3fs knows AWS's answer to If-None-Match; other stores say no more than 412.
            if status_of(error) == 412:
                return False
            raise
        return True

    def replace(self, data: bytes) -> None:
        """Write the object, in place of any that is there."""
        self.ask("write", lambda: self._write(data))

    def _write(self, data: bytes) -> None:
        if self.is_local:
            with temporary_beside(self.path) as temporary:
                Path(temporary).write_bytes(data)
                os.replace(temporary, self.path)
        elif self.scheme in _RENAMING:
            with self._written_aside(data) as aside:
                self._rename_over(aside)
        else:
            self.fs.pipe_file(self.path, data)

    def upload(self, local_file: str | Path) -> None:
        """Copy a finished local file to this object, visible only when whole."""
        self.ask("write", lambda: self._upload(str(local_file)))

    def take(self, local_file: str | Path) -> None:
        """As `upload`, of a file that nobody needs any more: on one disk it is moved, not copied."""
        self.ask("write", lambda: self._take(str(local_file)))

    def _take(self, local_file: str) -> None:
        if not self.is_local:
            self._upload(local_file)
            return
        with temporary_beside(self.path) as temporary:
            shutil.move(local_file, temporary)
            os.replace(temporary, self.path)

    def _upload(self, local_file: str) -> None:
        if self.is_local:
            with temporary_beside(self.path) as temporary:
                shutil.copyfile(local_file, temporary)
                os.replace(temporary, self.path)
        elif self.scheme in _RENAMING:
            with self._written_aside(b"") as aside:
                self.fs.put_file(local_file, aside)
                self._rename_over(aside)
        else:
            self.fs.put_file(local_file, self.path, **_UPLOAD.get(self.scheme, {}))

    @contextlib.contextmanager
    def _written_aside(self, data: bytes) -> Iterator[str]:
        """A whole file of the data beside this one, gone at the end unless it was renamed."""
        folder, name = posixpath.split(self.path)
        aside = f"{folder}/_{name}.{uuid.uuid4().hex}.tmp"
        self.fs.makedirs(folder, exist_ok=True)
        try:
            self.fs.pipe_file(aside, data)
            yield aside
        finally:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(aside)

    def _rename_over(self, aside: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path)
        self.fs.mv(aside, self.path)

    def remove(self) -> None:
        """Delete the object; nothing happens when there is none."""
        with contextlib.suppress(FileNotFoundError):
            self.ask("remove", lambda: self.fs.rm_file(self.path))

    def remove_tree(self) -> None:
        """Delete a folder with all that is in it; nothing happens when there is none."""
        if self.is_local:
            with contextlib.suppress(FileNotFoundError):
                self.ask("remove", lambda: self.fs.rm(self.path, recursive=True))
        else:
            self.remove_all([path for path, _ in self.walk()])

    def remove_children(self, keep: Collection[str]) -> None:
        """Delete everything in this folder but what is named in `keep`; nothing happens when there is none."""
        if self.is_local:
            with contextlib.suppress(FileNotFoundError), self.explained("remove"):
                for child in self.fs.ls(self.path, detail=False):
                    if posixpath.basename(child.rstrip("/")) not in keep:
                        self.fs.rm(child, recursive=True)
        else:
            self.remove_all([path for path, _ in self.walk() if path.partition("/")[0] not in keep])

    def remove_all(self, paths: list[str]) -> None:
        """Delete objects below this folder, several at a time.

        Raises:
            DataError: a path leads out of the folder, by its pieces or through a link.
        """
        for path in paths if self.is_local else ():
            if (link := link_above(self.path, path)) is not None:
                raise DataError(f"{link} is a link, and its target is not ours to remove; remove the link")
        # One request each: s3fs does not tell which objects of a bulk delete stayed.
        with ThreadPoolExecutor(_DELETE_THREADS) as pool:
            list(pool.map(lambda path: (self / path).remove(), paths))

    def walk(self) -> Iterator[tuple[str, int]]:
        """(path relative to this folder, bytes) of every object below it, sorted."""
        for entry in self.entries():
            yield entry.path, entry.bytes

    def entries(self) -> Iterator[Entry]:
        """Every object below this folder, sorted by path, as the store lists it now.

        Keys of a store with a piece `.` or `..` are left out: no run writes them, and some readers would follow them.
        """
        try:
            found = self.ask("list", self._find)
        except FileNotFoundError:
            return
        prefix = self.path.rstrip("/") + "/"
        for path, info in sorted(found.items()):
            relative = path.removeprefix(prefix)
            is_object = path.startswith(prefix) and not path.endswith("/") and info.get("type") != "directory"
            if is_object and _leads_down(relative):
                yield Entry(relative, int(info["size"]), _modified(info))

    def _find(self) -> dict[str, Any]:
        self.fs.invalidate_cache(self.path)
        return cast(dict[str, Any], self.fs.find(self.path, detail=True))

    def check_bucket(self) -> None:
        """Ask S3 or GCS for the bucket, since some stores make a missing one when something is written to it.

        Raises:
            ConfigError: there is no such bucket, or the store cannot be reached or accepts no credentials.
            DataError: these credentials may not list it.
        """
        if self.scheme not in ("s3", "gs"):
            return
        bucket, key, _ = self.fs.split_path(self.path)

        def look() -> Any:
            if self.scheme == "gs":
                return self.fs.call("GET", "b/{}/o", bucket, prefix=key, maxResults=1)
            return self.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)

        try:
            self.ask("list", look)
        except FileNotFoundError as error:
            raise no_bucket(self.url) from error

    def open_parquet(self, stamp: str | None = None, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
        """The object as a Parquet file; pages that were written with a checksum, as ours are, are compared with it.

        Args:
            stamp: as for `open`.
            footer: its metadata, where they were read before; they are not read again.

        Raises:
            DataError: there is no such object.
            SourceError: it is not Parquet, its footer is damaged, or it was written again.
        """
        try:
            self.check_unchanged(stamp)
            source = self.path if self.is_local else _RangeReader(self, stamp)
            how = {"memory_map": True} if self.is_local else {"pre_buffer": True}
            return pq.ParquetFile(source, metadata=footer, page_checksum_verification=True, **how)
        except FileNotFoundError as error:
            raise DataError(f"{self.url} is missing; for a dataset of ours run `stillhouse verify`") from error
        except (StillhouseError, MemoryError):
            raise
        except Exception as error:
            # An error of the disk has a number; one of the library, of whatever class, is about what is in the file.
            told = explain(error, self.url, self.options, "read") if getattr(error, "errno", None) else error
            if told is error:
                told = SourceError(f"{self.url} is not a readable Parquet file ({said(error)}); replace or remove it")
            raise told from error


class _RangeReader(io.RawIOBase):
    """An object as a file: every read is one ranged GET that is tried again, and all of them see one version."""

    def __init__(self, location: Location, stamp: str | None) -> None:
        super().__init__()
        self._location = location
        self._position = 0
        with self._unchanged():
            info = location.ask("read", lambda: location.fs.info(location.path))
        if info.get("type") == "directory":
            raise FileNotFoundError(location.url)
        if stamp is not None and stamp_of(info) != stamp:
            raise _changed(location.url)
        self._size = int(info["size"])
        self._stamp = stamp_of(info)
        self._fetch = self._fetcher(info)

    def _fetcher(self, info: dict[str, Any]) -> Callable[[int, int], bytes]:
        """Gets bytes [start, end) of the version that `info` describes, where the store can say so."""
        fs, path = self._location.fs, self._location.path
        if self._location.scheme == "gs":
            pinned = {"generation": info["generation"]} if info.get("generation") else {}
            return lambda start, end: fs.cat_file(path, start=start, end=end, **pinned)
        # s3fs sends If-Match with the etag that it saw when the file was opened.
        file = self._location.ask("read", lambda: fs.open(path, "rb", cache_type="none"))
        details = getattr(file, "details", None)
        if isinstance(details, dict) and stamp_of(details) not in ("", self._stamp):
            raise _changed(self._location.url)

        def fetch(start: int, end: int) -> bytes:
            file.seek(start)
            return cast(bytes, file.read(end - start))

        return fetch

    @contextlib.contextmanager
    def _unchanged(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if "FileExpired" in type(error).__name__ or status_of(error) == 412:
                raise _changed(self._location.url) from error
            raise

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._size, self._position + size)
        if end <= self._position:
            return b""
        start = self._position
        try:
            with self._unchanged():
                data = self._location.ask("read", lambda: self._fetch(start, end))
        except FileNotFoundError as error:
            raise _changed(self._location.url) from error
        if len(data) != end - start:
            raise _changed(self._location.url)
        self._position = end
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)


def _leads_down(relative: str) -> bool:
    return "." not in relative or not {".", ".."}.intersection(relative.split("/"))


def stamp_of(info: dict[str, Any]) -> str:
    """What changes in an fsspec description when its object is written again; empty where the store tells nothing."""
    for key in _CHANGING:
        if info.get(key):
            return str(info[key]).strip('"')
    return ""


def _changed(url: str) -> SourceError:
    return SourceError(f"{url} changed while it was read; run again when nobody writes to it")


def _modified(info: dict[str, Any]) -> float | None:
    for key in _MODIFIED:
        value = info.get(key)
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None
