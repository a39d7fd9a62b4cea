"""Checks the datasets below a folder: every manifest against the objects that it names.

Reads each part once, several at a time (a remote one through a file on local disk), and each receipt. Found are parts
that are missing, of another size, with other bytes or another number of rows, receipts that are gone or do not say what
the manifest says, objects that no manifest names, content digests that no longer hold, accounts that do not close, and
records and costs of runs that are damaged. Datasets of an earlier recipe are reported too, but are not damage.
"""

import contextlib
import functools
import hashlib
import posixpath
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from etl.errors import DataError, SourceError
from etl.hashing import ContentDigest
from etl.schema import Digested
from etl.storage.costs import COSTS, DATASET_COSTS, ESTIMATE, check_costs
from etl.storage.dataset import MANIFEST, PLAN, RECEIPTS, Dataset, is_ours, read_part, read_receipt, receipt_path
from etl.storage.location import Location
from etl.storage.lock import LINK, why_not_a_link
from etl.storage.manifest import Manifest, Part, accounting_gaps
from etl.storage.opened import Run, dataset_folders
from etl.storage.parts import file_content
from etl.storage.record import RECORD, read_record
from etl.storage.stale import stale_folders

T = TypeVar("T")
R = TypeVar("R")

_BLOCK = 1 << 22
_MOST_MISSING = 100
"""Receipts that are named one by one; a forged manifest may say that there were a million."""
_THREADS = 4
"""Parts that are read at a time: as many row groups in memory, as many copies of remote parts on disk."""


@dataclass(frozen=True)
class Difference:
    """One difference from a manifest."""

    dataset: str
    path: str
    kind: str
    """missing, short, changed, orphan, rows, content, account, receipt, lock, uncommitted or stale."""
    detail: str

    @property
    def is_damage(self) -> bool:
        """Whether anything is wrong; a stale dataset is sound, and checked as any other."""
        return self.kind != "stale"


def verify(place: Location | Run) -> Iterator[Difference]:
    """Every difference at or below a folder.

    Raises:
        DataError: there is no dataset at all.
    """
    run = Run.open(place)
    if not run.committed and not run.started:
        run.root.check_bucket()
        raise DataError(f"there is no dataset at or below {run.root}")
    yield from _check_locks(run)
    yield from _check_records(run)
    yield from _check_costs(run)
    for folder in run.started:
        yield Difference(run.place(folder).url, PLAN, "uncommitted", "an unfinished build; run its recipe again")
    for folder in run.committed:
        yield from _check_dataset(run, folder)


def _check_locks(run: Run) -> Iterator[Difference]:
    """What has the name of a lock and was written by no run: it holds up nobody, and nobody removes it."""
    for entry in run.entries:
        folder, name = posixpath.split(entry.path)
        if LINK.fullmatch(name) and (why := why_not_a_link(run.root / entry.path)):
            yield Difference(run.place(folder).url, name, "lock", f"no run has written it ({why}); remove it")


def _check_records(run: Run) -> Iterator[Difference]:
    """What runs say of themselves, here and further down, has to be readable; then it tells what is theirs."""
    for home in run.recorded:
        output = run.place(home)
        try:
            record = read_record(output / RECORD)
        except DataError as error:
            yield Difference(output.url, RECORD, "changed", str(error))
            continue
        for folder in stale_folders(output, record) if record else ():
            detail = "from an earlier recipe; no stage of the last recipe writes it"
            yield Difference((output / folder).url, MANIFEST, "stale", detail)


def _check_costs(run: Run) -> Iterator[Difference]:
    """What runs and datasets say that they cost has to be readable; what it should be, nobody knows any more."""
    homes = {COSTS: set(run.recorded), ESTIMATE: set(run.recorded), DATASET_COSTS: set(run.committed)}
    for entry in run.entries:
        folder, name = posixpath.split(entry.path)
        if folder in homes.get(name, ()):
            try:
                check_costs(run.root / entry.path)
            except DataError as error:
                yield Difference(run.place(folder).url, name, "changed", str(error))


def _check_dataset(run: Run, name: str) -> Iterator[Difference]:
    folder = run.place(name)
    try:
        dataset = run.dataset(name)
    except DataError as error:
        yield Difference(folder.url, MANIFEST, "changed", str(error))
        return
    manifest = dataset.manifest
    for gap in accounting_gaps(manifest.accounting):
        yield Difference(folder.url, MANIFEST, "account", gap)
    sizes = run.sizes(name)
    yield from _check_receipts(dataset, sizes)
    digests = []
    for found, digest in _parallel(functools.partial(_check_part, dataset, sizes), list(manifest.parts)):
        digests.append(digest)
        yield from found
    if None not in digests:
        total = ContentDigest.total(str(digest) for digest in digests)
        if total != manifest.content_digest:
            detail = f"digest {total}, but the manifest says {manifest.content_digest}"
            yield Difference(folder.url, MANIFEST, "content", detail)
    if sum(part.rows for part in manifest.parts) != manifest.rows_out:
        yield Difference(folder.url, MANIFEST, "rows", f"rows_out {manifest.rows_out} is not the sum over the parts")
    for path in orphans(manifest, list(sizes)):
        yield Difference(folder.url, path, "orphan", "no manifest names it; `stillhouse sweep` removes it")


def orphans(manifest: Manifest, paths: list[str]) -> list[str]:
    """The objects below a dataset's folder that neither it nor a dataset deeper down accounts for."""
    named = {part.path for part in manifest.parts}
    inner = [f"{folder}/" for folders in dataset_folders(paths) for folder in folders if folder]
    return [path for path in paths if path not in named and not is_ours(path) and not path.startswith(tuple(inner))]


def _parallel(check: Callable[[T], R], items: list[T]) -> Iterator[R]:
    """The results in the order of the items."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(check, items)


def _check_receipts(dataset: Dataset, sizes: dict[str, int]) -> Iterator[Difference]:
    manifest = dataset.manifest
    parts: dict[int, list[Part]] = {}
    for part in manifest.parts:
        parts.setdefault(part.split, []).append(part)

    def wrong(split: int) -> str:
        try:
            receipt = read_receipt(dataset.folder, manifest.receipts, split)
        except DataError as error:
            return str(error)
        if receipt is None:
            return "it is missing"
        return "" if list(receipt.parts) == parts.get(split, []) else "its parts differ from the manifest's"

    there = [split for split in range(manifest.splits) if receipt_path(manifest.receipts, split) in sizes]
    missing = sorted(set(range(manifest.splits)).difference(there))
    details = dict(zip(there, _parallel(wrong, there), strict=True))
    details |= dict.fromkeys(missing[:_MOST_MISSING], "it is missing")
    for split, detail in sorted(details.items()):
        if detail:
            yield Difference(dataset.folder.url, receipt_path(manifest.receipts, split), "receipt", detail)
    if len(missing) > _MOST_MISSING:
        detail = f"{len(missing):,} of {manifest.splits:,} are missing"
        yield Difference(dataset.folder.url, f"{RECEIPTS}/{manifest.receipts}", "receipt", detail)


def _check_part(dataset: Dataset, sizes: dict[str, int], part: Part) -> tuple[list[Difference], ContentDigest | None]:
    """What is wrong with a part, and the digest of its rows; None where they cannot be trusted."""

    def wrong(kind: str, detail: str) -> tuple[list[Difference], None]:
        return [Difference(dataset.folder.url, part.path, kind, detail)], None

    if part.path not in sizes:
        return wrong("missing", "the manifest lists it")
    if sizes[part.path] != part.bytes:
        return wrong("short", f"{sizes[part.path]} bytes, but the manifest says {part.bytes}")
    row_groups = []
    try:
        with _on_disk(dataset.part_location(part)) as (copy, sha256):
            if sha256 != part.sha256:
                return wrong("changed", "the SHA-256 differs from the manifest's")
            if not part.is_table:
                return [], ContentDigest(int(file_content([part]), 16))
            digest = ContentDigest(digested=_digested(copy))
            for batch in read_part(copy):
                row_groups.append(batch.num_rows)
                digest.add(batch)
    except FileNotFoundError:
        return wrong("missing", "it was removed while it was read")
    except SourceError as error:
        return wrong("changed", str(error))
    if tuple(row_groups) != part.row_groups:
        return wrong("rows", f"row groups {row_groups}, but the manifest says {part.row_groups}")
    return [], digest


def _digested(part: Location) -> Digested:
    with part.open_parquet() as file:
        return Digested.stored(file.schema_arrow.metadata)


@contextlib.contextmanager
def _on_disk(location: Location) -> Iterator[tuple[Location, str]]:
    """The object as a local file, and its SHA-256; a remote one comes over the network once."""
    with tempfile.TemporaryDirectory(prefix="stillhouse-verify-") as folder:
        copy = location if location.is_local else Location.of(Path(folder) / location.name)
        digest = hashlib.sha256()
        with contextlib.ExitStack() as files:
            source = files.enter_context(location.open())
            target = None if location.is_local else files.enter_context(Path(copy.path).open("wb"))
            while block := source.read(_BLOCK):
                digest.update(block)
                if target is not None:
                    target.write(block)
        yield copy, digest.hexdigest()
