"""`_run.json`: the record that a run writes beside its datasets, so that others know how they were made.

    name, format    of the recipe; of this file
    stages          in their order: label, kind, folders with their tables, steps that may drop a row
    recipe          the recipe itself, without what says where things lie or how fast to work

It contains no time, host, absolute path or credentials: two runs of one recipe write the same bytes. It is written
under the run's lock before the first dataset, and only where it differs from what is there: one GET a run, a PUT for a
new recipe. Nothing that it says is ever opened: the folders that it names are compared with those that are there.
"""

from typing import Any

from etl.config import Config
from etl.errors import DataError
from etl.storage.location import Location
from etl.storage.manifest import leave
from etl.storage.untrusted import MAX_OBJECT_BYTES, NotOursError, RelativePath, Text, parse_object, parse_tree, shown

RECORD = "_run.json"
LOG = "_run.log"
"""What the last run that did something has said, with the time, and what libraries said meanwhile; it is never read."""
FORMAT = 1


SafeName = RelativePath
"""Of a stage, a folder below the output, a table or a step."""


class StageRecord(Config):
    """One stage of a run."""

    label: SafeName
    """How the run and its users call it."""
    kind: SafeName
    folders: dict[SafeName, SafeName] = {}
    """Folder below the output -> word of its table, in no order."""
    folders_by_rows: dict[SafeName, SafeName] = {}
    """The same of what it writes only if the rows ask for it, but for what lies in `rounds`."""
    steps: tuple[SafeName, ...] = ()
    """What may drop a row, in order: the keys of the accounts."""

    def owns(self, folder: str) -> bool:
        """Whether the stage writes a folder, or rounds for one."""
        owner = _owner(folder)
        return owner in self.folders or owner in self.folders_by_rows


class RunRecord(Config):
    """The whole of `_run.json`."""

    format: int = FORMAT
    name: Text
    stages: tuple[StageRecord, ...]
    recipe: dict[str, Any]
    """In JSON types; fields at their default, and those that are `located`, are left out."""

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps of all stages, in order."""
        return tuple(step for stage in self.stages for step in stage.steps)

    def owns(self, folder: str) -> bool:
        """Whether a stage of the run writes a folder, or rounds for one."""
        return any(stage.owns(folder) for stage in self.stages)


def _owner(folder: str) -> str:
    """The folder that a round belongs to; any other folder belongs to itself."""
    kind, _, rest = folder.partition("/")
    return rest.rpartition("-")[0] if kind == "rounds" else folder


def read_record(place: Location) -> RunRecord | None:
    """The record at a place; None where there is none.

    Raises:
        DataError: it is damaged, or of a format that this version does not know.
    """
    try:
        data = place.read_at_most(MAX_OBJECT_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        # First of all, since what another format holds is not known here.
        version = parse_tree(data).get("format", FORMAT)
        if version != FORMAT:
            raise DataError(
                f"{place} has the format {shown(version)}, but this version of Stillhouse reads format {FORMAT}; "
                "use the version that wrote it"
            )
        return parse_object(data, RunRecord)
    except NotOursError as error:
        raise DataError(
            f"{place} is damaged: {error}; remove it, and the next run of the recipe will write it again"
        ) from error


def write_record(output: Location, record: RunRecord) -> None:
    """Write the record to an output, unless it is there already."""
    leave(output / RECORD, record)
