"""Digests of a file by its bytes, a folder by its files, and a JSON value regardless of the order of its keys.

Rows are hashed by etl/hashing.py. This file loads no kernel, so programs that only need digests start without numba.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import xxhash


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits; read once per process (about 1 GB/s) unless the file changes.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    resolved = Path(path).resolve()
    found = resolved.stat()
    return _sha256(resolved, found.st_size, found.st_mtime_ns, found.st_ino)


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, *_state: int) -> str:
    """The digest of the file in this state: size in bytes, modification time in ns, inode."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 of the names and digests of a folder's files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder).as_posix()}\0{file_sha256(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """16 hexadecimal digits, the XXH64 of the canonical JSON of a value."""
    return xxhash.xxh64_hexdigest(canonical_json(value).encode())
