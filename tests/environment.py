"""The environment of tests: nothing of the user's, one cache for every session, JVMs that start quickly.

Imports nothing of the project, so that it can be set before anything of the project is imported.
"""

import os
import sys
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).resolve().parents[1]
JVM_ENVIRONMENT: Final = {"JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}
"""`bin/java` reads it since Java 9, so it reaches Spark's launcher, drivers, daemons and executors alike. A JVM of a
test lives for seconds: the second compiler and the threads of the default collector would only cost."""


def set_environment(home: Path) -> None:
    """Change the environment of this process and its children; `home` is an empty folder.

    The cache is `build/test-cache` in the project unless STILLHOUSE_CACHE names one.
    """
    os.environ["HOME"] = str(home)
    os.environ.pop("XDG_CACHE_HOME", None)
    os.environ.setdefault("STILLHOUSE_CACHE", str(PROJECT / "build" / "test-cache"))
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.update(JVM_ENVIRONMENT)
