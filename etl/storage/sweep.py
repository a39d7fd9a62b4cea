"""Finds and removes what dead attempts have left below a folder.

Left over are, when they are older than a given age: objects that no manifest names in a committed dataset; receipts,
costs of tasks and checkpoints of builds other than the one that the manifest or plan names; checkpoints of a committed
dataset and costs of its tasks one by one, which are in one object then; parts that
no receipt names in a build that did not end; marks of builds that were given up; unfinished files (`_*.tmp`) and errors
that were not delivered (`_failure-*.txt`); links of dead locks that a run has written; and on S3 uploads in pieces that
were never finished. Objects outside every dataset are touched only when they have such a name. A live lock anywhere on
the way to the folder or below it stops the sweep. Stale datasets (etl/storage/stale.py) are only removed on request,
and then nothing else is. Costs one LIST of the folder, one GET a dataset, and one a receipt of a build that did not
end.
"""

import contextlib
import functools
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from etl.errors import ConfigError, DataError
from etl.storage.dataset import CHECKPOINTS, CLOSED, MANIFEST, PLAN, RECEIPTS, TASK_COSTS, is_ours, read_receipts
from etl.storage.location import Entry, Location
from etl.storage.lock import LINK, LOCK, RunLock, live_holder, why_not_a_link
from etl.storage.opened import Run
from etl.storage.stale import stale_below

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TEMPORARY = re.compile(r"_.*\.tmp|_failure-[0-9a-f]{32}\.txt")
"""Files on their way into place, and errors on their way from a Beam worker to the driver."""


@dataclass(frozen=True)
class Leftover:
    """One object that can be removed."""

    path: str
    """Below the folder that is swept."""
    bytes: int
    age_s: float
    why: str
    upload_id: str = ""
    """Of an upload in pieces, which is no object yet."""


def parse_age(text: str) -> float:
    """Seconds of an age such as 90s, 30m, 24h or 7d.

    Raises:
        ConfigError: it is something else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise ConfigError(f"'{text}' is not an age; give a number and one of s, m, h and d, such as 24h")
    return float(match[1]) * _UNITS_S[match[2]]


def find_leftovers(root: Location, older_than_s: float, now_unix_s: float) -> list[Leftover]:
    """The objects that can be removed, sorted by path.

    Args:
        root: a run's output or one dataset.
        older_than_s: younger objects are kept, as they may belong to a run that is just starting.
        now_unix_s: the time.

    Raises:
        DataError: a run is at work there, or a manifest or plan is damaged.
    """
    root.check_bucket()
    run = Run.open(root)
    _refuse_live(run)
    reasons = _Reasons(run)
    found = []
    for entry in run.entries:
        # If a store does not report the age, nothing is old enough.
        age_s = now_unix_s - entry.modified_unix_s if entry.modified_unix_s is not None else -1.0
        if age_s >= older_than_s and (why := reasons.of(entry)):
            found.append(Leftover(entry.path, entry.bytes, age_s, why))
    found += [upload for upload in _unfinished_uploads(root, now_unix_s) if upload.age_s >= older_than_s]
    return sorted(found, key=lambda leftover: leftover.path)


def find_stale(root: Location, now_unix_s: float) -> list[Leftover]:
    """The objects of datasets that an earlier recipe left, whatever their age; sorted by path, manifests last.

    Raises:
        DataError: a run is at work there, or a record, manifest or plan is damaged.
    """
    root.check_bucket()
    run = Run.open(root)
    _refuse_live(run)
    parts = {folder: {part.path for part in run.dataset(folder).manifest.parts} for folder in stale_below(run)}
    found = []
    for entry in run.entries:
        folder = run.dataset_of(entry.path)
        if folder in parts and (is_ours(path := _within(folder, entry.path)) or path in parts[folder]):
            age_s = now_unix_s - (entry.modified_unix_s or now_unix_s)
            found.append(Leftover(entry.path, entry.bytes, age_s, "dataset of an earlier recipe"))
    # What is interrupted is found again as long as the manifest is there.
    return sorted(found, key=lambda item: (posixpath.basename(item.path) == MANIFEST, item.path))


def _within(folder: str, path: str) -> str:
    return path.removeprefix(f"{folder}/") if folder else path


def remove_leftovers(root: Location, leftovers: list[Leftover]) -> None:
    """Delete them, holding the folder's lock so that no run begins there meanwhile.

    Raises:
        DataError: a run is at work there, or something may not be removed.
    """
    with RunLock(root) as lock:
        # The links of a dead lock have just become part of this one, and go with it.
        paths = [item.path for item in leftovers if not item.upload_id and item.path not in lock.links]
        manifests = [path for path in paths if posixpath.basename(path) == MANIFEST]
        root.remove_all([path for path in paths if path not in manifests])
        root.remove_all(manifests)
        _remove_emptied(root, paths)
        for item in leftovers:
            if item.upload_id:
                _give_up(root / item.path, item.upload_id)


def _remove_emptied(root: Location, paths: list[str]) -> None:
    """The folders on a local disk that held nothing but what was removed."""
    folders: set[str] = set()
    for folder in map(posixpath.dirname, paths):
        while folder and folder not in folders:
            folders.add(folder)
            folder = posixpath.dirname(folder)
    for folder in sorted(folders if root.is_local else (), reverse=True):
        with contextlib.suppress(OSError):  # it is not empty
            (root / folder).fs.rmdir((root / folder).path)


def _give_up(place: Location, upload_id: str) -> None:
    bucket, key, _ = place.fs.split_path(place.path)
    with contextlib.suppress(FileNotFoundError):
        place.ask("remove", lambda: place.fs.abort_mpu(bucket, key, upload_id))


def _refuse_live(run: Run) -> None:
    """Raise when a run holds the lock of this folder, of one above it or of one below."""
    root = run.root
    places = [posixpath.split(entry.path) for entry in run.entries]
    folders = [root, *(run.place(folder) for folder, name in places if name == LOCK)]
    above = root.url.partition("://")
    head, tail = (above[0] + above[1], above[2]) if above[1] else ("", above[0])
    while (tail := posixpath.dirname(tail)).strip("/"):
        folders.append(Location(head + tail, root.options, root.single_writer))
    for folder in folders:
        holder = live_holder(folder)
        if holder is not None:
            raise DataError(f"{folder} is held by {holder}; sweep after that run has ended")


class _Reasons:
    """Why an object can be removed, by its dataset."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._known: dict[str, _Known] = {}

    def of(self, entry: Entry) -> str:
        """Empty if the object must be kept."""
        name = posixpath.basename(entry.path)
        if _TEMPORARY.fullmatch(name):
            return "a file that was never finished"
        if LINK.fullmatch(name):
            return "" if why_not_a_link(self._run.root / entry.path) else "the lock of a run that died"
        folder = self._run.dataset_of(entry.path)
        return "" if folder is None else self._inside(folder, _within(folder, entry.path))

    def _inside(self, folder: str, path: str) -> str:
        if folder not in self._known:
            look = _of_committed if folder in self._run.committed else _of_started
            self._known[folder] = look(self._run, folder)
        known = self._known[folder]
        kind, _, rest = path.partition("/")
        if path in (MANIFEST, PLAN):
            return ""
        if kind == RECEIPTS:
            return "" if rest.startswith(f"{known.build}/") else "a receipt of an abandoned build"
        if kind == CHECKPOINTS:
            if known.is_committed:
                return "a checkpoint of a committed dataset"
            return "" if rest.startswith(f"{known.fingerprint}/") else "a checkpoint of an abandoned build"
        if kind == TASK_COSTS:
            if known.is_committed:
                return "a task's cost, of a committed dataset"
            return "" if rest.startswith(f"{known.build}/") else "a task's cost, of an abandoned build"
        if kind == CLOSED:
            return "the mark of an abandoned build"
        if is_ours(path) or path in known.parts:
            return ""
        return "no manifest names it" if known.is_committed else "no receipt of the build names it"


@dataclass(frozen=True)
class _Known:
    """What a dataset accounts for."""

    is_committed: bool
    build: str
    fingerprint: str
    """Of the plan, which names its checkpoints."""
    parts: frozenset[str]


def _of_committed(run: Run, folder: str) -> _Known:
    manifest = run.dataset(folder).manifest
    return _Known(True, manifest.receipts, "", frozenset(part.path for part in manifest.parts))


def _of_started(run: Run, folder: str) -> _Known:
    plan = run.plan(folder)
    receipts = read_receipts(run.place(folder), plan.name, len(plan.splits))
    parts = frozenset(part.path for receipt in receipts if receipt is not None for part in receipt.parts)
    return _Known(False, plan.name, plan.fingerprint, parts)


def _unfinished_uploads(root: Location, now_unix_s: float) -> Iterator[Leftover]:
    """Uploads in pieces below a folder of S3 that were neither finished nor given up."""
    if root.scheme != "s3":
        return
    bucket, key, _ = root.fs.split_path(root.path)
    prefix = f"{key}/" if key else ""
    marks: dict[str, str] = {}
    while True:
        page = root.ask("list", functools.partial(_uploads_page, root.fs, bucket, prefix, marks))
        for upload in page.get("Uploads", []):
            age_s = now_unix_s - upload["Initiated"].timestamp()
            path = upload["Key"].removeprefix(prefix)
            yield Leftover(path, 0, age_s, "an upload that was never finished", upload["UploadId"])
        if not page.get("IsTruncated"):
            return
        marks = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _uploads_page(fs: Any, bucket: str, prefix: str, marks: dict[str, str]) -> dict[str, Any]:
    page: dict[str, Any] = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **marks)
    return page
