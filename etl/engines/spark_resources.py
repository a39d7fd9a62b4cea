"""How a Spark session provides what a task needs (CPUs, GPUs, memory): a resource profile, or fewer tasks at once.

- With dynamic allocation a full profile is requested: executors with these CPUs, GPUs and this memory are started for
the stage and released after it. - Without it the executors exist already, so a profile can only set the CPUs and GPUs
per task. Their memory is the user's choice. - `local[n]` has no profiles (Spark refuses them). Fewer partitions are
made instead, each of which does its splits one
  after another; where a GPU is needed, one.

Memory is asked for beside the JVM's heap (memoryOverhead), since our tasks hold Arrow buffers and models in Python.
"""

import os
from dataclasses import dataclass
from typing import Any

from etl.engine import DEFAULT, Resources, Work
from etl.errors import ConfigError

_GPU = "spark.executor.resource.gpu"


@dataclass(frozen=True)
class Ask:
    """What a job asks of its session."""

    profile: Any = None
    """A pyspark ResourceProfile; None for the session's own settings."""
    at_once: int = 0
    """Maximum number of tasks at a time; 0 leaves it to the session."""
    line: str = ""
    """A line for the user about needs that are met in another way than by a profile; empty if there is none."""


def ask(context: Any, work: Work) -> Ask:
    """How the tasks of `work` get what they need.

    Raises:
        ConfigError: existing executors cannot hold even one such task.
    """
    needs = work.resources
    if needs == DEFAULT:
        return Ask()
    conf = context.getConf()
    if conf.get("spark.master").startswith("local") and not conf.get("spark.master").startswith("local-cluster"):
        return _ask_local(context.defaultParallelism, work)
    if conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        return Ask(_profile(conf, needs))
    _check_executors(conf, work)
    if not needs.memory_bytes:
        return Ask(_task_profile(needs))
    line = (
        f"{work.stage}: a task needs {needs.memory_bytes >> 20:,} MiB beside the heap; without dynamic allocation, "
        "spark.executor.memoryOverhead must provide it"
    )
    return Ask(_task_profile(needs) if needs.cpus or needs.gpus else None, line=line)


def _ask_local(cores: int, work: Work) -> Ask:
    needs = work.resources
    limits = [cores // max(1, needs.cpus)]
    if needs.memory_bytes:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // needs.memory_bytes)
    if needs.gpus:
        limits.append(1)
    at_once = max(1, min(limits))
    if at_once >= cores:
        return Ask()
    return Ask(
        at_once=at_once,
        line=f"{work.stage}: only {at_once} of {cores} tasks at a time, because of the resources that each needs",
    )


def _check_executors(conf: Any, work: Work) -> None:
    needs = work.resources
    cores = conf.get("spark.executor.cores", None)
    if cores is not None and needs.cpus > int(cores):
        raise ConfigError(
            f"{work.stage}: a task needs {needs.cpus} CPUs, but spark.executor.cores is {cores}; "
            "raise it, or set spark.dynamicAllocation.enabled=true so that suitable executors are started"
        )
    gpus = conf.get(f"{_GPU}.amount", "0")
    if needs.gpus > int(gpus):
        raise ConfigError(
            f"{work.stage}: a task needs {needs.gpus} GPUs, but {_GPU}.amount is {gpus}; set it (with "
            f"{_GPU}.discoveryScript), or spark.dynamicAllocation.enabled=true so that suitable executors are started"
        )


def _task_requests(needs: Resources) -> Any:
    from pyspark.resource import TaskResourceRequests

    requests = TaskResourceRequests().cpus(max(1, needs.cpus))
    return requests.resource("gpu", needs.gpus) if needs.gpus else requests


def _task_profile(needs: Resources) -> Any:
    from pyspark.resource import ResourceProfileBuilder

    return ResourceProfileBuilder().require(_task_requests(needs)).build


def _profile(conf: Any, needs: Resources) -> Any:
    """Executors for as many tasks as fit into the user's own executor size; one if a GPU is needed."""
    from pyspark.resource import ExecutorResourceRequests, ResourceProfileBuilder

    cpus = max(1, needs.cpus)
    tasks = 1 if needs.gpus else max(1, int(conf.get("spark.executor.cores", "1")) // cpus)
    executor = ExecutorResourceRequests().cores(cpus * tasks).memory(conf.get("spark.executor.memory", "1g"))
    if needs.memory_bytes:
        executor = executor.memoryOverhead(f"{(needs.memory_bytes * tasks >> 20) + 1}m")
    if needs.gpus:
        script = conf.get(f"{_GPU}.discoveryScript", "")
        executor = executor.resource("gpu", needs.gpus, script, conf.get(f"{_GPU}.vendor", "nvidia.com"))
    return ResourceProfileBuilder().require(executor).require(_task_requests(needs)).build
