"""Finds datasets that an earlier recipe left in an output, and corpora that are older than the datasets beside them.

The record of a run names the folders of its stages. A committed dataset in a folder that none of them owns is *stale*:
a run of another recipe wrote it, and this one neither reads nor renews it. It is intact, and is never removed without
being asked for. An output without a record has none, and a dataset that says of itself that it lay in another place (a
copy, or one of a run further down) is not taken for one.

Folders lie directly below the output, or one level further down as those in `rounds` and `tables` do. Looking costs a
LIST of the output's own level, and for each folder there that no stage owns a HEAD or two, a LIST or a GET.
"""

import itertools
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etl.errors import StillhouseError
from etl.storage.dataset import MANIFEST, NUM_READERS, Dataset
from etl.storage.location import Location
from etl.storage.manifest import Manifest
from etl.storage.opened import Run, State
from etl.storage.record import RECORD, RunRecord, read_record

_OF_NO_RECIPE = frozenset({"TEACHER_LOGP"})
"""Tables that other commands than `run` write, which may lie in a run's output."""
_DROPPED = "dropped"
_MOST_LINES = 3


def stale_folders(output: Location, record: RunRecord) -> tuple[str, ...]:
    """Folders of datasets that no stage of a record owns, sorted.

    Args:
        output: of the run.
        record: of the run, or of a recipe that is to run there.

    Raises:
        DataError: a manifest is damaged.
    """
    return tuple(sorted(_stale(output, "", record)))


def stale_below(run: Run) -> tuple[str, ...]:
    """The stale folders of a run and of each run further down, below the folder that was opened; sorted.

    Raises:
        DataError: a record or a manifest is damaged.
    """
    found = []
    for home in run.recorded:
        record = read_record(run.place(home) / RECORD)
        assert record is not None, "it was listed"
        found += [f"{home}/{folder}".lstrip("/") for folder in stale_folders(run.place(home), record)]
    return tuple(sorted(found))


def remedy(output: Location) -> str:
    """The command that removes what is stale."""
    return f"`stillhouse sweep {shlex.quote(output.path if output.is_local else output.url)} --stale --delete`"


def stale_lines(output: Location, folders: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What a run says of stale folders at its end: a folder, and a line about it; nothing where there are none."""
    for folder in folders[:_MOST_LINES]:
        yield folder, "stale: from an earlier recipe; no stage of this one writes it"
    if folders:
        more = len(folders) - _MOST_LINES
        yield "stale", f"{f'and {more:,} more; ' if more > 0 else ''}{remedy(output)} removes what is stale"


def _stale(output: Location, parent: str, record: RunRecord) -> Iterator[str]:
    """The stale folders in a folder of the output, "" for the output itself."""
    for name in folders_in(output / parent if parent else output):
        folder = f"{parent}/{name}" if parent else name
        if name.startswith(("_", ".")) or record.owns(folder):
            continue
        place = output / folder
        if (place / MANIFEST).exists():
            manifest = Dataset.open(place).manifest
            if manifest.stage == folder and manifest.table not in _OF_NO_RECIPE:
                yield folder
        elif not parent and not (place / RECORD).exists():
            yield from _stale(output, folder, record)


def folders_in(place: Location) -> tuple[str, ...]:
    """Names of the folders directly in a folder, sorted: one LIST; none where there is no such folder."""

    def look() -> list[dict[str, Any]]:
        place.fs.invalidate_cache(place.path)
        found: list[dict[str, Any]] = place.fs.ls(place.path, detail=True)
        return found

    try:
        found = place.ask("list", look)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    prefix = place.path.rstrip("/") + "/"
    paths = [info["name"] for info in found if info["type"] == "directory" and info["name"].startswith(prefix)]
    # Some stores list the folder itself, too.
    return tuple(sorted({path.removeprefix(prefix).rstrip("/") for path in paths} - {""}))


def outdated(corpus: str | Location) -> str:
    """Why a corpus is not what the run beside it makes, as far as manifests tell; empty where they tell nothing.

    The run is the one in the folder above, by its `_run.json`; a corpus that was copied elsewhere is taken as it is.
    Looked at are the steps that rows have been through, by DIR/dropped; builds that did not end; and every dataset that
    the corpus was made from, directly or not. One that is gone says nothing, since the corpus does not need it any
    more. Costs a HEAD or two for each folder of the run, a LIST of `rounds`, one GET of the record and one of each of
    these manifests, several at a time.

    Raises:
        DataError: there is no corpus.
    """
    place = Location.of(corpus)
    manifest = Dataset.open(place).manifest
    url = place.url.removesuffix(f"/{manifest.stage}")
    if url == place.url:
        return ""
    run = Run.open(Location(url, place.options, place.single_writer))
    try:
        reason = _why_outdated(run, manifest)
    except StillhouseError as error:
        reason = f"the run beside it cannot be read: {error}"
    return f"{place} may be out of date: {reason}" if reason else ""


def _why_outdated(run: Run, manifest: Manifest) -> str:
    record = run.record
    if record is None:
        return ""
    if not record.owns(manifest.stage):
        return f"no stage of the recipe that last ran in {run.root} writes it"
    return _by_steps(run, record) or _by_builds(run, record) or _by_inputs(run, record, manifest)


def _by_steps(run: Run, record: RunRecord) -> str:
    """DIR/dropped is written just before the corpus, and says through which steps rows had gone."""
    if run.state(_DROPPED) != "committed":
        return ""
    before = run.dataset(_DROPPED).manifest.names_in("stages")
    stages = itertools.takewhile(lambda stage: stage.label != _DROPPED, record.stages)
    now = {step: stage.label for stage in stages for step in stage.steps}
    changed = sorted(step for step in before.keys() | now.keys() if before.get(step) != now.get(step))
    if not changed:
        return ""
    return (
        f"the recipe that last ran in {run.root} has other steps before it ({', '.join(changed)}); run that recipe to "
        "its end"
    )


def _by_builds(run: Run, record: RunRecord) -> str:
    """A build that did not end, of a stage of the record."""
    rounds = [f"rounds/{name}" for name in folders_in(run.place("rounds"))]
    folders = [*(folder for stage in record.stages for folder in stage.folders), *filter(record.owns, rounds)]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for folder, state in zip(folders, pool.map(run.state, folders), strict=True):
            if state == "started":
                return f"{folder} is started but not committed; run the recipe that last ran in {run.root} to its end"
    return ""


def _by_inputs(run: Run, record: RunRecord, manifest: Manifest) -> str:
    """The first dataset, on the way back from a manifest, that is not what it was then."""
    states: dict[str, State] = {}
    todo = [manifest]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        while todo:
            asked = [pair for made in todo for pair in made.inputs.items()]
            new = sorted({folder for folder, _ in asked} - states.keys())
            states |= zip(new, pool.map(run.state, new), strict=True)
            todo = [made.manifest for made in pool.map(run.dataset, (one for one in new if states[one] == "committed"))]
            for folder, digest in asked:
                if states[folder] == "committed" and (change := _change(run, record, folder, digest)):
                    return f"it was made from {folder}, {change}"
    return ""


def _change(run: Run, record: RunRecord, folder: str, digest: str) -> str:
    """How a dataset is another one than that of a digest; empty where it is not."""
    if not record.owns(folder):
        return f"which no stage of the recipe that last ran in {run.root} writes; run that recipe to its end"
    if run.dataset(folder).manifest.content_digest != digest:
        return f"which has other rows now; run the recipe that last ran in {run.root} to its end"
    return ""
