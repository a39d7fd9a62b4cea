"""Checkpoints at their root: receipts, manifests, uploads in the background, and which ones are kept.

To a reader, a folder without manifest.json does not exist. The manifest is written last and create-only, and is removed
first. Folders without one, of unfinished uploads, are removed after the next commit. Every file is read once for its
SHA-256, then uploaded, or hard-linked where root and scratch are on one disk.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.config import Config
from etl.errors import DataError, StillhouseError
from etl.storage.location import Location
from etl.storage.untrusted import Count, FileName, Sha256, read_object
from training.checkpoint.universal import ShardLayout

MANIFEST = "manifest.json"
RECEIPTS = "_receipts"
_TAG = re.compile(r"step-\d{8,}-[0-9a-f]{12}")
_BLOCK_BYTES = 1 << 22
_FIRST_POLL_S, _LONGEST_POLL_S = 0.05, 5.0
_CANNOT_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP})

_log = logging.getLogger(__name__)


class CheckpointFile(Config):
    """One object of a checkpoint."""

    name: FileName
    bytes: Count
    sha256: Sha256


class CheckpointReceipt(Config):
    """What one rank has uploaded."""

    rank: Count
    files: tuple[CheckpointFile, ...]


class CheckpointManifest(Config):
    """A complete checkpoint."""

    version: int = 1
    step: Count
    payload: dict[str, Any]
    """The run's state, JSON types."""
    score: float | None
    """Held-out loss, lower is better."""
    identity: dict[str, Any]
    layout: ShardLayout
    optimizer: str
    receipts: tuple[CheckpointReceipt, ...]


@dataclass(frozen=True)
class Retention:
    """Which complete checkpoints are kept."""

    keep: int
    """Number of newest ones to keep."""
    keep_best: int
    """Number of those with the lowest score to keep as well."""

    def kept(self, scores: dict[str, float | None]) -> set[str]:
        """Tags to keep, given the scores of all tags. Of several of one step, which hold the same weights, the last."""
        tags = sorted({step_of(tag): tag for tag in sorted(scores)}.values())
        ranked = sorted((score, tag) for tag in tags if (score := scores[tag]) is not None)
        return {*tags[-self.keep :], *(tag for _, tag in ranked[: self.keep_best])}


def new_tag(step: int) -> str:
    """A name for the checkpoint of a step; of two for one step, the later one sorts last (milliseconds since 1970)."""
    return f"step-{step:08d}-{time.time_ns() // 1_000_000:012x}"


def step_of(tag: str) -> int:
    """The step that a checkpoint is named after."""
    return int(tag.split("-")[1])


def complete_tags(root: Location) -> list[str]:
    """Names of the checkpoints that have a manifest, oldest first."""
    return sorted(path.removesuffix(f"/{MANIFEST}") for path, _ in root.walk() if _is_manifest(path))


def _is_manifest(path: str) -> bool:
    tag, _, name = path.partition("/")
    return name == MANIFEST and _TAG.fullmatch(tag) is not None


def read_manifest(folder: Location) -> CheckpointManifest:
    """The manifest of a complete checkpoint.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        return read_object(folder / MANIFEST, CheckpointManifest, "remove it to resume from an earlier one")
    except FileNotFoundError as error:
        raise DataError(f"{folder / MANIFEST} was removed while it was read; run again") from error


def retain(root: Location, current: str, retention: Retention) -> None:
    """Remove checkpoints that retention does not keep, manifests first, and incomplete ones, but never `current`."""
    paths: dict[str, list[str]] = {}
    for path, _ in root.walk():
        tag = path.partition("/")[0]
        if _TAG.fullmatch(tag):
            paths.setdefault(tag, []).append(path)
    complete = [tag for tag, found in paths.items() if f"{tag}/{MANIFEST}" in found]
    scores = {tag: read_manifest(root / tag).score for tag in complete}
    stays = retention.kept(scores) | {current}
    for tag in set(paths) - stays:
        (root / tag / MANIFEST).remove()
        (root / tag).remove_tree()


def download(source: Location, file: CheckpointFile, target: Path) -> None:
    """Download a file of a checkpoint to local disk; it appears there only when complete and verified.

    Raises:
        DataError: it is missing or not what its receipt says.
    """
    aside = target.with_name(f"{target.name}.tmp")
    with aside.open("wb") as out:
        _check_digest(source, file, out)
    aside.replace(target)


def check(source: Location, file: CheckpointFile) -> None:
    """Read a file of a checkpoint once to verify it.

    Raises:
        DataError: it is missing or not what its receipt says.
    """
    with Path(os.devnull).open("wb") as out:
        _check_digest(source, file, out)


def _check_digest(source: Location, file: CheckpointFile, out: Any) -> None:
    digest = hashlib.sha256()
    try:
        with source.open() as blocks:
            while block := blocks.read(_BLOCK_BYTES):
                digest.update(block)
                out.write(block)
    except FileNotFoundError as error:
        raise DataError(
            f"{source} is missing; remove the {MANIFEST} beside it to resume from an earlier one"
        ) from error
    if digest.hexdigest() != file.sha256:
        raise DataError(
            f"{source} does not match its receipt ({file.bytes} bytes, SHA-256 {file.sha256[:16]}…); remove the "
            f"{MANIFEST} beside it to resume from an earlier one"
        )


class Upload:
    """A rank's part of one checkpoint on its way to the root, in a thread of its own.

    The thread is a daemon: a rank that fails does not wait for it. It makes no collective calls.
    """

    def __init__(self, root: Location, tag: str, files: Path, rank: int, commit: "Commit | None") -> None:
        """Begin.

        Args:
            root: root of all checkpoints.
            tag: name of this one.
            files: folder with the files of this rank and nothing else.
            rank: of this process.
            commit: what rank 0 does when its own files are uploaded; None on the others.
        """
        self.tag = tag
        self.error: StillhouseError | None = None
        self._root = root
        self._files = files
        self._rank = rank
        self._commit = commit
        self._has_files = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"upload-{tag}", daemon=True)
        self._thread.start()

    def wait_for_files(self) -> bool:
        """Whether this rank's files and receipt are at the root."""
        self._has_files.wait()
        return self.error is None

    def wait_for_end(self) -> bool:
        """Whether everything that this rank does for the checkpoint has succeeded."""
        self._thread.join()
        return self.error is None

    def give_up(self) -> None:
        """Stop waiting for receipts: another rank has failed, and there will be no manifest."""
        if self._commit is not None:
            self._commit.is_given_up.set()

    def _run(self) -> None:
        try:
            self._put_files()
            self._has_files.set()
            if self._commit is not None:
                self._commit.run(self._root, self.tag)
        except StillhouseError as error:
            self.error = error
        except OSError as error:
            self.error = DataError(f"cannot upload {self._files} to {self._root / self.tag}: {error}")
        finally:
            self._has_files.set()

    def _put_files(self) -> None:
        folder = self._root / self.tag
        files = tuple(_put(path, folder / path.name) for path in sorted(self._files.iterdir()))
        _create(_receipt(folder, self._rank), CheckpointReceipt(rank=self._rank, files=files))


class Commit:
    """Rank 0's part: the manifest as soon as all receipts exist, then retention."""

    def __init__(self, manifest: CheckpointManifest, retention: Retention, timeout_s: float) -> None:
        """`manifest` is complete except for its receipts; `timeout_s` limits the wait for those."""
        self.is_given_up = threading.Event()
        self._manifest = manifest
        self._retention = retention
        self._timeout_s = timeout_s

    def run(self, root: Location, tag: str) -> None:
        """Commit the checkpoint `tag`, or do nothing if it is given up.

        Raises:
            DataError: a receipt did not come in time, or another run writes here.
        """
        deadline = time.monotonic() + self._timeout_s
        receipts = []
        for rank in range(self._manifest.layout.world):
            receipt = self._await(_receipt(root / tag, rank), rank, deadline)
            if receipt is None:
                return
            receipts.append(receipt)
        _create(root / tag / MANIFEST, self._manifest.model_copy(update={"receipts": tuple(receipts)}))
        try:
            retain(root, tag, self._retention)
        except StillhouseError as error:
            _log.warning("old checkpoints could not be removed; that is tried again after the next one: %s", error)

    def _await(self, place: Location, rank: int, deadline: float) -> CheckpointReceipt | None:
        pause_s = _FIRST_POLL_S
        while True:
            with contextlib.suppress(FileNotFoundError):
                return read_object(place, CheckpointReceipt, "another run writes to this root; give this run another")
            if time.monotonic() > deadline:
                raise DataError(f"rank {rank} has written no receipt within commit_timeout_s = {self._timeout_s:g}")
            if self.is_given_up.wait(pause_s):
                return None
            pause_s = min(2 * pause_s, _LONGEST_POLL_S)


def _receipt(folder: Location, rank: int) -> Location:
    return folder / f"{RECEIPTS}/{rank:05d}.json"


def _create(place: Location, content: Config) -> None:
    if not place.create((content.model_dump_json(indent=1) + "\n").encode()):
        raise DataError(f"{place} exists already: another run writes to this root; give this run another")


def _put(path: Path, target: Location) -> CheckpointFile:
    """Upload one local file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not (target.is_local and _link(path, Path(target.path))):
        target.upload(path)
    return CheckpointFile(name=path.name, bytes=path.stat().st_size, sha256=digest)


def _link(path: Path, target: Path) -> bool:
    """Whether the file could be hard-linked to its target."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        return False
    return True
