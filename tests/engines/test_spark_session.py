"""A Spark that cannot start: the workers' Python, what a JVM says, and one that does not start."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from etl.engines.java import Java
from etl.engines.spark_daemon import VOCABULARY
from etl.engines.spark_session import (
    _OPTIONS_OF_ANY_JVM,
    DAEMON,
    LIGHT_JVM,
    _has_own_log4j,
    _submit_args,
    _told,
    check_python,
    make_class_archive,
    workers_fault,
)
from etl.errors import ConfigError
from etl.harmony.vocabulary import DEFAULT_VOCABULARY

JAVA = Java(Path("/java"), Path("/java"), "")
PROJECT = Path(__file__).resolve().parents[2]
PY4J = """An error occurred while calling None.org.apache.spark.api.java.JavaSparkContext.
: org.apache.spark.SparkException: Could not parse Master URL: 'x'
\tat org.apache.spark.Error.f(Some.scala:1)
"""


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_python_that_is_absent_of_another_version_or_none_is_refused(tmp_path, monkeypatch):
    check_python(sys.executable)
    check_python(script(tmp_path / "same", f'exec {sys.executable} "$@"'))
    monkeypatch.chdir(tmp_path)
    check_python("./same")
    with pytest.raises(ConfigError, match=r"/absent: there is no such program; unset PYSPARK_PYTHON"):
        check_python("/absent")
    with pytest.raises(ConfigError, match=r"older is Python 3\.7, but the driver is 3\.\d+"):
        check_python(script(tmp_path / "older", "echo 3.7"))
    with pytest.raises(ConfigError, match=r"does not report its version \(exit code 3\)"):
        check_python(script(tmp_path / "broken", "exit 3"))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (PY4J, "Could not parse Master URL: 'x'"),
        ("Error occurred during initialization of VM\nToo small maximum heap\n", "Too small maximum heap"),
        ("WARNING: Using incubator modules\nInvalid heap size: -Xmx1x\nError: x", "Invalid heap size: -Xmx1x"),
        ('Exception in thread "main" a.b.IllegalArgumentException: bad flag', "bad flag"),
        ("", "no reason given"),
    ],
)
def test_the_reason_among_what_a_jvm_says(said, reason):
    assert _told(said) == reason


def test_a_job_whose_workers_have_no_python_is_told_apart_from_a_bug():
    told = workers_fault('java.io.IOException: Cannot run program "/absent": error=2, No such file\n\tat x')
    assert 'Cannot run program "/absent": error=2, No such file' in str(told)
    assert "python3: no pyspark" in str(workers_fault("Error from python worker:\n  python3: no pyspark\n"))
    assert "stillhouse[score]" in str(workers_fault("ModuleNotFoundError: No module named 'kenlm'"))
    assert workers_fault("ZeroDivisionError") is None


def test_a_log4j_file_or_option_of_the_users_is_seen(tmp_path, monkeypatch):
    for name in ("PYSPARK_SUBMIT_ARGS", "SPARK_SUBMIT_OPTS", "JAVA_TOOL_OPTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    (tmp_path / "log4j2.properties.template").write_text("")
    (tmp_path / "spark-defaults.conf").write_text("spark.master local[2]\n")
    assert not _has_own_log4j()
    (tmp_path / "log4j2.properties").write_text("")
    assert _has_own_log4j()
    (tmp_path / "log4j2.properties").unlink()
    (tmp_path / "spark-defaults.conf").write_text("spark.driver.extraJavaOptions -Dlog4j2.configurationFile=x\n")
    assert _has_own_log4j()


@pytest.fixture
def defaults(tmp_path, monkeypatch):
    """spark-defaults.conf of a user who has set nothing else."""
    for name in ("MASTER", "PYSPARK_SUBMIT_ARGS", *_OPTIONS_OF_ANY_JVM):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    return tmp_path / "spark-defaults.conf"


@pytest.mark.parametrize("text", ["", "spark.master local[4]\n", "# spark.master yarn\nspark.app.name=x\n"])
def test_the_jvm_of_a_local_run_is_light(defaults, text):
    defaults.write_text(text)
    assert f"--driver-java-options '{LIGHT_JVM}'" in _submit_args(JAVA)


@pytest.mark.parametrize(
    ("text", "variable"),
    [
        ("spark.master=spark://host:7077\n", None),
        ("spark.driver.extraJavaOptions: -XX:+UseG1GC\n", None),
        ("", ("MASTER", "yarn")),
        ("", ("JAVA_TOOL_OPTIONS", "-XX:+UseG1GC")),
    ],
)
def test_a_cluster_or_options_of_the_users_leave_the_jvm_alone(defaults, tmp_path, monkeypatch, text, variable):
    defaults.write_text(text)
    if variable is not None:
        monkeypatch.setenv(*variable)
    assert "java-options" not in _submit_args(JAVA)
    assert make_class_archive(tmp_path) == "the master is a cluster, or the options of the JVM are your own"


PRELOADED = """
import sys
from etl.engines.spark_session import make_context

def on_a_worker(_):
    # Before anything of ours is imported here.
    import sys
    shared = "etl.run.run" in sys.modules
    bpe = sys.modules.get("etl.harmony.bpe")
    yield shared and bpe.load_fast_bpe.cache_info().currsize == 1

context = make_context(lambda line: None)
found = context.parallelize(range(2), 2).mapPartitions(on_a_worker).collect()
print(context.getConf().get("spark.python.daemon.module", "none"), found)
context.stop()
"""


@pytest.mark.slow
@pytest.mark.spark
@pytest.mark.parametrize("is_installed", [True, False])
def test_executors_on_this_machine_fork_workers_that_have_our_modules_and_tokenizers(tmp_path, is_installed):
    # The workers of a local-cluster are asked for what a plain start of their Python finds.
    copy = tmp_path / "package"
    shutil.copytree(PROJECT / "etl", copy / "etl", ignore=shutil.ignore_patterns("__pycache__"))
    options = {"PYSPARK_SUBMIT_ARGS": "--master local-cluster[1,2,1024] pyspark-shell", VOCABULARY: DEFAULT_VOCABULARY}
    environment = {**os.environ, **options}
    (tmp_path / "job.py").write_text(
        PRELOADED if is_installed else f"import sys\nsys.path.insert(0, {str(copy)!r})\n{PRELOADED}"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "job.py")], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (f"{DAEMON} [True, True]" if is_installed else "none [False, False]")


@pytest.mark.spark
def test_a_jvm_that_does_not_start_is_one_line_with_its_reason():
    # In a process of its own, since one has a single JVM for all of its sessions.
    code = (
        "import sys\n"
        "from etl.console import main_of\n"
        "from etl.engines.spark_session import make_context\n"
        "from etl.library_log import libraries_aside\n"
        "sys.exit(main_of(libraries_aside()(lambda: make_context(print))))"
    )
    environment = {**os.environ, "PYSPARK_SUBMIT_ARGS": "--driver-memory 1m pyspark-shell"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch("ConfigError: Spark does not start: Too small maximum heap; .*; log: /.*\n", done.stderr)
    assert re.fullmatch("Java .*; Spark's log: /.*\n", done.stdout)
