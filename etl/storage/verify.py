"""Checking what is committed below a folder: every manifest against the objects that it names.

Reads each part once. Found are parts that are missing, of another size, with other bytes or another number of rows,
objects that no manifest names, content digests that no longer hold, and accounts that do not close.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from etl.errors import DataError
from etl.hashing import ContentDigest
from etl.storage.dataset import MANIFEST, PLAN, Dataset, read_part
from etl.storage.location import Location
from etl.storage.manifest import Part, accounting_gaps

MODEL_TABLE = "MODEL"
"""Table name of a dataset whose parts are files that are no Parquet."""
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Difference:
    """One thing that is not as a manifest says."""

    dataset: str
    path: str
    kind: str
    """missing, short, changed, orphan, rows, content, account or uncommitted."""
    detail: str


def find_datasets(root: Location) -> tuple[list[Location], list[Location]]:
    """Folders at or below `root` with a manifest, and those with a plan but no manifest."""
    paths = [path for path, _ in root.walk()]

    def folders(name: str) -> set[str]:
        return {path.removesuffix(name).rstrip("/") for path in paths if path == name or path.endswith(f"/{name}")}

    committed = folders(MANIFEST)
    started = folders(PLAN) - committed
    return [_below(root, path) for path in sorted(committed)], [_below(root, path) for path in sorted(started)]


def _below(root: Location, path: str) -> Location:
    return root / path if path else root


def verify(root: Location) -> Iterator[Difference]:
    """Every difference at or below a folder.

    Raises:
        DataError: there is no dataset at all.
    """
    committed, started = find_datasets(root)
    if not committed and not started:
        raise DataError(f"there is no dataset at or below {root}")
    for folder in started:
        yield Difference(folder.url, PLAN, "uncommitted", "a build that did not end; run its recipe again")
    for folder in committed:
        yield from verify_dataset(folder)


def verify_dataset(folder: Location) -> Iterator[Difference]:
    """Every difference of one dataset."""
    try:
        dataset = Dataset.open(folder)
    except DataError as error:
        yield Difference(folder.url, MANIFEST, "changed", str(error))
        return
    manifest = dataset.manifest
    for gap in accounting_gaps(manifest.accounting):
        yield Difference(folder.url, MANIFEST, "account", gap)
    sizes = dict(folder.walk())
    digest = ContentDigest()
    broken = False
    for part in manifest.parts:
        found = list(_check_part(dataset, part, sizes, digest))
        broken = broken or bool(found)
        yield from found
    if not broken and manifest.table != MODEL_TABLE and str(digest) != manifest.content_digest:
        yield Difference(
            folder.url, MANIFEST, "content", f"digest {digest}, the manifest says {manifest.content_digest}"
        )
    if sum(part.rows for part in manifest.parts) != manifest.rows_out:
        yield Difference(folder.url, MANIFEST, "rows", f"rows_out {manifest.rows_out} is not the sum of the parts")
    named = {part.path for part in manifest.parts}
    for path in sizes:
        if path not in named and not any(piece.startswith("_") for piece in path.split("/")):
            yield Difference(folder.url, path, "orphan", "no manifest names it")


def _check_part(dataset: Dataset, part: Part, sizes: dict[str, int], digest: ContentDigest) -> Iterator[Difference]:
    place = dataset.folder.url
    if part.path not in sizes:
        yield Difference(place, part.path, "missing", "the manifest names it")
        return
    if sizes[part.path] != part.bytes:
        yield Difference(place, part.path, "short", f"{sizes[part.path]} bytes, the manifest says {part.bytes}")
        return
    if _sha256(dataset.part_location(part)) != part.sha256:
        yield Difference(place, part.path, "changed", "another SHA-256 than the manifest's")
        return
    if dataset.manifest.table == MODEL_TABLE:
        return
    row_groups = []
    for batch in read_part(dataset.part_location(part)):
        row_groups.append(batch.num_rows)
        digest.add(batch)
    if tuple(row_groups) != part.row_groups:
        yield Difference(place, part.path, "rows", f"row groups {row_groups}, the manifest says {part.row_groups}")


def _sha256(location: Location) -> str:
    digest = hashlib.sha256()
    with location.open() as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
