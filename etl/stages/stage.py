"""A stage: one part of a recipe that, like a step, is its own configuration.

A subclass is a frozen pydantic model in a file of its own. It declares the folders that it writes, the steps that may
drop rows, the columns that it adds and the artefacts that it needs. `run` does the work on the driver, with the two
verbs of the engine. The run, its plan, its estimate and the check before a row is read all ask the stages; there is no
other list of them.
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import pyarrow as pa

from etl.config import Name
from etl.foreign import Kinded
from etl.rows import Rows
from etl.stages.context import Context, named_folder


class Stage(Kinded):
    """A function from the rows of a run to the same rows with more aligned tables."""

    name: Name | None = None
    """Distinguishes stages of one kind: folders are called NAME-FOLDER, columns NAME_COLUMN."""

    tables: ClassVar[Mapping[str, str]] = {}
    """Every folder that the stage may write -> the name of its table; without the stage's name and without cuts."""
    own_steps: ClassVar[tuple[str, ...]] = ()
    """Names of steps, besides those of folders, that no cut or step of a recipe may have."""
    is_output: ClassVar[bool] = False
    """Whether it writes the result of the run: it drops no row, and only other outputs follow it."""

    @property
    def label(self) -> str:
        """The stage's label for users: NAME-KIND, or just the kind."""
        return self.named(self.kind.rpartition(":")[2])

    def foreign_identity(self) -> dict[str, Any]:
        """For a stage from outside the package: everything that decides its rows, for the fingerprints of its datasets.

        Empty for a known kind, whose datasets each name what they depend on.
        """
        code = self.code()
        return {**self.fingerprinted(), **code} if code else {}

    def named(self, base: str) -> str:
        """A folder of this stage, or the label of one of its steps."""
        return named_folder(self.name, base)

    def folders(self) -> dict[str, str]:
        """The folders that a run of this stage always writes, in order -> the name of the table."""
        return {self.named(folder): table for folder, table in self.tables.items()}

    def folders_by_rows(self) -> dict[str, str]:
        """The folders, outside `rounds`, that it writes only if the rows need them -> the name of the table.

        Any other folder of an output is taken for one of an earlier recipe.
        """
        sure = self.folders()
        named = {self.named(folder): table for folder, table in self.tables.items() if not folder.startswith("rounds/")}
        return {folder: table for folder, table in named.items() if folder not in sure}

    def step_labels(self) -> tuple[str, ...]:
        """Labels of the steps under which a row may be dropped."""
        return (self.label,)

    def cut_names(self) -> tuple[str, ...]:
        """Names of the cuts, each of which is a folder and a step."""
        return ()

    @property
    def added(self) -> pa.Schema:
        """The columns that it adds, if the stage knows them from only its configuration."""
        return pa.schema([])

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """The columns after this stage.

        Raises:
            SchemaError: a column that it reads is missing or has the wrong type.
        """
        return schema

    def check_sources(self, known: Collection[str]) -> None:
        """Refuse names of sources that the recipe does not have.

        Raises:
            ValueError: naming the field, the value and the known ones.
        """

    def check_artefacts(self) -> None:
        """Fetch the stage's artefacts, or report what is missing.

        Raises:
            ConfigError: an artefact is missing or wrong.
        """

    def asks(self) -> tuple[str, ...]:
        """Artefacts that earlier stages of the run must offer, by the name after `run:`."""
        return ()

    def offers(self) -> tuple[str, ...]:
        """Artefacts that this stage makes for steps of later stages."""
        return ()

    def for_sample(self, share: float) -> "Stage":
        """The stage for a share of its input: scales the settings that are absolute numbers for a whole run."""
        return self

    def run(self, context: Context, rows: Rows) -> Rows:
        """Write the stage's datasets; returns the rows with its aligned tables added.

        Args:
            context: of the run, for this stage.
            rows: as earlier stages left them.

        Raises:
            StillhouseError: one of its four classes, for an error that the user can fix.
        """
        raise NotImplementedError(type(self).__name__)
