"""Files that the code needs but does not carry (models, vocabularies): named by URI and sha256, one copy a node.

A URI is a local path, any fsspec URL, or `package:NAME/path/in/it` for a file of an installed Python package, which is
found without importing the package. `#gunzip` at its end unpacks the file; the sha256 is always that of the result.
A local file is used where it lies. Everything else is copied once into `cache_dir()/artefacts/<sha256>/`, under a
file lock, through a temporary file that is renamed into place, so no process sees half a file. A digest is computed
once a process for each file (about 1 GB a second). No network is used unless the URI is a remote one.
"""

import contextlib
import functools
import gzip
import hashlib
import importlib.util
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, cast

from filelock import FileLock

from etl.errors import ConfigError
from etl.storage.location import Location

PACKAGE: Final = "package:"
GUNZIP: Final = "#gunzip"
LOCK_TIMEOUT_S: Final = 3600


def cache_dir() -> Path:
    """The writable folder for copies and compiled code, made if need be.

    STILLHOUSE_CACHE, else XDG_CACHE_HOME/stillhouse, else ~/.cache/stillhouse; where the home cannot be written (a
    container's worker), a folder of this user alone (mode 0700) in the system's temporary folder.

    Raises:
        ConfigError: STILLHOUSE_CACHE cannot be written, or the temporary folder belongs to somebody else.
    """
    chosen = os.environ.get("STILLHOUSE_CACHE")
    if chosen:
        path = Path(chosen).expanduser()
        if not _writable(path):
            raise ConfigError(f"STILLHOUSE_CACHE={chosen} cannot be made or written; name a folder that can, or unset it")
        return path
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(base) / "stillhouse"
    if path.is_absolute() and _writable(path):
        return path
    return _temporary_cache()


def _writable(path: Path) -> bool:
    """Make the folder; False where that, or writing into it, is not allowed."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(path, os.W_OK | os.X_OK)


def _temporary_cache() -> Path:
    """A folder of this user alone; a name taken by another user is refused, since what it holds is executed."""
    path = Path(tempfile.gettempdir()) / f"stillhouse-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{path} is not a folder that only user {os.getuid()} can write; "
            "remove it, or name a cache folder in STILLHOUSE_CACHE"
        )
    return path


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits. Reads the file once a process unless it changes."""
    found = os.stat(path)
    return _file_sha256(os.path.abspath(path), found.st_size, found.st_mtime_ns, found.st_ino)


@functools.lru_cache(maxsize=1024)
def _file_sha256(path: str, size: int, mtime_ns: int, inode: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(uri: str, sha256: str | None) -> Path:
    """The local path of an artefact, copied into the cache if it is not a plain local file.

    Args:
        uri: local path, fsspec URL or `package:NAME/path`, with `#gunzip` at its end to unpack it.
        sha256: hexadecimal digest that the (unpacked) file must have; None takes it as it is.

    Raises:
        ConfigError: the package, file or object is not there, or has another digest.
    """
    source, unpack = (uri.removesuffix(GUNZIP), True) if uri.endswith(GUNZIP) else (uri, False)
    location = Location.of(_package_file(source) if source.startswith(PACKAGE) else source)
    if location.is_local and not unpack:
        return _checked(Path(location.path), sha256, uri)
    name = location.name.removesuffix(".gz") if unpack else location.name
    folder = cache_dir() / "artefacts" / (sha256 or _change_key(location, uri))
    target = folder / name
    if not _is_cached(target, sha256):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock", timeout=LOCK_TIMEOUT_S):
            if not _is_cached(target, sha256):
                _copy(location, target, sha256, uri)
    return target


def _package_file(uri: str) -> Path:
    """The file that `package:NAME/path` names, without importing NAME."""
    package, _, relative = uri.removeprefix(PACKAGE).partition("/")
    if not package.isidentifier() or not relative:
        raise ConfigError(f"artefact '{uri}' is not of the form package:NAME/path/in/the/package")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"artefact '{uri}': the Python package '{package}' is not installed here; "
            "install it (requirements.lock names its distribution), or name another file in the recipe"
        )
    return Path(spec.submodule_search_locations[0]) / relative


def _checked(path: Path, sha256: str | None, uri: str) -> Path:
    if not path.is_file():
        raise ConfigError(f"artefact '{uri}': there is no file {path}; correct the name or put the file there")
    if sha256 is not None and file_sha256(path) != sha256:
        raise _wrong_digest(uri, path, sha256, file_sha256(path))
    return path


def _wrong_digest(uri: str, path: Path, expected: str, got: str) -> ConfigError:
    return ConfigError(
        f"artefact '{uri}': {path} has sha256 {got}, expected {expected}; it is another version or damaged: "
        "replace the file, or correct the name or the digest in the configuration"
    )


def _is_cached(target: Path, sha256: str | None) -> bool:
    """Whether the copy is there and whole; one that a full or failing disk has damaged is copied again."""
    return target.is_file() and (sha256 is None or file_sha256(target) == sha256)


def _change_key(location: Location, uri: str) -> str:
    """A folder name for an artefact without a digest: changes with its size, time or etag."""
    with _sources_errors(uri):
        info = cast(str, location.fs.ukey(location.path))
    return hashlib.sha256(f"{location.url}\0{info}".encode()).hexdigest()


@contextlib.contextmanager
def _sources_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError) as error:
        raise ConfigError(
            f"artefact '{uri}' cannot be read ({type(error).__name__}: {error}); correct the name, "
            "the credentials or the file"
        ) from error


def _copy(location: Location, target: Path, sha256: str | None, uri: str) -> None:
    """Copy, unpack if the URI says so, check, and rename into place."""
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with _sources_errors(uri), location.open() as packed, open(temporary, "wb") as out:
            source = gzip.GzipFile(fileobj=packed) if uri.endswith(GUNZIP) else packed
            shutil.copyfileobj(cast("IO[bytes]", source), out, 1 << 20)
        if sha256 is not None and file_sha256(temporary) != sha256:
            raise _wrong_digest(uri, Path(location.url), sha256, file_sha256(temporary))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
