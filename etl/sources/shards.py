"""Lists of shards: a text file that names the files of a source, one a line, in the place of a glob.

A name is relative to the source's folder, or a whole path or URL. Blank lines and those that begin with `#` name
nothing. Every name must be there, once; what else lies in the folder is left out and counted. Costs a read of the list
and one listing of the folder, however many names there are, and a look at each whole path.
"""

import posixpath
from dataclasses import dataclass
from typing import Final, Self

from etl.errors import SourceError
from etl.sources.listing import Listing
from etl.storage.location import Location

NOT_LISTED: Final = "not in the list of shards"
MAX_LIST_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class Shards:
    """What a list names, each with its line."""

    url: str
    relative: dict[str, int]
    """Names below the source's folder."""
    whole: dict[str, int]
    """Paths from the root, and URLs."""

    @classmethod
    def read(cls, place: Location) -> Self:
        """The list at a place.

        Raises:
            SourceError: there is none, it is no text, names nothing, a file twice, or one above the folder.
            DataError: it cannot be read, or is too long.
        """
        try:
            text = place.read_at_most(MAX_LIST_BYTES).decode("utf-8-sig")
        except FileNotFoundError as error:
            raise SourceError(f"there is no list of shards {place}") from error
        except UnicodeDecodeError as error:
            raise SourceError(f"the list of shards {place} is not UTF-8 text") from error
        found = cls(place.url, {}, {})
        for number, line in enumerate(text.splitlines(), 1):
            if (name := line.strip()) and not name.startswith("#"):
                found._add(name, number)
        if not found.relative and not found.whole:
            raise SourceError(f"the list of shards {place} lists no file")
        return found

    def _add(self, name: str, number: int) -> None:
        is_whole = name.startswith("/") or "://" in name
        name = name if is_whole else posixpath.normpath(name)
        if name.split("/")[0] == "..":
            raise SourceError(f"{self.url}, line {number}: {name} is above the folder; write its whole path")
        names = self.whole if is_whole else self.relative
        if name in names:
            raise SourceError(f"{self.url}, line {number}: {name} is already in line {names[name]}; remove one")
        names[name] = number

    def choose(self, listing: Listing, folder: Location) -> None:
        """Leave out of the listing of the source's folder what is not named.

        Raises:
            SourceError: a name is not there, or is no file that can be read.
        """
        there = {found.relative for found in listing.files}
        why = {relative: reason for reason, relative in listing.left_out.values()}
        for name, number in self.relative.items():
            if name not in there:
                reason = f" that can be read ({why[name]})" if name in why else ""
                raise SourceError(f"{self.url}, line {number}: there is no file {name} in {folder}{reason}")
        for found in listing.files:
            if found.relative not in self.relative:
                listing.leave_out(NOT_LISTED, found.relative)
        listing.files = [found for found in listing.files if found.relative in self.relative]

    def check_whole(self, name: str, listing: Listing) -> None:
        """See whether a whole path is one file.

        Raises:
            SourceError: it is none, or a folder or glob of several.
        """
        if [found.relative for found in listing.files] != [posixpath.basename(name)]:
            raise SourceError(f"{self.url}, line {self.whole[name]}: there is no file {name}")
