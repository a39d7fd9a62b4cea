"""Files that the code needs but does not ship (models, vocabularies): a URI and a sha256, one copy per node.

A URI is a local path, any fsspec URL, or `package:NAME/path/in/it` for a file of an installed Python package,
which is found without importing the package. `#gunzip` at its end unpacks the file; the sha256 is always that
of the result. A local file is used in place. Everything else is copied once per node into
`cache_dir()/artefacts/<sha256>/`, under a file lock, through a temporary file that is renamed into place, so
that no process sees a partial file. The network is only used for remote URIs.
"""

import contextlib
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

from etl.digests import file_sha256
from etl.errors import ConfigError, StillhouseError, decoding
from etl.storage.location import Location

PACKAGE: Final = "package:"
GUNZIP: Final = "#gunzip"
LOCK_TIMEOUT_S: Final = 3600
CHUNK_BYTES: Final = 1 << 20


def cache_dir() -> Path:
    """The writable folder for copies and compiled code; created if needed.

    STILLHOUSE_CACHE, else XDG_CACHE_HOME/stillhouse, else HOME/.cache/stillhouse. If that is not writable (as on a
    container's worker), a private folder (mode 0700) in the system's temporary folder.

    Raises:
        ConfigError: STILLHOUSE_CACHE cannot be written, or the temporary folder belongs to somebody else.
    """
    chosen = os.environ.get("STILLHOUSE_CACHE")
    if chosen:
        path = Path(chosen).absolute()
        if not _writable(path):
            raise ConfigError(
                f"STILLHOUSE_CACHE={chosen} cannot be created or written; give a writable folder, or unset it"
            )
        return path
    for base in (Path(os.environ.get("XDG_CACHE_HOME", "")), Path(os.environ.get("HOME", "")) / ".cache"):
        if base.is_absolute():  # the XDG specification says to ignore a relative one
            path = base / "stillhouse"
            return path if _writable(path) else _temporary_cache()
    return _temporary_cache()


def _writable(path: Path) -> bool:
    """Create the folder; False if that, or writing to it, is not permitted."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(path, os.W_OK | os.X_OK)


def _temporary_cache() -> Path:
    """A private folder of this user; anybody else's is refused, as compiled code in it is executed."""
    path = Path(tempfile.gettempdir()) / f"stillhouse-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{path} is not a folder that user {os.getuid()} alone can use; "
            "remove it, or name a cache folder in STILLHOUSE_CACHE"
        )
    return path


def fetch(uri: str, sha256: str | None) -> Path:
    """The local path of an artefact, copied into the cache if it is not a plain local file.

    Args:
        uri: local path, fsspec URL or `package:NAME/path`, with `#gunzip` at its end to unpack it.
        sha256: hexadecimal digest that the (unpacked) file must have; None takes it as it is.

    Raises:
        ConfigError: the package, file or object is not there, or has another digest.
    """
    source = uri.removesuffix(GUNZIP)
    unpack = source != uri
    local = _local_path(source)
    if local is not None and not local.is_file():
        raise ConfigError(f"artefact '{uri}': there is no file {local}; correct the name, or put the file there")
    if local is not None and not unpack:
        if sha256 is not None and file_sha256(local) != sha256:
            raise _wrong_digest(uri, local, sha256, file_sha256(local))
        return local
    url = source if local is None else str(local)
    name = url.rsplit("/", 1)[-1]
    folder = cache_dir() / "artefacts" / (sha256 or _change_key(uri, url))
    target = folder / (name.removesuffix(".gz") if unpack else name)
    if not _is_cached(target, sha256):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{target.name}.lock", timeout=LOCK_TIMEOUT_S):
            if not _is_cached(target, sha256):
                _copy(uri, url, target, sha256)
    return target


def _local_path(source: str) -> Path | None:
    """Local path of a URI without `#gunzip`; None for a remote one."""
    if source.startswith(PACKAGE):
        return _package_file(source)
    if source.startswith("file://"):
        return Path(source.removeprefix("file://"))
    return None if "://" in source else Path(source).expanduser().absolute()


def _package(uri: str) -> str:
    """NAME in `package:NAME/path`."""
    return uri.removeprefix(PACKAGE).partition("/")[0]


def _package_file(uri: str) -> Path:
    """The file that `package:NAME/path` names, without importing NAME."""
    package, relative = _package(uri), uri.removeprefix(PACKAGE).partition("/")[2]
    if not package.isidentifier() or not relative:
        raise ConfigError(f"artefact '{uri}' is not of the form package:NAME/path/in/the/package")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"artefact '{uri}': the Python package '{package}' is not installed here; install it "
            "(requirements.lock has its distribution), or give another file in the recipe"
        )
    return Path(spec.submodule_search_locations[0]) / relative


def _wrong_digest(uri: str, place: str | Path, expected: str, got: str) -> ConfigError:
    remedy = "replace the file, or correct the name or the digest in the configuration"
    if uri.startswith(PACKAGE):
        remedy = f"reinstall '{_package(uri)}' in the version of requirements.lock"
    return ConfigError(
        f"artefact '{uri}': {place} has sha256 {got}, expected {expected}; it is another version, or damaged; {remedy}"
    )


def _is_cached(target: Path, sha256: str | None) -> bool:
    """Whether there is an intact copy; one damaged by a full or failing disk is copied again."""
    return target.is_file() and (sha256 is None or file_sha256(target) == sha256)


def _change_key(uri: str, url: str) -> str:
    """A folder name for an artefact without a digest: it changes with the object's size, time or etag."""
    with _readable(uri):
        place = Location.of(url)
        version = place.ask("read", lambda: place.fs.ukey(place.path))
        return hashlib.sha256(f"{url}\0{version}".encode()).hexdigest()


@contextlib.contextmanager
def _readable(uri: str) -> Iterator[None]:
    """Turn a failed read into one line for the user."""
    try:
        yield
    except (OSError, EOFError, ValueError, StillhouseError) as error:
        raise ConfigError(
            f"artefact '{uri}' cannot be read ({type(error).__name__}: {error}); "
            "correct the name, the credentials or the file"
        ) from error


def _copy(uri: str, url: str, target: Path, sha256: str | None) -> None:
    """Copy, unpack if the URI says so, check, and rename into place."""
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with _readable(uri), Location.of(url).open() as packed, temporary.open("wb") as out:
            source = gzip.GzipFile(fileobj=packed) if uri.endswith(GUNZIP) else packed
            with decoding(url):
                shutil.copyfileobj(cast("IO[bytes]", source), out, CHUNK_BYTES)
        if sha256 is not None and file_sha256(temporary) != sha256:
            raise _wrong_digest(uri, url, sha256, file_sha256(temporary))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
