"""The class-data archive: which one is used, how a JVM reports a wrong one, and a real one with a real Spark."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from etl.artefacts import cache_dir
from etl.digests import file_sha256
from etl.engines.class_archive import QUIET, archive_folder, find_archive, make_archive, sharing
from etl.engines.java import Java, find_java
from etl.engines.spark_session import _OPTIONS_OF_ANY_JVM, LIGHT_JVM, _light_args, make_class_archive

SESSION = """
from etl.engines.spark_session import make_context
context = make_context(lambda line: None)
print(context.parallelize(range(3)).count())
context.stop()
"""


@pytest.fixture
def spark_home(tmp_path: Path) -> Path:
    """A Java at `tmp_path/java` and a Spark of one jar."""
    for path in ("java/lib/server/libjvm.so", "spark/jars/spark-core.jar"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_bytes(b"")
    return tmp_path / "spark"


def test_another_java_or_jar_has_an_archive_of_its_own(spark_home, tmp_path):
    java = Java(tmp_path / "java", tmp_path / "java", "")
    folders = [archive_folder(tmp_path, java, spark_home)]
    assert archive_folder(tmp_path, java, spark_home) == folders[0]
    os.utime(spark_home / "jars" / "spark-core.jar", ns=(0, 1))
    folders.append(archive_folder(tmp_path, java, spark_home))
    (spark_home / "jars" / "more.jar").write_bytes(b"")
    folders.append(archive_folder(tmp_path, java, spark_home))
    (tmp_path / "java" / "lib" / "server" / "libjvm.so").write_bytes(b"newer")
    folders.append(archive_folder(tmp_path, java, spark_home))
    assert len(set(folders)) == 4


def test_an_archive_that_was_cut_short_or_changed_is_not_used(tmp_path):
    (tmp_path / "a").write_bytes(b"classes")
    archive = tmp_path / f"{file_sha256(tmp_path / 'a')}.jsa"
    archive.write_bytes(b"classes")
    (tmp_path / f"{'0' * 64}.jsa").write_bytes(b"of somebody else")
    assert find_archive(tmp_path) == archive
    archive.write_bytes(b"class")
    assert find_archive(tmp_path) is None


def test_a_path_with_spaces_reaches_the_jvm_as_one_option():
    assert shlex.split(sharing(Path("/a b/c.jsa"))) == [QUIET, "-XX:SharedArchiveFile=/a b/c.jsa"]


@pytest.mark.spark
def test_a_jvm_says_nothing_of_an_archive_that_is_not_one(tmp_path):
    archive = tmp_path / "x.jsa"
    archive.write_bytes(bytes(range(256)) * 32)
    command = [str(find_java().home / "bin" / "java"), *shlex.split(f"{LIGHT_JVM} {sharing(archive)}"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "shared archive" not in done.stdout + done.stderr
    assert "[cds" not in done.stdout + done.stderr


@pytest.mark.spark
def test_where_a_jvm_writes_none_its_reason_is_told(tmp_path):
    java = find_java()
    told = make_archive(tmp_path, java, lambda options: f"--driver-java-options '-Xmx1k {options}' pyspark-shell")
    assert isinstance(told, str)
    assert told.startswith("the JVM wrote no archive (exit code ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.spark
def test_a_jvm_takes_sparks_classes_from_the_archive(tmp_path, monkeypatch):
    for name in _OPTIONS_OF_ANY_JVM:
        monkeypatch.delenv(name, raising=False)
    # In the cache of all tests: the session of every later one starts from it.
    archive = make_class_archive(cache_dir())
    assert isinstance(archive, Path)
    assert make_class_archive(cache_dir()) == archive
    log = tmp_path / "classes.log"
    options = f"{sharing(archive)} -Xlog:class+load:file={log}"
    environment = {**os.environ, "PYSPARK_SUBMIT_ARGS": _light_args(options)}
    done = subprocess.run([sys.executable, "-c", SESSION], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "3\n", done.stderr
    session = next(line for line in log.read_text().splitlines() if " org.apache.spark.SparkContext source:" in line)
    assert session.endswith("source: shared objects file (top)")
