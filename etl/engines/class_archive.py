"""Spark's classes in a class-data archive, which the JVM maps instead of loading and verifying each class.

A session and a first job take 6 CPU-seconds of a JVM with the archive and 10 without. Making it takes a run of Spark
in a process of its own, 25 CPU-seconds and 160 MB below `cache_dir()/java`, so `stillhouse warm` does that and a run
uses what it finds. An archive is found by what must be the same: the Java, and the files of the class path by their
paths, sizes and times. Its name is its SHA-256, checked at each use (0.1 CPU-seconds), because a JVM that maps a
truncated file dies. If the class path differs in another way, the JVM itself silently refuses the archive (`QUIET`)
and continues without it.
"""

import hashlib
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from etl.digests import file_sha256
from etl.engine import Exchange, Work
from etl.engines.java import Java
from etl.storage.progress import Counts

QUIET: Final = "-Xlog:cds*=off"
"""A JVM's message about an archive that it does not use does not help the user."""
_TIMEOUT_S: Final = 600


def find_archive(folder: Path) -> Path | None:
    """The undamaged archive in a folder of `archive_folder`; None where there is none."""
    return next((path for path in sorted(folder.glob("*.jsa")) if file_sha256(path) == path.stem), None)


def archive_folder(cache: Path, java: Java, spark_home: Path) -> Path:
    """Where the archives for this Java and this Spark are, or would be."""
    digest = hashlib.sha256()
    for path in _files(java, spark_home):
        found = path.stat()
        digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return cache / "java" / f"classes-{digest.hexdigest()[:16]}"


def _files(java: Java, spark_home: Path) -> Iterator[Path]:
    yield from sorted((java.runtime / "lib" / "server").glob("*jvm.*"))
    yield from sorted((spark_home / "jars").glob("*.jar"))


def sharing(archive: Path) -> str:
    """The JVM options to use the archive, as Spark's launcher reads them."""
    return f"{QUIET} {shlex.quote(f'-XX:SharedArchiveFile={archive}')}"


def make_archive(folder: Path, java: Java, submit_args: Callable[[str], str]) -> Path | str:
    """Run Spark once in a process of its own, whose JVM writes its classes when it ends.

    Args:
        folder: the result of `archive_folder`; it must exist.
        java: the Java that Spark runs on.
        submit_args: makes PYSPARK_SUBMIT_ARGS of that process from JVM options to add to those of every run.

    Returns:
        The archive, or a line with the reason why there is none.
    """
    temporary = folder / f"{uuid.uuid4().hex}.tmp"
    options = f"-Xlog:disable -Xlog:all=error:stderr {shlex.quote(f'-XX:ArchiveClassesAtExit={temporary}')}"
    environment = {**os.environ, "JAVA_HOME": str(java.home), "PYSPARK_SUBMIT_ARGS": submit_args(options)}
    try:
        ended = subprocess.run(
            [sys.executable, "-m", __name__],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if ended.returncode != 0 or not temporary.is_file():
            said = [line.strip() for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
            reason = next((line for line in said if "CDS" in line), said[-1] if said else "it printed nothing")
            return f"the JVM wrote no archive (exit code {ended.returncode}): {reason}"
        return temporary.replace(folder / f"{file_sha256(temporary)}.jsa")
    except subprocess.TimeoutExpired:
        return f"Spark did not end within {_TIMEOUT_S} s"
    finally:
        temporary.unlink(missing_ok=True)


# --- in that process -----------------------------------------------------------------------------------------------

_ROWS: Final = pa.schema([("bucket", pa.int32())])


def main() -> int:
    """Run one job of each verb; returns the exit code of the JVM."""
    from pyspark import SparkContext

    from etl.engines.spark import SparkEngine

    engine = SparkEngine()
    work = Work("classes", 2, 2)
    engine.run_splits(work, [(0, None), (1, None)], lambda _number, _split: Counts())
    exchange = Exchange((0, 1), lambda split: [pa.record_batch([[split]], schema=_ROWS)], _ROWS, ("bucket",), 2)
    engine.run_buckets(work, [0, 1], exchange, _count)
    engine.close()
    gateway: Any = SparkContext._gateway
    gateway.proc.stdin.close()
    return int(gateway.proc.wait())


def _count(_bucket: int, rows: Iterator[pa.RecordBatch]) -> Counts:
    return Counts(sum(batch.num_rows for batch in rows))


if __name__ == "__main__":
    sys.exit(main())
