"""KenLM: an n-gram model from a seeded sample of the live rows, as a dataset whose one part is the model file.

The sample is written by a narrow pass (DIR/kenlm_sample); the model is trained on the driver from that alone. Rows of
the sample are flagged by the perplexity step, whose `in_kenlm_sample` is the same function of id, seed and fraction.
"""

import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from etl.messages import full_text
from etl.mixture.sampling import in_sample, purpose_seed
from etl.pipeline import Pipeline
from etl.recipe import RUN_KENLM, TrainKenlm
from etl.rows import Rows, RowsRef
from etl.schema import ID
from etl.scoring.kenlm_train import backend, backend_line, sample_lines, train
from etl.scoring.perplexity import SAMPLE_PURPOSE, PerplexityStep
from etl.stages.context import Context
from etl.step import live
from etl.storage.build import Chunk, SplitWriter
from etl.storage.dataset import Dataset

TEXT = pa.schema([pa.field("id", ID, nullable=False), pa.field("text", pa.string(), nullable=False)])


@dataclass(frozen=True)
class SampleText:
    """The text of the sampled live rows of one split."""

    rows: RowsRef
    config: TrainKenlm

    def __call__(self, split: int) -> Iterator[Chunk]:
        seed = purpose_seed(SAMPLE_PURPOSE, self.config.seed)
        for batch in self.rows.read(split, ["id", "messages", "verdict"]):
            kept = batch.filter(live(batch))
            chosen = kept.filter(in_sample(kept.column("id"), seed, self.config.fraction))
            yield Chunk(
                pa.RecordBatch.from_arrays([chosen.column("id"), full_text(chosen)], schema=TEXT), batch.num_rows
            )


def train_kenlm(context: Context, rows: Rows) -> Dataset:
    """Write DIR/kenlm_sample and DIR/kenlm.

    Raises:
        ConfigError: no text in the sample, or more of it than kaldingram takes and lmplz is not there.
    """
    config = context.recipe.kenlm
    semantic = {"fraction": config.fraction, "seed": config.seed}
    job = context.job("kenlm_sample", "TEXT", TEXT, semantic, rows.tables(["messages", "verdict"]))
    sample = context.map(job, rows.splits, SampleText(rows.ref, config))
    training = {"order": config.order, "backend": backend()}
    job = context.job("kenlm", "MODEL", pa.schema([]), training, (sample,))
    return context.drive(job, functools.partial(_train, context, config, sample.result()))


def _train(context: Context, config: TrainKenlm, sample: Dataset, writer: SplitWriter) -> None:
    context.report(f"{'kenlm':>24}  {backend_line(config.max_words)}")
    with tempfile.TemporaryDirectory(prefix="stillhouse-kenlm-") as folder:
        # The sample was drawn already, so all of it is taken.
        lines = sample_lines(sample.read(), config.seed, 1.0)
        model = train(lines, config.order, Path(folder) / "model", config.max_words)
        files = {".kenlm": model.path}
        writer.write_files(0, "model", files, sample.manifest.rows_out, {"words": model.words})


def with_model(pipeline: Pipeline, config: TrainKenlm, model: Dataset) -> Pipeline:
    """The pipeline with this run's model in the place of `run:kenlm`."""
    part = model.manifest.parts[0]
    trained = {
        "model": model.part_location(part).url,
        "sha256": part.sha256,
        "sample_fraction": config.fraction,
        "sample_seed": config.seed,
    }
    steps = tuple(
        step.model_copy(update=trained) if isinstance(step, PerplexityStep) and step.model == RUN_KENLM else step
        for step in pipeline.steps
    )
    return pipeline.model_copy(update={"steps": steps})
