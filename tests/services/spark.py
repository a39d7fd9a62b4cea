"""A Spark standalone cluster for tests: a master and workers of the pip package, on free ports of the loopback.

Worker n is the host 127.0.0.n: Spark runs no second attempt of a task on a host that has the first.

`spark-class` becomes its JVM (it ends in exec), so stopping it stops master and worker; a worker takes its executors
with it. Ready after 5 to 8 s; each JVM may take 256 MiB of heap, an executor what the application asks for.
"""

import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.engines.java import find_java
from tests.environment import JVM_ENVIRONMENT
from tests.services.process import free_ports, running

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Cluster:
    """A running master."""

    url: str
    """For --master."""
    web_url: str
    environment: Mapping[str, str]
    """In which to start spark-submit."""

    def state(self) -> dict[str, Any]:
        """What the master's web page knows: workers, active and completed applications."""
        return get_json(f"{self.web_url}/json/")

    def num_workers(self) -> int:
        """Workers that are alive; -1 while the master itself is not up."""
        try:
            state = self.state()
        except (urllib.error.URLError, json.JSONDecodeError):
            return -1
        return int(state["aliveworkers"]) if state["status"] == "ALIVE" else -1

    def submit(self, folder: Path, *arguments: str) -> str:
        """Standard output of spark-submit, run in a folder.

        Raises:
            AssertionError: it failed.
        """
        command = [str(BIN / "spark-submit"), "--master", self.url, *arguments]
        done = subprocess.run(
            command, cwd=folder, env=dict(self.environment), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout


def spark_environment(folder: Path) -> dict[str, str]:
    """An environment in which Spark writes below a folder only, and HOME can neither be made nor written."""
    return {
        **os.environ,
        **JVM_ENVIRONMENT,
        "HOME": "/proc/no-home",
        "JAVA_HOME": str(find_java().home),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_CONF_DIR": str(folder),
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_LOCAL_DIRS": str(folder / "local"),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }


@contextlib.contextmanager
def standalone_cluster(folder: Path, num_workers: int = 2, cores: int = 1, conf: str = "") -> Iterator[Cluster]:
    """A master with workers of this many cores and 2,000 MiB each; logs and work folders are in `folder`.

    Args:
        folder: the test's own.
        num_workers: number of workers.
        cores: of each worker.
        conf: settings of master and workers, one a line, such as the GPUs that a worker has.
    """
    environment = spark_environment(folder)
    port, web_port = free_ports(2)
    cluster = Cluster(f"spark://127.0.0.1:{port}", f"http://127.0.0.1:{web_port}", environment)
    settings = folder / "daemons.conf"
    settings.write_text(f"spark.master.rest.enabled false\n{conf}")

    def daemon(kind: str, log: str, host: str, has_workers: int, *arguments: str) -> AbstractContextManager[object]:
        command = [str(BIN / "spark-class"), f"org.apache.spark.deploy.{kind}", "--host", host]
        command += ["--properties-file", str(settings), *arguments]
        there = {**environment, "SPARK_LOCAL_IP": host}
        return running(command, folder / log, lambda: cluster.num_workers() == has_workers, there)

    with contextlib.ExitStack() as stack:
        ports = ("--port", str(port), "--webui-port", str(web_port))
        stack.enter_context(daemon("master.Master", "master.log", "127.0.0.1", 0, *ports))
        for number in range(num_workers):
            size = ("--cores", str(cores), "--memory", "2000m", "--webui-port", "0")
            work = ("--work-dir", str(folder / f"worker-{number}"), cluster.url)
            log = f"worker-{number}.log"
            stack.enter_context(daemon("worker.Worker", log, f"127.0.0.{number + 1}", number + 1, *size, *work))
        yield cluster


@contextlib.contextmanager
def history_server(folder: Path, events: Path) -> Iterator[str]:
    """The REST address of a history server over a folder of event logs."""
    (port,) = free_ports(1)
    conf = folder / "history.conf"
    conf.write_text(f"spark.history.ui.port {port}\nspark.history.fs.logDirectory file://{events}\n")
    command = [
        str(BIN / "spark-class"),
        "org.apache.spark.deploy.history.HistoryServer",
        "--properties-file",
        str(conf),
    ]
    address = f"http://127.0.0.1:{port}/api/v1"
    with running(command, folder / "history.log", lambda: _answers(f"{address}/version"), spark_environment(folder)):
        yield address


def _answers(url: str) -> bool:
    try:
        get_json(url)
    except OSError:
        return False
    return True


def get_json(url: str) -> Any:
    """The JSON behind an address."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)
