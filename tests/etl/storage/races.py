"""Two processes that start a run on one output at the same moment, many times."""

import multiprocessing
from collections import Counter
from multiprocessing.synchronize import Barrier
from typing import Any

from etl.errors import DataError
from etl.storage.location import Location
from etl.storage.lock import RunLock

_TIMEOUT_S = 120


def race_for_locks(folders: list[Location]) -> list[Counter[str]]:
    """For each folder, how two processes fared that reached for its lock together: held, refused, and lost if
    `check` stopped one of two that held it."""
    context = multiprocessing.get_context("spawn")
    barrier, outcomes = context.Barrier(2), context.SimpleQueue()
    racers = [context.Process(target=_race, args=(folders, barrier, outcomes)) for _ in range(2)]
    for racer in racers:
        racer.start()
    results: list[Counter[str]] = [Counter() for _ in folders]
    for _ in range(2 * len(folders)):
        lap, outcome = outcomes.get()
        results[lap][outcome] += 1
    for racer in racers:
        racer.join(_TIMEOUT_S)
        assert racer.exitcode == 0
    return results


def _race(folders: list[Location], barrier: Barrier, outcomes: Any) -> None:
    for lap, folder in enumerate(folders):
        barrier.wait(_TIMEOUT_S)
        try:
            with RunLock(folder) as lock:
                barrier.wait(_TIMEOUT_S)
                lock.check()
                outcomes.put((lap, "held"))
        except DataError as error:
            if "no longer holds" in str(error):
                outcomes.put((lap, "lost"))
            else:
                barrier.wait(_TIMEOUT_S)
                outcomes.put((lap, "refused"))
