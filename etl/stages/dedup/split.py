"""Split: assigns each row to a side, and keeps prompts from being on both.

train or validation follows from a hash of the split key. Rows of one prompt can have keys of their own (by default a
row's id), so a validation row whose prompt is also in train is dropped, with a reason. The dedup stage handles near
duplicates. Costs one shuffle of 56 bytes a row.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from etl.config import Config
from etl.engine import Exchange
from etl.hashing import hash128
from etl.laws import GroupRows, Growth
from etl.messages import instruction_text
from etl.mixture.sampling import in_sample, purpose_seed
from etl.rows import Rows, RowsRef
from etl.stages.context import Context
from etl.stages.dedup.marks import LOSER, LOSER_VERSION, LoserMark, losers, mark_hits
from etl.stages.keyed import bucket_of_hash128, first_of_groups, live_rows, reduced
from etl.stages.stage import Stage
from etl.storage.build import Chunk


class Sides(Config):
    """Which split keys are held out."""

    validation_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Share of split keys that go to split=validation."""
    seed: int = Field(default=0, ge=0)
    """Seed of the choice of validation rows."""

    def sides(self) -> dict[str, float | int]:
        """Both fields, for a fingerprint."""
        return {"validation_fraction": self.validation_fraction, "seed": self.seed}


def split_of(keys: pa.Array, sides: Sides) -> pa.Array:
    """train or validation for each split key: a hash of the key below validation_fraction is validation."""
    held_out = in_sample(keys, purpose_seed("split", sides.seed), sides.validation_fraction)
    return pc.if_else(held_out, "validation", "train")


PROMPT_KEY = pa.schema(
    [
        ("bucket", pa.int32()), ("prompt", pa.binary()), ("validation", pa.bool_()), ("id", pa.binary()),
        ("row", pa.int64()),
    ]
)  # fmt: skip
PROMPT_BYTES = 56
"""Bytes of a row in the shuffle."""


@dataclass(frozen=True)
class EmitPrompts:
    """A hash of each live row's prompt, and its side; a row without a prompt (raw text) shares it with no row."""

    rows: RowsRef
    sides: Sides
    num_buckets: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch, keys in live_rows(self.rows, split, ["id", "messages", "split_key"]):
            text = instruction_text(batch)
            asked = pc.not_equal(text, "")
            batch, keys = batch.filter(asked), keys[asked.to_numpy(zero_copy_only=False)]
            prompt = hash128([text.filter(asked)])
            columns = [
                bucket_of_hash128(prompt, self.num_buckets), prompt.cast(pa.binary()),
                pc.equal(split_of(batch.column("split_key"), self.sides), "validation"),
                batch.column("id").cast(pa.binary()), pa.array(keys),
            ]  # fmt: skip
            yield pa.RecordBatch.from_arrays(columns, schema=PROMPT_KEY)


def leaked_prompts(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """Validation rows whose prompt is also that of a train row: LOSER rows that name the first such train row."""
    return reduced(batches, _leaked)


def _leaked(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for table, first in first_of_groups(batches, "prompt"):
        held_out = table["validation"].to_numpy()
        # train sorts before validation, so the first row of a group is a train row if train has the prompt.
        yield losers(table, first, held_out & ~held_out[first])


class Split(Sides, Stage):
    """Writes DIR/split_hits and DIR/split: validation rows whose prompt is also in train get a verdict."""

    kind: Literal["split"] = "split"
    purpose: ClassVar[str] = "Choose validation rows and drop those whose prompt also stands in train."
    example: ClassVar[str] = "{kind: split, validation_fraction: 0.02}"
    tables: ClassVar[Mapping[str, str]] = {"split_hits": "LOSER", "split": "VERDICT"}

    def run(self, context: Context, rows: Rows) -> Rows:
        tasks = context.buckets(rows.num_rows * PROMPT_BYTES)
        num_buckets = tasks.count()
        inputs = rows.tables(["messages", "split_key", "verdict"])
        grows = Growth(GroupRows("prompt"), tasks=tasks)
        semantic = {"layout": self.sides()}
        job = context.job("split_hits", "LOSER", LOSER, semantic, inputs, rows, version=LOSER_VERSION, grows=grows)
        order = ("prompt", "validation", "id", "row")
        emit = EmitPrompts(rows.ref, self, num_buckets)
        exchange = Exchange(tuple(rows.splits), emit, PROMPT_KEY, order, num_buckets)
        hits = context.shuffle(job, exchange, leaked_prompts)
        return mark_hits(context, rows, hits, LoserMark("split", "prompt_in_train"))
