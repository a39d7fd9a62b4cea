"""Checks the places a recipe reads from and writes to: neither may be inside the other, also through links.

An output in an input folder would be read by the next run; an input in a folder that the run writes would be cleared.
Costs, on the local disk, one more listing of the input without reading it; elsewhere paths are compared and nothing is
asked.
"""

import functools
import itertools
import os
import posixpath
from collections.abc import Collection, Iterator

from etl.errors import ConfigError, DataError, SourceError
from etl.run.recipe import Recipe
from etl.run.record import stage_records
from etl.sources.files import source_places
from etl.sources.listing import FormatOf, Listing, Pattern, list_pattern, pattern_in_words, pattern_of
from etl.storage.location import Location


def check_places(recipe: Recipe) -> None:
    """Refuse an output that a source would read, and a source that the run would clear.

    Raises:
        ConfigError: naming both.
        SourceError: the input cannot be listed.
    """
    folders = _folders(recipe)
    for name, source in recipe.sources.items():
        for place in source_places(source, recipe.storage):
            if not _one_store(place, recipe.place):
                continue
            try:
                pattern, listing = place.ask("list", functools.partial(_look, place, source.format_of))
            except (DataError, SourceError) as error:
                raise SourceError(f"source '{name}': {error}") from error
            key = f"sources.{name}.{'path' if source.dataset is None else 'dataset'}={place}"
            output = _real(recipe.place)
            for relative, real in listing.entered:
                rest = _below(output, real)
                if rest is not None and _reads(pattern, posixpath.join(relative, rest), folders):
                    raise ConfigError(
                        f"output={recipe.place} is inside the input folder {real} of {key}, so the next run would "
                        "read what this one writes; choose another output"
                    )
            for real in _ends(place, listing):
                rest = _below(real, output)
                if rest is not None and rest.partition("/")[0] in folders:
                    raise ConfigError(
                        f"{key} reads {real}, a folder that the run clears before it writes to "
                        f"output={recipe.place}; choose another output, or move the input"
                    )


def _folders(recipe: Recipe) -> set[str]:
    """Names of all folders directly below the output that a run of the recipe may write."""
    written = {folder for record in stage_records(recipe) for folder in record.folders}
    written |= {stage.named(folder) for stage in recipe.stages for folder in stage.tables}
    return {"rounds", "tables", *(folder.partition("/")[0] for folder in written)}


def _one_store(one: Location, other: Location) -> bool:
    ends = [place.options.get("endpoint_url") for place in (one, other)]
    return (one.is_local and other.is_local) or (one.scheme == other.scheme and ends[0] == ends[1])


def _real(place: Location) -> str:
    return os.path.realpath(place.path) if place.is_local else place.path.rstrip("/")


def _look(place: Location, format_of: FormatOf) -> tuple[Pattern | None, Listing]:
    """The path that is named, and the folders that are searched for it."""
    if place.is_local:
        return pattern_of(place), list_pattern(place, format_of)
    pattern = pattern_in_words(place.path)
    return pattern, Listing(pattern.folder, entered=[("", pattern.folder.rstrip("/"))])


def _ends(place: Location, listing: Listing) -> Iterator[str]:
    """Where the input really is: its folders, and the targets of links to files."""
    yield from (real for _, real in listing.entered)
    if place.is_local:
        named = not listing.entered
        yield from (os.path.realpath(file.path) for file in listing.files if named or file.info["islink"])


def _below(path: str, folder: str) -> str | None:
    """The path relative to a folder that contains it, "" for the folder itself; None if it is elsewhere."""
    if path == folder:
        return ""
    prefix = folder.rstrip("/") + "/"
    return path.removeprefix(prefix) if path.startswith(prefix) else None


def _reads(pattern: Pattern | None, output: str, folders: Collection[str]) -> bool:
    """Whether a pattern looks into a folder of ours below an output, whose path is relative to the pattern's folder."""
    if pattern is None:
        return False
    return pattern.wanted is None or any(
        all(map(pattern.enters, itertools.accumulate([*filter(None, output.split("/")), folder], posixpath.join)))
        for folder in folders
    )
