"""What a session is asked for on behalf of a task; the profiles themselves are tried on a cluster in tests/jobs."""

from types import SimpleNamespace

import pytest

from etl.engine import Resources, Work
from etl.engines.spark_resources import Ask, ask
from etl.errors import ConfigError


class Conf(dict):
    """As SparkConf, for what is asked of it."""


def context(master, cores=8, **settings):
    conf = Conf({"spark.master": master} | {name.replace("_", "."): value for name, value in settings.items()})
    return SimpleNamespace(getConf=lambda: conf, defaultParallelism=cores)


def need(**needs):
    return Work("score", 4, 4, Resources(**needs))


def test_without_needs_nothing_is_asked_for():
    assert ask(context("spark://host:7077"), Work("score", 4, 4)) == Ask()


@pytest.mark.parametrize(
    ("needs", "at_once"),
    [({"cpus": 1}, 0), ({"cpus": 3}, 2), ({"cpus": 99}, 1), ({"gpus": 1}, 1), ({"memory_bytes": 1 << 60}, 1)],
)
def test_a_local_master_runs_fewer_tasks_at_once(needs, at_once):
    asked = ask(context("local[8]"), need(**needs))
    assert (asked.profile, asked.at_once) == (None, at_once)
    assert asked.line == (
        f"score: only {at_once} of 8 tasks at a time, because of the resources that each needs" if at_once else ""
    )


def test_executors_that_are_there_must_hold_a_task():
    with pytest.raises(ConfigError, match=r"score: a task needs 4 CPUs, but spark.executor.cores is 2; raise it"):
        ask(context("spark://host:7077", spark_executor_cores="2"), need(cpus=4))
    with pytest.raises(ConfigError, match=r"score: a task needs 1 GPUs, but spark.executor.resource.gpu.amount is 0"):
        ask(context("yarn"), need(gpus=1))


def test_memory_of_executors_that_are_there_is_told():
    asked = ask(context("yarn"), need(memory_bytes=3 << 30))
    assert asked.profile is None
    assert asked.line == (
        "score: a task needs 3,072 MiB beside the heap; without dynamic allocation, "
        "spark.executor.memoryOverhead must provide it"
    )
