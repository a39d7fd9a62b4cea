"""Limits of this process: CPUs, memory, and how much memory a task may hold at once.

A container sees its host's memory but is killed at its own limit, so the limits of cgroups (both versions, of the
process's group and those above it) and of the address space count as well. Read once per process, in a millisecond.
"""

import functools
import os
import resource
from pathlib import Path, PurePosixPath

MOST_HELD_BYTES = 64 << 20
LEAST_HELD_BYTES = 32 << 20
_PART_OF_A_CORE = 16
"""A task holds one part in this many of its core's share of the memory; sorting takes twice that."""
_CGROUPS = Path("/sys/fs/cgroup")
_LIMITS = {"": "memory.max", "memory": "memory.limit_in_bytes"}
"""The file with the limit, for the controllers in a line of /proc/self/cgroup (version 2 lists none)."""


def usable_cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


@functools.cache
def held_bytes() -> int:
    """Arrow bytes that a task may hold while it sorts or cuts rows; does not affect the result."""
    share = usable_memory() // usable_cpus() // _PART_OF_A_CORE
    return min(max(share, LEAST_HELD_BYTES), MOST_HELD_BYTES)


def usable_memory() -> int:
    """Bytes that this process and its siblings may use together: the machine's memory, or a lower limit."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    groups = Path("/proc/self/cgroup")
    limits = cgroup_limits(groups.read_text(), _CGROUPS) if groups.exists() else []
    return min([machine, *limits, *([] if address_space == resource.RLIM_INFINITY else [address_space])])


def cgroup_limits(groups: str, root: Path) -> list[int]:
    """The memory limits of a process's groups and of those above them.

    Args:
        groups: the text of /proc/self/cgroup, a line `number:controllers:path` for each hierarchy.
        root: where the hierarchies are mounted.
    """
    found = []
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in {"", "memory"}.intersection(controllers.split(",")):
            group = PurePosixPath(path)
            # In a container the path may be the host's, and only its root is mounted.
            for parent in (group, *group.parents):
                file = root / controller / parent.relative_to("/") / _LIMITS[controller]
                if file.exists() and (limit := file.read_text().strip()) != "max":
                    found.append(int(limit))
    return found
