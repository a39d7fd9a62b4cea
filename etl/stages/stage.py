"""A stage: one part of a recipe that is its own configuration, as a step is.

A subclass is a frozen pydantic model in a file of its own. It says which folders it writes, which of its steps may drop
a row, what columns it adds and which artefacts it needs; `run` does the work on the driver, through the two verbs of
the engine. Whoever looks at a recipe (the run, its plan, its estimate, the check before a row is read) asks the stages;
nobody keeps a list of their names.
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import pyarrow as pa

from etl.config import Name
from etl.foreign import Kinded
from etl.rows import Rows
from etl.stages.context import Context, named_folder


class Stage(Kinded):
    """A function from the rows of a run to the same rows with more tables beside them."""

    name: Name | None = None
    """Distinguishes stages of one kind: folders are called NAME-FOLDER, columns NAME_COLUMN."""

    tables: ClassVar[Mapping[str, str]] = {}
    """Every folder that the stage may write -> the word of its table; without a name, and without those of cuts."""
    own_steps: ClassVar[tuple[str, ...]] = ()
    """Names of steps, beside those of folders, that no cut or step of a recipe may have."""
    is_output: ClassVar[bool] = False
    """Whether it writes what the run is for: it drops no row, and only other outputs come after it."""

    @property
    def label(self) -> str:
        """The stage as users know it: NAME-KIND, or the kind alone."""
        return self.named(self.kind.rpartition(":")[2])

    def foreign_identity(self) -> dict[str, Any]:
        """Of a stage from outside the package: all that decides its rows, for the fingerprint of each of its datasets.

        Nothing for a known kind, whose datasets each name what they depend on.
        """
        code = self.code()
        return {**self.fingerprinted(), **code} if code else {}

    def named(self, base: str) -> str:
        """A folder of this stage, or the label of one of its steps."""
        return named_folder(self.name, base)

    def folders(self) -> dict[str, str]:
        """The folders that a run of this stage surely writes, in their order -> the word of the table."""
        return {self.named(folder): table for folder, table in self.tables.items()}

    def folders_by_rows(self) -> dict[str, str]:
        """The folders that it writes only if the rows ask for it, but for those in `rounds` -> the word of the table.

        What an output holds in a folder of neither kind is taken for an earlier recipe's.
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
        """The columns that it adds, of a stage that knows them from its configuration alone."""
        return pa.schema([])

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """The columns after this stage.

        Raises:
            SchemaError: a column that it reads is not there, or is of another type than it needs.
        """
        return schema

    def check_sources(self, known: Collection[str]) -> None:
        """Refuse names of sources that the recipe does not have.

        Raises:
            ValueError: naming the field, the value and the known ones.
        """

    def check_artefacts(self) -> None:
        """Fetch what the stage needs from outside, or say what is missing.

        Raises:
            ConfigError: an artefact is absent or wrong.
        """

    def asks(self) -> tuple[str, ...]:
        """What earlier stages of the run must offer, by the name after `run:`."""
        return ()

    def offers(self) -> tuple[str, ...]:
        """What this stage makes for the steps of later ones."""
        return ()

    def for_sample(self, share: float) -> "Stage":
        """The stage over a share of its input: with so much of what is one number for a run, whatever its rows."""
        return self

    def run(self, context: Context, rows: Rows) -> Rows:
        """Write the stage's datasets; the rows with its aligned tables beside them.

        Args:
            context: of the run, for this stage.
            rows: as earlier stages have left them.

        Raises:
            StillhouseError: one of its four classes, for what a user can mend.
        """
        raise NotImplementedError(type(self).__name__)
