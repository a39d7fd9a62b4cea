"""The Spark context of a run: created if there is none; the user's master and settings override every default.

Spark's output while it starts is written to the libraries' log (etl.library_log), unless the user has a log4j
configuration. If Spark cannot start, or its workers' Python does not work, that is a ConfigError with the JVM's reason;
the stack trace is in the log. A cold local context costs about 4 s.
"""

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from etl.artefacts import cache_dir
from etl.engines.class_archive import archive_folder, find_archive, make_archive, sharing
from etl.engines.java import Java, find_java
from etl.errors import ConfigError
from etl.extras import without_package
from etl.library_log import libraries_on_screen, log_path, stdout_aside

_SHUFFLE_BATCH_BYTES = 64 << 20
_DEFAULTS = {
    "spark.master": "local[*]",
    "spark.app.name": "stillhouse",
    "spark.log.level": "ERROR",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.execution.arrow.maxBytesPerBatch": str(_SHUFFLE_BATCH_BYTES),
    "spark.sql.session.timeZone": "UTC",
}
_SUBMIT_ARGS = "--name stillhouse --driver-memory 2g {options}--conf spark.ui.showConsoleProgress=false pyspark-shell"
"""For a JVM that we start ourselves; its memory and compiler cannot be changed once it runs."""
LIGHT_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""The JVM only moves Arrow's bytes, so that it is not worth the optimising compiler's time: it takes half the CPU of a
run of minutes. On a cluster the executors' JVMs also sort, for hours."""
_LOCAL_DEFAULTS = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
}
_PYTHON = "PYSPARK_PYTHON"
DAEMON = "etl.engines.spark_daemon"
_DAEMON_FILES = ("etl", DAEMON)
_DRIVER_OPTIONS = "spark.driver.extraJavaOptions"
_DRIVER_DEFAULT_OPTIONS = "spark.driver.defaultJavaOptions"
_ASK_TIMEOUT_S = 60
_OPTIONS_OF_ANY_JVM = ("SPARK_SUBMIT_OPTS", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")
_JVM_OPTIONS = ("PYSPARK_SUBMIT_ARGS", *_OPTIONS_OF_ANY_JVM)


_EMPTY_WORDS = (
    "at ",
    "An error occurred",
    "Error occurred during initialization",
    "WARNING",
    "NOTE: Picked up",
    "Picked up",
    "Using Spark's",
)
"""Beginnings of a JVM's lines that report a problem, or nothing, without its cause."""


def active_session() -> Any:
    """The session of this thread, if there is one."""
    from pyspark.sql import SparkSession

    return SparkSession.getActiveSession()


def make_context(report: Callable[[str], None]) -> Any:
    """A new context.

    Args:
        report: gets a line about the Java in use and the file with Spark's own log.

    Raises:
        ConfigError: Spark does not start with these settings, or its local workers would not.
    """
    from pyspark import SparkConf, SparkContext

    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        java = find_java()
        os.environ["JAVA_HOME"] = str(java.home)
        os.environ.setdefault("PYSPARK_SUBMIT_ARGS", _submit_args(java))
        log = None if _has_own_log4j() else log_path()
        report(f"{java.line}; Spark's log: {log}" if log else java.line)
    os.environ.setdefault(_PYTHON, sys.executable)
    with _explained(), _ctrl_c_is_pythons():
        # Only the JVM knows the settings of spark-submit and spark-defaults.conf; a SparkConf made before it is empty,
        # and what is then set in it would override them.
        with _where_the_jvm_writes():
            SparkContext._ensure_initialized()
        conf = SparkConf()
        defaults = dict(_DEFAULTS)
        if conf.get("spark.master", _DEFAULTS["spark.master"]).startswith("local"):
            check_python(os.environ[_PYTHON])
            defaults |= _LOCAL_DEFAULTS | _daemon(os.environ[_PYTHON])
        for key, value in defaults.items():
            if not conf.contains(key):
                conf.set(key, value)
        return SparkContext.getOrCreate(conf)


def make_class_archive(cache: Path) -> Path | str:
    """Make sure that later runs start their JVM from an archive of Spark's classes (etl/engines/class_archive.py).

    Costs 25 CPU-seconds if it is not there yet, in processes that end before this returns.

    Args:
        cache: the folder of `cache_dir()`, below which the archive lies.

    Returns:
        The archive, or a line with the reason why there is none.

    Raises:
        ConfigError: there is no Java for Spark.
    """
    if not _is_light():
        return "the master is a cluster, or the options of the JVM are your own"
    java = find_java()
    folder = archive_folder(cache, java, spark_home())
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        return find_archive(folder) or make_archive(folder, java, _light_args)


def _submit_args(java: Java) -> str:
    """The arguments of spark-submit; a light JVM if Spark runs only on this machine."""
    if not _is_light():
        return _SUBMIT_ARGS.format(options="")
    archive = find_archive(archive_folder(cache_dir(), java, spark_home()))
    return _light_args("" if archive is None else sharing(archive))


def _light_args(options: str) -> str:
    """The arguments of spark-submit for a light JVM with some more options."""
    return _SUBMIT_ARGS.format(options=f"--driver-java-options {shlex.quote(f'{LIGHT_JVM} {options}'.strip())} ")


def _is_light() -> bool:
    """Whether the JVM options are ours: Spark runs only on this machine, and the user has set none.

    Flags override spark-defaults.conf, and a JVM does not start with two garbage collectors, so if the user has set
    options there or in the environment, ours are left out.
    """
    settings = _user_defaults()
    has_own_options = settings.keys() & {_DRIVER_OPTIONS, _DRIVER_DEFAULT_OPTIONS} or any(
        map(os.environ.get, _OPTIONS_OF_ANY_JVM)
    )
    master = os.environ.get("MASTER", settings.get("spark.master", _DEFAULTS["spark.master"]))
    return master.startswith("local") and not has_own_options


def _user_defaults() -> dict[str, str]:
    """The settings of spark-defaults.conf."""
    found = (re.match(r"\s*([^#\s=:]+)[\s=:]+(.*\S)", line) for line in _defaults_text().splitlines())
    return {match[1]: match[2] for match in found if match}


def _defaults_text() -> str:
    file = _conf_folder() / "spark-defaults.conf"
    return file.read_text("utf-8", errors="replace") if file.is_file() else ""


def _conf_folder() -> Path:
    return Path(os.environ.get("SPARK_CONF_DIR") or spark_home() / "conf")


def spark_home() -> Path:
    """The folder of the Spark that runs: SPARK_HOME, or the package."""
    from pyspark.find_spark_home import _find_spark_home

    return Path(_find_spark_home())


def _daemon(executable: str) -> dict[str, str]:
    """The setting that makes local workers forks of spark_daemon.py, if they find the same files as we do.

    Files of `--py-files` reach workers after they were forked, so the daemon cannot be among them.
    """
    from pyspark import SparkContext

    assert SparkContext._jvm is not None, "the caller has started it"
    environment = {**os.environ, "PYTHONPATH": SparkContext._jvm.java.lang.System.getenv("PYTHONPATH") or ""}
    code = (
        f"import importlib.util; print(*(importlib.util.find_spec(name).origin for name in {_DAEMON_FILES}), sep='\\n')"
    )
    found = _answer(executable, code, environment)
    own = [importlib.util.find_spec(name) for name in _DAEMON_FILES]
    is_same = found.stdout.splitlines() == [spec.origin for spec in own if spec is not None]
    return {"spark.python.daemon.module": DAEMON} if is_same else {}


def check_python(executable: str) -> None:
    """Ask the Python that workers on this machine would run for its version; costs one start of it if it is not ours.

    Raises:
        ConfigError: it is not there, does not answer, or is of another minor version than this one.
    """
    if executable == sys.executable:
        return
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    advice = f"unset {_PYTHON}, or set it to a Python {mine} with this project installed"
    if shutil.which(executable) is None:
        raise ConfigError(f"{_PYTHON}={executable}: there is no such program; {advice}")
    answer = _answer(executable, "import sys; print('%d.%d' % sys.version_info[:2])", dict(os.environ))
    version = answer.stdout.strip()
    if answer.returncode != 0 or not re.fullmatch(r"\d+\.\d+", version):
        raise ConfigError(
            f"{_PYTHON}={executable} does not report its version (exit code {answer.returncode}); {advice}"
        )
    if version != mine:
        raise ConfigError(f"{_PYTHON}={executable} is Python {version}, but the driver is {mine}; {advice}")


def _answer(executable: str, code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The answer of a Python to some code, in a folder that contains nothing of ours.

    Raises:
        ConfigError: it does not start, or does not end.
    """
    # A path may be relative to the current folder.
    command = [os.path.abspath(shutil.which(executable) or executable), "-c", code]  # noqa: PTH100  # keeps links: a venv is one
    try:
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd="/", timeout=_ASK_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(
            f"{_PYTHON}={executable} does not start ({error}); unset {_PYTHON}, or set it to a Python "
            f"{sys.version_info.major}.{sys.version_info.minor} with this project installed"
        ) from error


def workers_fault(text: str) -> ConfigError | None:
    """The problem with the Python of a failed job's workers; None if that is not the reason."""
    if "PYTHON_VERSION_MISMATCH" in text or "Cannot run program" in text or "Error from python worker" in text:
        found = re.search(r"\[PYTHON_VERSION_MISMATCH\][^\n]*|Cannot run program[^\n]*", text)
        reason = found.group(0) if found else _told(text.partition("Error from python worker")[2])
        return ConfigError(
            f"the workers' Python does not work ({reason}); set {_PYTHON} (or spark.pyspark.python) to a Python "
            f"{sys.version_info.major}.{sys.version_info.minor} that every worker has, with this project installed"
        )
    return without_package(text)


# --- a start that fails --------------------------------------------------------------------------------------------


@contextmanager
def _explained() -> Iterator[None]:
    """What Spark raises while it starts, as one line with the reason; the full text goes to the log."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    log = None if _has_own_log4j() else log_path()
    begin = log.stat().st_size if log else 0
    try:
        yield
    except (Py4JError, PySparkException) as error:
        said = str(error)
        if log is not None:
            with log.open("r+", encoding="utf-8", errors="replace") as file:
                file.seek(begin)
                said = f"{file.read()}\n{said}" if "JAVA_GATEWAY_EXITED" in said else said
                file.seek(0, os.SEEK_END)
                file.write(f"{error}\n")
        raise ConfigError(
            f"Spark does not start: {_told(said)}; correct it in spark-defaults.conf, PYSPARK_SUBMIT_ARGS or the "
            "flags of spark-submit"
        ) from error


def _told(text: str) -> str:
    """The line of a JVM's output that gives the reason."""
    lines = [line.strip(" :\t") for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(_EMPTY_WORDS)]
    named = [line for line in lines if re.search("exception|error|invalid|could not", line, re.IGNORECASE)]
    line = next(iter(named), lines[0] if lines else "no reason given")
    # The class of an exception is less informative than its message.
    return re.sub(r"^(Exception in thread \"[^\"]*\" )?([\w$]+\.)+[\w$]+(Exception|Error): ", "", line).rstrip(".")


def _where_the_jvm_writes() -> AbstractContextManager[None]:
    return libraries_on_screen() if _has_own_log4j() else stdout_aside()


def _has_own_log4j() -> bool:
    """Whether the user sets where Spark's lines go: by a log4j file among its settings, or a JVM option."""
    if any("log4j" in os.environ.get(name, "") for name in _JVM_OPTIONS):
        return True
    return "log4j" in _defaults_text() or any(path.suffix != ".template" for path in _conf_folder().glob("log4j*"))


@contextmanager
def _ctrl_c_is_pythons() -> Iterator[None]:
    """Keep the handler of SIGINT: pyspark's handler asks the JVM to cancel jobs, in the middle of any other request."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
