"""One run at a time on one output: a create-only lock object with a heartbeat.

A second run stops at once. A lock is taken over when its heartbeat is older than `STALE_S`, or when its process is on
this host and gone. The heartbeat costs one small PUT every `BEAT_S`.
"""

import json
import os
import socket
import threading
import time
import uuid
from types import TracebackType
from typing import Any

from etl.errors import DataError
from etl.storage.location import Location

LOCK = "_lock.json"
BEAT_S = 10.0
STALE_S = 60.0


class RunLock:
    """Context manager that holds the lock of an output folder.

    Raises:
        DataError: another run holds it.
    """

    def __init__(self, output: Location) -> None:
        self._place = output / LOCK
        self._owner = {"run": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def _body(self) -> bytes:
        return json.dumps({**self._owner, "beat_unix_s": time.time()}).encode()

    def __enter__(self) -> "RunLock":
        if not self._place.create(self._body()):
            holder = self._holder()
            if holder is not None and not _dead(holder):
                raise DataError(
                    f"{self._place} is held by process {holder['pid']} on {holder['host']}; wait for that run to end"
                )
            self._place.remove()
            if not self._place.create(self._body()):
                raise DataError(f"another run took {self._place} first; wait for it to end")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._is_mine():
            self._place.remove()

    def _holder(self) -> dict[str, Any] | None:
        """What the lock says; None when it was given back meanwhile, or never whole."""
        try:
            holder = json.loads(self._place.read())
        except (FileNotFoundError, ValueError):
            return None
        return holder if isinstance(holder, dict) and {"run", "pid", "host", "beat_unix_s"} <= holder.keys() else None

    def _is_mine(self) -> bool:
        """False when another run has taken the lock over, say from a process that was suspended."""
        holder = self._holder()
        return holder is not None and holder["run"] == self._owner["run"]

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            self._beat_once()

    def _beat_once(self) -> None:
        if self._is_mine():
            self._place.replace(self._body())


def _dead(holder: dict[str, Any]) -> bool:
    if time.time() - float(holder["beat_unix_s"]) > STALE_S:
        return True
    if holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
