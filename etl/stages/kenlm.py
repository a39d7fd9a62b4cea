"""KenLM: an n-gram model from a seeded sample of the live rows, stored as a dataset whose only part is the model file.

A narrow pass writes the sample (DIR/kenlm_sample); the driver trains the model from only that. The perplexity step
flags rows of the sample: its `in_kenlm_sample` is the same function of id, seed and fraction.
"""

import functools
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from etl.laws import Growth, With
from etl.messages import full_text
from etl.mixture.sampling import in_sample, purpose_seed
from etl.rows import Rows, RowsRef
from etl.schema import ID
from etl.scoring.kenlm_train import MODEL_VERSIONS, backend, backend_line, sample_lines, train
from etl.scoring.perplexity import SAMPLE_PURPOSE
from etl.stages.context import Context
from etl.stages.stage import Stage
from etl.step import Offer, live
from etl.storage.build import Chunk, SplitWriter
from etl.storage.dataset import Dataset

TEXT = pa.schema([pa.field("id", ID, nullable=False), pa.field("text", pa.string(), nullable=False)])


class Kenlm(Stage):
    """Writes DIR/kenlm_sample and DIR/kenlm: an n-gram model of a seeded sample of the remaining rows."""

    kind: Literal["kenlm"] = "kenlm"
    purpose: ClassVar[str] = "Train an n-gram model on a sample of the rows, for a later `perplexity` step."
    example: ClassVar[str] = "{kind: kenlm, order: 3, fraction: 0.2}"
    tables: ClassVar[Mapping[str, str]] = {"kenlm_sample": "TEXT", "kenlm": "MODEL"}

    order: int = Field(default=3, ge=2, le=5)
    """Longest n-gram of the model, in tokens."""
    fraction: float = Field(default=0.1, gt=0, le=1)
    """Share of the rows to train the model on, chosen by a hash of their ids."""
    seed: int = Field(default=0, ge=0)
    """Seed of that choice."""
    max_words: int = Field(default=2_000_000, ge=1)
    """Largest sample, in words, that is trained without KenLM's lmplz."""

    def offers(self) -> tuple[str, ...]:
        return (self.named("kenlm"),)

    def run(self, context: Context, rows: Rows) -> Rows:
        """Return the rows unchanged; offers the model to perplexity steps as `run:kenlm`.

        Raises:
            ConfigError: the sample has no text, or more words than kaldingram accepts while lmplz is not installed.
        """
        model = _write_model(context, rows, self)
        part = model.manifest.parts[0]
        offer = Offer(model.part_location(part).url, part.sha256, self.fraction, self.seed)
        context.offers[context.folder("kenlm")] = offer
        return rows


@dataclass(frozen=True)
class SampleText:
    """The text of the sampled live rows of one split."""

    rows: RowsRef
    fraction: float
    seed: int

    def __call__(self, split: int) -> Iterator[Chunk]:
        seed = purpose_seed(SAMPLE_PURPOSE, self.seed)
        for batch in self.rows.read(split, ["id", "messages", "verdict"]):
            kept = batch.filter(live(batch))
            chosen = kept.filter(in_sample(kept.column("id"), seed, self.fraction))
            yield Chunk(
                pa.RecordBatch.from_arrays([chosen.column("id"), full_text(chosen)], schema=TEXT), batch.num_rows
            )


def _write_model(context: Context, rows: Rows, config: Kenlm) -> Dataset:
    semantic = {"fraction": config.fraction, "seed": config.seed}
    job = context.job("kenlm_sample", "TEXT", TEXT, semantic, rows.tables(["messages", "verdict"]))
    sample = context.map(job, rows.splits, SampleText(rows.ref, config.fraction, config.seed))
    training = {"order": config.order, "backend": backend()}
    version, grows = MODEL_VERSIONS[backend()], Growth(tasks=With.NOTHING)
    job = context.job("kenlm", "MODEL", pa.schema([]), training, (sample,), version=version, grows=grows)
    return context.drive(job, functools.partial(_train, context, config, sample.result()))


def _train(context: Context, config: Kenlm, sample: Dataset, writer: SplitWriter) -> None:
    context.detail("kenlm", backend_line(config.max_words))
    with tempfile.TemporaryDirectory(prefix="stillhouse-kenlm-") as folder:
        # The sample was drawn already, so all of it is taken.
        lines = sample_lines(sample.read(), config.seed, 1.0)
        model = train(lines, config.order, Path(folder) / "model", config.max_words)
        files = {".kenlm": model.path}
        writer.write_files(0, "model", files, sample.manifest.rows_out, {"words": model.words})
