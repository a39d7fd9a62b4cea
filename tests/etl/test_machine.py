"""What a process may use: the narrowest limit counts, and a task's share of it is kept between its bounds."""

import os
import resource

import pytest

from etl import machine

GROUPS = """5:cpu,memory:/docker/abc
4:devices:/docker/abc
0::/user/job
"""


def test_the_cpus_are_those_that_this_process_may_use():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert machine.usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_limits_are_those_of_the_process_s_groups_and_of_those_above_them(tmp_path):
    limits = {
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/docker/memory.limit_in_bytes": "700",
        "memory/other/memory.limit_in_bytes": "1",
        "user/memory.max": "500",
        "user/job/memory.max": "max",
    }
    for path, limit in limits.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"{limit}\n")
    assert sorted(machine.cgroup_limits(GROUPS, tmp_path)) == [500, 700, 9223372036854771712]
    assert machine.cgroup_limits("0::/\n", tmp_path) == []


def test_the_limit_of_the_address_space_counts(monkeypatch):
    free = machine.usable_memory()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000, 2000))
    assert machine.usable_memory() == 1000 < free


@pytest.mark.parametrize(
    ("memory", "cpus", "held"),
    [(16 << 30, 8, 64 << 20), (6 << 30, 8, 48 << 20), (1 << 30, 64, 32 << 20), (1 << 40, 1, 64 << 20)],
)
def test_a_task_holds_a_sixteenth_of_a_core_s_memory_between_bounds(monkeypatch, memory, cpus, held):
    monkeypatch.setattr(machine, "usable_memory", lambda: memory)
    monkeypatch.setattr(machine, "usable_cpus", lambda: cpus)
    assert machine.held_bytes.__wrapped__() == held
