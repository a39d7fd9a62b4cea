"""The decision log: one immutable record per segment, written before the segment starts.

    decisions/000000.json    kind "initial": the recipe, the seed, the corpus
    decisions/000001.json    kind "keep": nothing changes
    decisions/000017.json    kind "phase", {"shares": {"B1/*": 0.4, "B3/*": 0.6}}: from segment 17 on

A run writes the record of a segment when it starts it; an operator or the trainer may write it before, and the run then
takes what it finds. Objects are created, never replaced, so that of two writers one wins and both go by what it wrote:
every rank may call `start` at any time. The digest of a segment covers all records up to it, and a checkpoint carries
it. Cost: one small object a segment.
"""

import difflib
import hashlib
import threading
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ValidationError, field_validator

from etl.conf import check
from etl.config import Config
from etl.digests import canonical_json
from etl.errors import ConfigError, DataError
from etl.storage.location import Location
from etl.storage.untrusted import MAX_OBJECT_BYTES, Count, Hex32, NotOursError, parse_object
from training.data.stream.plan import OLD_ORDER, StreamConfig, check_shares
from training.data.stream.shares import Groups

INITIAL = "initial"
KEEP = "keep"
KINDS: dict[str, tuple[str, ...]] = {
    KEEP: (),
    "weights": ("weights",),
    "phase": ("shares", "weights"),
    "modes": ("modes",),
    "stage": ("stage", "shares", "weights", "modes"),
}
"""What a record of each kind may set; it must set the first."""


class Policy(Config):
    """The values in a segment: the recipe's, replaced by those of the records up to it."""

    weights: Literal["sampling_weight", "uniform"] = "sampling_weight"
    shares: dict[str, float] | None = None
    modes: dict[str, float] | None = None
    """Share of each reasoning mode; for the trainer, no document is chosen by it."""
    stage: str | None = None
    """Name of the part of the run; for the trainer."""

    @field_validator("shares", "modes")
    @classmethod
    def _shares_are_shares(cls, shares: dict[str, float] | None) -> dict[str, float] | None:
        return check_shares(shares)


class Initial(BaseModel):
    """What the value of the first record has at least."""

    cells: dict[str, Count]
    """Rows of each cell of the corpus."""
    recipe: dict[str, Any]


class Record(Config):
    """One decision."""

    segment: int
    kind: str
    value: dict[str, Any]
    digest: Hex32
    """Of the three other fields."""

    @classmethod
    def of(cls, segment: int, kind: str, value: dict[str, Any]) -> "Record":
        """The record of a decision."""
        return cls(segment=segment, kind=kind, value=value, digest=_digest([segment, kind, value]))

    def to_json(self) -> bytes:
        """As one line."""
        return (canonical_json(self.model_dump(mode="json")) + "\n").encode()


def _digest(body: list[Any]) -> str:
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()[:32]


# --- where records are -----------------------------------------------------------------------------------------------


class Store(Protocol):
    """Keeps one object a segment."""

    def read(self, segment: int) -> bytes | None:
        """The object of a segment; None where there is none."""

    def create(self, segment: int, data: bytes) -> bool:
        """Write it if there is none; False when there is another one."""


@dataclass(frozen=True)
class FolderStore:
    """Records in a folder or under a URL."""

    folder: Location

    def read(self, segment: int) -> bytes | None:
        try:
            return self._object(segment).read_at_most(MAX_OBJECT_BYTES)
        except FileNotFoundError:
            return None

    def create(self, segment: int, data: bytes) -> bool:
        return self._object(segment).create(data)

    def __str__(self) -> str:
        return str(self.folder)

    def _object(self, segment: int) -> Location:
        return self.folder / f"{segment:06d}.json"


class PreviewStore:
    """The records of a folder (if given), read-only; what a run would write is kept in memory."""

    def __init__(self, folder: Location | None = None) -> None:
        self._folder = FolderStore(folder) if folder else None
        self._own: dict[int, bytes] = {}

    def read(self, segment: int) -> bytes | None:
        found = self._folder.read(segment) if self._folder else None
        return self._own.get(segment) if found is None else found

    def create(self, segment: int, data: bytes) -> bool:
        if self.read(segment) is not None:
            return False
        self._own[segment] = data
        return True

    def __str__(self) -> str:
        return str(self._folder) if self._folder else "memory"


# --- the log ---------------------------------------------------------------------------------------------------------


class DecisionLog:
    """The records of one stream; threads may share it."""

    def __init__(self, store: Store, first: Record) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._cells: dict[str, int] = first.value["cells"]
        self._recipe = _recipe(first.value)
        self._digests = [_digest(["", first.digest])]
        self._policies = [Policy(weights=self._recipe.weights, shares=self._recipe.shares)]
        self._check_shares(self._policies[0])

    @classmethod
    def open(cls, folder: Location, initial: dict[str, Any]) -> "DecisionLog":
        """The log of a run that begins with `initial` (plan.initial_value) or resumes.

        Raises:
            ConfigError: the run in this folder began with something else; names what differs.
        """
        return cls._begin(FolderStore(folder), initial)

    @classmethod
    def preview(cls, folder: Location | None, initial: dict[str, Any]) -> "DecisionLog":
        """The log that a run would have, with the records that lie in the folder; writes nothing."""
        return cls._begin(PreviewStore(folder), initial)

    @classmethod
    def existing(cls, folder: Location) -> "DecisionLog":
        """The log of a run that was started before, e.g. to append a decision.

        Raises:
            ConfigError: there is none.
        """
        store = FolderStore(folder)
        first = _read(store, 0)
        if first is None:
            raise ConfigError(f"{folder} has no decision log; start the run first")
        return cls(store, first)

    @classmethod
    def _begin(cls, store: Store, initial: dict[str, Any]) -> "DecisionLog":
        mine = Record.of(0, INITIAL, initial)
        # Checked before it is written, so that a mistake in the recipe leaves no record.
        log = cls(store, mine)
        found = _create_or_read(store, mine)
        if found != mine:
            is_old = {"after", "classes"} & (mine.value.keys() - found.value.keys())
            raise ConfigError(
                f"the run in {store} started with another stream ({_difference(found.value, mine.value)}); "
                "give this one another `output`, or remove that folder"
                + (f". If there is a checkpoint beside it, {OLD_ORDER}" if is_old else "")
            )
        return log

    def start(self, segment: int) -> Policy:
        """The values in a segment that starts now: its record is used, or written if new. Segments come in order.

        Raises:
            DataError: a record was changed after it was written.
        """
        with self._lock:
            while len(self._policies) <= segment:
                record = _create_or_read(self._store, Record.of(len(self._policies), KEEP, {}))
                policy = self._after(self._policies[-1], record)
                self._check_shares(policy)
                self._digests.append(_digest([self._digests[-1], record.digest]))
                self._policies.append(policy)
        return self._policies[segment]

    def policy_at(self, segment: int) -> Policy:
        """The values in a segment that has started."""
        return self._policies[segment]

    def digest_at(self, segment: int) -> str:
        """32 hex digits of all records up to that of a segment that was started."""
        return self._digests[segment]

    def append(self, segment: int, kind: str, value: dict[str, Any]) -> Record:
        """Set the values from a segment on that has not started; repeating a decision changes nothing.

        Raises:
            ConfigError: no such kind or value, or the segment has its record; says which is the first free one.
        """
        mine = Record.of(segment, kind, value)
        self._check_shares(self._after(self._policies[-1], mine))
        found = _create_or_read(self._store, mine)
        if found != mine:
            free = segment + 1
            while self._store.read(free) is not None:
                free += 1
            raise ConfigError(
                f"segment {segment} of {self._store} has its record (kind '{found.kind}'), and records never "
                f"change; the next free segment is {free}"
            )
        return mine

    def _after(self, policy: Policy, record: Record) -> Policy:
        """The policy with what a record changes."""
        if record.segment < 1:
            raise ConfigError(f"segment {record.segment} cannot be decided: 0 is the recipe's; give 1 or later")
        origin = f"decision '{record.kind}' of segment {record.segment}"
        if record.kind not in KINDS:
            near = difflib.get_close_matches(record.kind, KINDS, n=1, cutoff=0.0)
            raise ConfigError(f"{origin}: no such kind; did you mean '{near[0]}'? Kinds: {', '.join(KINDS)}")
        required, allowed = KINDS[record.kind][:1], KINDS[record.kind]
        if not set(required) <= set(record.value) <= set(allowed):
            raise ConfigError(
                f"{origin}: it sets {', '.join(sorted(record.value)) or 'nothing'}; it must set "
                f"{', '.join(required) or 'nothing'}, and may only set {', '.join(allowed) or 'that'}"
            )
        return check(Policy, {**policy.model_dump(), **record.value}, origin)

    def _check_shares(self, policy: Policy) -> None:
        groups = Groups.of(policy.shares, list(self._cells))
        if policy.shares is not None and self._recipe.on_exhausted != "redistribute":
            groups.check_rows(self._cells, self._recipe.lanes)


def _create_or_read(store: Store, record: Record) -> Record:
    """The record of the segment after the call: this one, or the one that was there."""
    if store.create(record.segment, record.to_json()):
        return record
    found = _read(store, record.segment)
    assert found is not None, "records are never removed"
    return found


def _read(store: Store, segment: int) -> Record | None:
    data = store.read(segment)
    if data is None:
        return None
    remedy = "restore the old one, or continue from an earlier checkpoint in another `output`"
    try:
        record = parse_object(data, Record)
        if segment == 0:
            Initial.model_validate(record.value)
    except ValidationError as error:
        raise DataError(
            f"the first record in {store} cannot start a stream: it lacks cells or recipe; {remedy}"
        ) from error
    except NotOursError as error:
        raise DataError(f"the record of segment {segment} in {store} is damaged: {error}; {remedy}") from error
    if record.segment != segment or record != Record.of(segment, record.kind, record.value):
        raise DataError(f"the record of segment {segment} in {store} was changed after it was written; {remedy}")
    return record


def _recipe(initial: dict[str, Any]) -> StreamConfig:
    return check(StreamConfig, {"corpus": "", **initial["recipe"]}, "the recipe in the decision log")


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The fields that differ, those of the recipe by their own names."""
    flat = [{**value, **_recipe(value).model_dump(mode="json")} for value in (old, new)]
    names = sorted(
        key for key in flat[0].keys() | flat[1].keys() if key != "recipe" and flat[0].get(key) != flat[1].get(key)
    )
    return ", ".join(f"{name} was {flat[0].get(name)!r} and is {flat[1].get(name)!r}" for name in names)
