"""Base of stages made of steps and cuts: `filter`, `score` and `tokenize`.

The work is done by etl/stages/passes.py.
"""

from collections.abc import Collection

import pyarrow as pa

from etl.pipeline import Pipeline
from etl.rows import Rows
from etl.stages.context import Context
from etl.stages.passes import run_pipeline
from etl.stages.stage import Stage


class StepsStage(Stage):
    """One pass of steps over the text, then cuts by the measured columns."""

    def pipeline(self) -> Pipeline:
        """The steps and cuts of the pass."""
        raise NotImplementedError(type(self).__name__)

    def folders(self) -> dict[str, str]:
        pipeline = self.pipeline()
        measured = super().folders() if pipeline.steps else {}
        return measured | {cut.label: "VERDICT" for cut in pipeline.cuts}

    def folders_by_rows(self) -> dict[str, str]:
        return {}

    def step_labels(self) -> tuple[str, ...]:
        return self.pipeline().labels

    def cut_names(self) -> tuple[str, ...]:
        return tuple(cut.name for cut in self.pipeline().cuts)

    @property
    def added(self) -> pa.Schema:
        return self.pipeline().added

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        return self.pipeline().output_schema(schema)

    def check_sources(self, known: Collection[str]) -> None:
        self.pipeline().check_sources(known)

    def check_artefacts(self) -> None:
        for step in self.pipeline().steps:
            if not step.asks():
                step.artefacts()

    def asks(self) -> tuple[str, ...]:
        return self.pipeline().asks()

    def run(self, context: Context, rows: Rows) -> Rows:
        """Write DIR/<folder> with what the steps measured, then DIR/<cut name> for each cut."""
        ((folder, table),) = self.tables.items()
        return run_pipeline(context, rows, folder, table, self.pipeline().given(context.offers))
