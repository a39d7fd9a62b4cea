"""kill -9 at processes of a real run: its driver, a Spark executor, a Python worker, at moments drawn from a seed.

The run is the command line in a session of its own, so that everything it started can be found and, in the end, ended.
A killed driver is started again at once, on the same output, while executors of the dead one may still be at work; so
is a run of the local engine that lost a worker. After other kills the engine has to help itself. A start of Spark costs
10 s on two idle cores, of Beam 4 s.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from etl.engines.java import find_java
from tests.environment import JVM_ENVIRONMENT
from tests.services.process import wait_until

_SUBMIT = "--master local-cluster[1,2,1024] --driver-memory 1g --conf spark.ui.enabled=false pyspark-shell"
"""One worker, one executor with two cores in a JVM of its own."""
_MOST_DATASETS = 3
_MOST_MORE_CPU_S = 1.0
_RUN_TIMEOUT_S = 300.0
_PROC = Path("/proc")
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_DATASET = re.compile(rb"^ *\S+ +[\d,]+ rows  ", re.MULTILINE)


class Victim(StrEnum):
    DRIVER = "driver"
    EXECUTOR = "executor"
    PYTHON = "Python worker"
    """Of a Spark executor."""
    LOCAL = "worker of the local engine"


SPARK_VICTIMS = (Victim.DRIVER, Victim.EXECUTOR, Victim.PYTHON)
ENDING_THE_RUN = (Victim.DRIVER, Victim.LOCAL)
"""After whose end a run is over, and the next one goes on from what it left."""


_COMMAND_OF = {
    Victim.EXECUTOR: b"CoarseGrainedExecutorBackend",
    Victim.PYTHON: b"daemon\0pyspark.worker",
    Victim.LOCAL: b"jobs.cli",
}


Command = Callable[[Path], list[str]]
"""From a recipe's file to the command that runs it."""


def spark_command(conf: Path) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", "run", str(conf)]


def beam_command(conf: Path) -> list[str]:
    return [sys.executable, "-m", "jobs.run_beam", "--conf", str(conf)]


def local_command(conf: Path) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", "run", str(conf), "--engine=local", "--processes=2"]


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    command: bytes
    cpu_s: float
    """Of its own and of those of its children that have ended."""


def session_of(leader: int) -> list[Process]:
    """The living processes of a session, its leader included."""
    found = []
    for folder in _PROC.glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # The name, in parentheses, may hold anything; after it come state, parent, group, session, and more.
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            state, parent, _, session = stat[:4]
            if int(session) == leader and state != "Z":
                cpu_s = sum(map(int, stat[11:15])) / _TICKS_A_SECOND
                found.append(Process(int(folder.name), int(parent), (folder / "cmdline").read_bytes(), cpu_s))
    return found


class Run:
    """One start of the command, its output in a file."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        env = {
            **os.environ,
            **JVM_ENVIRONMENT,
            "JAVA_HOME": str(find_java().home),
            "PYSPARK_SUBMIT_ARGS": _SUBMIT,
            "SPARK_LOCAL_IP": "127.0.0.1",
        }
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=env, start_new_session=True
            )

    @property
    def num_datasets(self) -> int:
        """Datasets that it has said to be there, committed by it or found."""
        return len(_DATASET.findall(self.log.read_bytes()))

    @property
    def is_over(self) -> bool:
        return self._process.poll() is not None

    def kill(self, victim: Victim, draw: random.Random) -> bool:
        """kill -9 one process of that kind as soon as there is one; False when the run came to its end before."""
        if victim is Victim.DRIVER:
            if self.is_over:
                return False
            self._process.kill()
            self._process.wait()
            return True
        wait_until(lambda: self.is_over or bool(self._find(victim)), f"a {victim} of {self.log}", _RUN_TIMEOUT_S)
        while (found := self._find(victim)) and not self.is_over:
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(found), signal.SIGKILL)
                return True
        return False

    def _find(self, victim: Victim) -> list[int]:
        processes = session_of(self._process.pid)
        matching = [process for process in processes if _COMMAND_OF[victim] in process.command]
        if victim is Victim.PYTHON:
            # The daemon forks the workers.
            daemons = {process.pid for process in matching}
            matching = [process for process in matching if process.parent in daemons]
        if victim is Victim.LOCAL:
            # The command forks them.
            matching = [process for process in matching if process.parent == self._process.pid]
        return [process.pid for process in matching]

    def wait_for(self, num_datasets: int) -> None:
        """Until this many datasets are there, or the run is over."""
        what = f"dataset {num_datasets} of {self.log}"
        wait_until(lambda: self.is_over or self.num_datasets >= num_datasets, what, _RUN_TIMEOUT_S)

    def wait_for_work(self, cpu_s: float) -> None:
        """Until its processes have used this much more CPU time, or the run is over: amid a dataset on any machine."""
        before = {process.pid: process.cpu_s for process in session_of(self._process.pid)}

        def used() -> float:
            return sum(process.cpu_s - before.get(process.pid, 0.0) for process in session_of(self._process.pid))

        wait_until(lambda: self.is_over or used() >= cpu_s, f"work of {self.log}", _RUN_TIMEOUT_S)

    def wait(self, may_fail: bool = False) -> None:
        """Until its end.

        Raises:
            RuntimeError: it failed and may not; the message holds the end of its output.
        """
        code = self._process.wait(_RUN_TIMEOUT_S)
        if code != 0 and not may_fail:
            raise RuntimeError(f"a run ended with {code}: …{self.log.read_text()[-3000:]}")

    def end(self) -> None:
        """Kill what is left of the session."""
        for process in session_of(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self._process.wait()


@dataclass
class RealKills:
    """Kills of one chain of runs.

    Attributes:
        kills: (victim, datasets that were there) of each, in order.
        runs: starts of the command.
        outputs: names of the outputs that the chain has filled, each to its end.
    """

    kills: list[tuple[Victim, int]] = field(default_factory=list)
    runs: int = 0
    outputs: list[str] = field(default_factory=list)

    def count(self, victim: Victim) -> int:
        return sum(killed is victim for killed, _ in self.kills)


def kill_one_by_one(
    commands: Iterator[tuple[str, Sequence[str]]], victims: Sequence[Victim], seed: int, logs: Path
) -> RealKills:
    """Kill the victims one after another, with runs that take up each other's work.

    Args:
        commands: name of an output and the command that fills it; the next one is taken when a run came to its end.
        victims: in their order.
        seed: of the moments.
        logs: folder for the output of the runs.
    """
    draw = random.Random(seed)
    done = RealKills()
    started: list[Run] = []

    def start() -> Run:
        started.append(Run(command, logs / f"run-{len(started)}.log"))
        done.runs += 1
        return started[-1]

    def open_next() -> Sequence[str]:
        name, next_command = next(commands)
        done.outputs.append(name)
        return next_command

    try:
        command, progress = open_next(), 0
        run = start()
        for victim in victims:
            while True:
                run.wait_for(progress + draw.randint(0, _MOST_DATASETS))
                run.wait_for_work(draw.uniform(0, _MOST_MORE_CPU_S))
                progress = max(progress, run.num_datasets)
                if run.kill(victim, draw):
                    break
                run.wait()
                command, progress = open_next(), 0
                run = start()
            done.kills.append((victim, progress))
            if victim in ENDING_THE_RUN:
                run.wait(may_fail=True)
                run = start()
        run.wait()
    finally:
        for run in started:
            run.end()
    return done
