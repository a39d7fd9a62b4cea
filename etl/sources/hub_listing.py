"""The listing of a commit of the hub, kept in the cache folder: a commit never holds other files.

So `stillhouse plan`, and a run whose rows are committed, need no network. A file of `cache_dir()/hub` for each pattern,
200 bytes for each file that it names; one that is lost or damaged is made again. What is read is compared with the
listing.
"""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from etl.artefacts import cache_dir
from etl.digests import canonical_json, digest_of
from etl.errors import DataError
from etl.sources.hub import repo_of
from etl.sources.listing import Found, Listing
from etl.sources.spec import Source
from etl.storage.location import Location
from etl.storage.untrusted import read_object

VERSION = 1
"""Of what a listing is; raised when the same pattern would name other files, or leave out others."""
_KEPT = ("name", "size", "type", "blob_id")


class _File(BaseModel, strict=True, extra="forbid"):
    path: str
    relative: str
    info: dict[str, Any]


class _Stored(BaseModel, strict=True, extra="forbid"):
    folder: str
    files: list[_File]
    left_out: dict[str, Annotated[list[str], Field(min_length=2, max_length=2)]]


def kept_listing(source: Source, place: Location) -> Listing | None:
    """What was found for a pattern of the hub before; None for one that names no commit, or was not listed here."""
    if (file := _file(source, place)) is None:
        return None
    try:
        stored = read_object(file, _Stored, "remove it")
    except (FileNotFoundError, DataError):
        return None
    files = [Found(one.path, one.relative, one.info) for one in stored.files]
    left_out = {path: (reason, relative) for path, (reason, relative) in stored.left_out.items()}
    return Listing(stored.folder, files, left_out, format_of=source.format_of)


def keep_listing(source: Source, place: Location, listing: Listing) -> None:
    """Keep what was found, if it is of a commit and names a file."""
    file = _file(source, place)
    if file is None or not listing.files:
        return
    files = [
        {
            "path": found.path,
            "relative": found.relative,
            "info": {key: found.info[key] for key in _KEPT if key in found.info},
        }
        for found in listing.files
    ]
    tree = {"folder": listing.folder, "files": files, "left_out": listing.left_out}
    file.replace(canonical_json(tree).encode())


def _file(source: Source, place: Location) -> Location | None:
    """Where the listing of a pattern is kept."""
    repo = repo_of(place.url)
    if repo is None or not repo.is_commit:
        return None
    name = digest_of([VERSION, place.fs.endpoint, place.url, source.text_rows])
    return Location.of(cache_dir() / "hub" / f"{name}.json", {})
