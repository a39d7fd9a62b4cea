"""One run at a time per output: a create-only lock object with a heartbeat, and a takeover that only one run can win.

A lock is a chain. `_lock.json` names the run that made it; a run that finds a dead holder takes over by creating
`_lock-<the dead run>.json`, create-only, so that of many that try one succeeds; should that one die too, the next link
carries its name. The last link is the holder. Whoever ends removes the first link, then the others, so a chain is cut
at its head and never revived by halves. A kill leaves at most dead links, which `stillhouse sweep` removes.

An object in the place of a link that no run has written (etl/storage/untrusted.py), or that leads back into the chain,
is nobody's. It holds up nobody and leads nowhere: its successor is called after the digest of its bytes. Nobody removes
it either; `stillhouse verify` reports it.

A holder is dead when it was on this machine and its process is gone, or when its heartbeat is silent: older than
`STALE_S` by the clocks, and then unchanged for `STALE_S` while we watch, since two hosts' clocks may differ. A run that
lost its lock stops at its next `check`. Costs a small PUT every `BEAT_S`, and two or three GETs a check; on an object
store also four requests at the start, which prove that it creates an object only where none is.
"""

import contextlib
import hashlib
import os
import re
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated

from pydantic import BaseModel, Field

from etl.errors import ConfigError, DataError, StillhouseError
from etl.storage.location import Location
from etl.storage.manifest import to_json
from etl.storage.retry import status_of
from etl.storage.untrusted import Hex32, NotOursError, Seconds, Text, parse_object

LOCK = "_lock.json"
LINK = re.compile(r"_lock(-[0-9a-f]{32})?\.json")
"""Names of all links."""
BEAT_S = 10.0
STALE_S = 60.0
"""Silence in seconds after which a holder may be dead: several beats, including retries."""
_LOOK_S = 2.0
"""Seconds between two looks at a silent lock."""
_TRIES = 10
_MAX_LINKS = 1000
"""Of a chain: as many runs that died before anybody swept."""
_MAX_BYTES = 1 << 16


class Holder(BaseModel, frozen=True, extra="forbid"):
    """The content of a link of the chain."""

    run: Hex32
    host: Text
    machine: Text
    """Empty for nobody."""
    pid: Annotated[int, Field(ge=0, lt=2**31, strict=True)]
    started: Text
    since_unix_s: Seconds
    beat_unix_s: Seconds

    @classmethod
    def me(cls) -> "Holder":
        """This process, now."""
        now = time.time()
        pid = os.getpid()
        return cls(
            run=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=pid,
            started=_start_of(pid),
            since_unix_s=now,
            beat_unix_s=now,
        )

    @classmethod
    def nobody(cls, data: bytes) -> "Holder":
        """Who holds an object that is no link of ours: its name follows from its bytes."""
        run = hashlib.sha256(data).hexdigest()[:32]
        return cls(run=run, host="nowhere", machine="", pid=0, started="", since_unix_s=0, beat_unix_s=0)

    @property
    def is_somebody(self) -> bool:
        """Whether a run has written the link, which may then be removed once it is dead."""
        return bool(self.machine)

    def body(self) -> bytes:
        """The link's content, its heartbeat now."""
        return to_json(self.model_copy(update={"beat_unix_s": time.time()}))

    def is_gone(self) -> bool:
        """True if the process was on this machine and has ended."""
        if not self.is_somebody:
            return True
        if self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return self.started != _start_of(self.pid)

    def is_fresh(self) -> bool:
        """True when its heartbeat is recent by our clock; a clock that is far ahead proves nothing."""
        return abs(time.time() - self.beat_unix_s) <= STALE_S

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since_unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"process {self.pid} on {self.host} since {since}"


class RunLock:
    """Context manager that holds the lock of an output folder.

    Raises:
        DataError: another run holds it, or this one may not write there.
        ConfigError: the store cannot be reached, has no such bucket, or does not support conditional creation.
    """

    def __init__(self, output: Location) -> None:
        self._output = output
        self._me = Holder.me()
        self._links: list[tuple[Location, Holder]] = []
        """The chain up to our own link, each with what it says."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="stillhouse-lock")

    def __enter__(self) -> "RunLock":
        self._output.check_bucket()
        if not self._output.is_local and not self._output.single_writer:
            _prove_create_only(self._output)
        self._take()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        # A failing store must not hide the error that ended the run; the remaining lock is dead.
        with contextlib.suppress(StillhouseError) if kind else contextlib.nullcontext():
            if self._is_mine():
                for place, holder in self._links:
                    if holder.is_somebody:
                        place.remove()

    @property
    def links(self) -> frozenset[str]:
        """Names of the objects that make up the lock."""
        return frozenset(place.name for place, _ in self._links)

    def check(self) -> None:
        """Raise unless this run holds the lock; called before each commit.

        Raises:
            DataError: another run has taken the lock over, or somebody removed it.
        """
        if not self._is_mine():
            raise DataError(
                f"this run (process {self._me.pid} on {self._me.host}) no longer holds {self._output / LOCK}: it "
                "was taken over or removed, so nothing more is committed; run again when no other run is active there"
            )

    def _take(self) -> None:
        for _ in range(_TRIES):
            self._links = self._join()
            if self._links and self._is_mine():
                return
            # The chain was cut while we looked along it: a run ended, and another one may hold a new first link.
            for place, holder in self._links:
                if holder.run == self._me.run:
                    place.remove()
        raise DataError(f"other runs keep starting and ending at {self._output / LOCK}; run again when they are done")

    def _join(self) -> list[tuple[Location, Holder]]:
        """The chain with our link at its end; empty when it was cut meanwhile."""
        place = self._output / LOCK
        chain: list[tuple[Location, Holder]] = []
        while not place.create(self._me.body()):
            holder = _next(place, chain)
            if holder is None:
                return []
            successor = self._output / _link(holder.run)
            if not successor.exists():
                _refuse_if_alive(self._output, place, holder)
            chain.append((place, holder))
            place = successor
        return [*chain, (place, self._me)]

    def _is_mine(self) -> bool:
        """Whether the chain still begins where it did, our link is in it, and nobody has taken over from us."""
        for place, then in (self._links[0], self._links[-1]):
            holder = _read(place)
            if holder is None or holder.run != then.run:
                return False
        return not (self._output / _link(self._me.run)).exists()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            # The next beat tries again; whether the lock is lost is for `check` to find out.
            with contextlib.suppress(StillhouseError):
                self._beat_once()

    def _beat_once(self) -> None:
        if self._is_mine():
            self._links[-1][0].replace(self._me.body())


def last_holder(folder: Location) -> tuple[Location, Holder] | None:
    """The last link of a folder's lock, dead or alive; None where there is no lock."""
    place, chain = folder / LOCK, list[tuple[Location, Holder]]()
    while (holder := _next(place, chain)) is not None:
        chain.append((place, holder))
        place = folder / _link(holder.run)
    return chain[-1] if chain else None


def live_holder(folder: Location) -> Holder | None:
    """The current holder of a folder's lock; may watch a silent one for `STALE_S`."""
    last = last_holder(folder)
    return last[1] if last is not None and _is_alive(*last) else None


def _link(run: str) -> str:
    return f"_lock-{run}.json"


def _next(place: Location, chain: list[tuple[Location, Holder]]) -> Holder | None:
    """What the link after a chain says; None when it is gone. One that leads back into the chain is nobody's.

    Raises:
        DataError: the chain has no end in sight.
    """
    if len(chain) > _MAX_LINKS:
        raise DataError(f"{place} is one of more than {_MAX_LINKS:,} links of a lock; remove {chain[0][0]}")
    holder = _read(place)
    if holder is not None and any(holder.run == before.run for _, before in chain):
        return Holder.nobody(f"{place.name} {holder.run}".encode())
    return holder


def _read(place: Location) -> Holder | None:
    """What a link says; None when it is gone."""
    try:
        data = place.read_at_most(_MAX_BYTES)
    except FileNotFoundError:
        return None
    try:
        holder = parse_object(data, Holder)
    except NotOursError:
        return Holder.nobody(data)
    return holder if holder.is_somebody else Holder.nobody(data)


def why_not_a_link(place: Location) -> str:
    """Why an object with the name of a link is not one; empty if a run has written it, or it is gone."""
    try:
        parse_object(place.read_at_most(_MAX_BYTES), Holder)
    except FileNotFoundError:
        return ""
    except (NotOursError, DataError) as error:
        return str(error)
    return ""


def _refuse_if_alive(output: Location, place: Location, holder: Holder) -> None:
    if _is_alive(place, holder):
        raise DataError(
            f"{output} is held by {holder}; wait for that run to end, or stop it. A dead run loses the lock "
            f"{STALE_S:.0f} s after its last heartbeat; if you know that it is dead, remove {place}"
        )


def _is_alive(place: Location, holder: Holder) -> bool:
    """Whether the holder is alive; watches a silent one for a heartbeat."""
    if holder.is_gone():
        return False
    if holder.is_fresh():
        return True
    deadline = time.monotonic() + STALE_S
    while time.monotonic() < deadline:
        time.sleep(min(_LOOK_S, STALE_S / 4))
        now = _read(place)
        if now is None or now.run != holder.run:
            return False
        if now.beat_unix_s != holder.beat_unix_s:
            return True
        if now.is_gone():
            return False
    return False


def _prove_create_only(output: Location) -> None:
    """Create an object twice; the second time must fail and leave the first one's bytes.

    Raises:
        ConfigError: the store wrote it twice, or does not know conditional writes.
    """
    probe = output / f"_probe-{uuid.uuid4().hex}.tmp"
    refusal = ConfigError(
        f"{output}: this store cannot create objects conditionally, so two runs could overwrite each other; use "
        "another store, or set `single_writer: true` and make sure that only one run writes there at a time"
    )
    try:
        first = probe.create(b"first")
        second = probe.create(b"second")
    except NotImplementedError as error:
        raise refusal from error
    except DataError as error:
        if status_of(error) == 501:
            raise refusal from error
        raise
    finally:
        probe.remove()
    if not first or second:
        raise refusal


def _machine() -> str:
    """Equal for two processes that see each other's process ids; empty if the system does not provide it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _start_of(pid: int) -> str:
    """Start of a process in ticks since boot, as ids are reused; empty if the system does not provide it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
    except OSError:
        return ""
