"""Split: which side a row is on, and no prompt on both.

train or validation follows from a hash of the split key. Rows of one prompt can have keys of their own (by default a
row's id), so a validation row whose prompt also stands in train is dropped with its reason. Near duplicates are the
business of the dedup stage. Costs one shuffle of 56 bytes a row.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from etl.engine import Exchange
from etl.hashing import hash128
from etl.messages import instruction_text
from etl.mixture.sampling import in_sample, purpose_seed
from etl.recipe import Layout
from etl.rows import Rows, RowsRef
from etl.stages.context import Context
from etl.stages.dedup.marks import LOSER, LoserMark, losers, mark_hits
from etl.stages.keyed import bucket_of_hash128, first_of_groups, live_rows, reduced
from etl.storage.build import Chunk


def split_of(keys: pa.Array, layout: Layout) -> pa.Array:
    """train or validation for each split key: a hash of the key below validation_fraction is validation."""
    held_out = in_sample(keys, purpose_seed("split", layout.seed), layout.validation_fraction)
    return pc.if_else(held_out, "validation", "train")


PROMPT_KEY = pa.schema(
    [
        ("bucket", pa.int32()), ("prompt", pa.binary()), ("validation", pa.bool_()), ("id", pa.binary()),
        ("row", pa.int64()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class EmitPrompts:
    """A hash of each live row's prompt, and its side; a row without a prompt (raw text) shares none."""

    rows: RowsRef
    layout: Layout
    num_buckets: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch, keys in live_rows(self.rows, split, ["id", "messages", "split_key"]):
            text = instruction_text(batch)
            asked = pc.not_equal(text, "")
            batch, keys = batch.filter(asked), keys[asked.to_numpy(zero_copy_only=False)]
            prompt = hash128([text.filter(asked)])
            columns = [
                bucket_of_hash128(prompt, self.num_buckets), prompt.cast(pa.binary()),
                pc.equal(split_of(batch.column("split_key"), self.layout), "validation"),
                batch.column("id").cast(pa.binary()), pa.array(keys),
            ]  # fmt: skip
            yield pa.RecordBatch.from_arrays(columns, schema=PROMPT_KEY)


def leaked_prompts(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """Validation rows whose prompt a train row has too: LOSER rows that name the first such train row."""
    return reduced(batches, _leaked)


def _leaked(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for table, first in first_of_groups(batches, "prompt"):
        held_out = table["validation"].to_numpy()
        # train sorts before validation, so the first row of a group is a train row if train has the prompt.
        yield losers(table, first, held_out & ~held_out[first])


def run_split(context: Context, rows: Rows) -> Rows:
    """Write DIR/split_hits and DIR/split: validation rows whose prompt stands in train get a verdict."""
    layout = context.recipe.layout
    num_buckets = context.num_buckets(rows.num_rows * 56)
    semantic = {"layout": layout.model_dump(include={"validation_fraction", "seed"})}
    job = context.job("split_hits", "LOSER", LOSER, semantic, rows.tables(["messages", "split_key", "verdict"]), rows)
    order = ("prompt", "validation", "id", "row")
    exchange = Exchange(tuple(rows.splits), EmitPrompts(rows.ref, layout, num_buckets), PROMPT_KEY, order, num_buckets)
    hits = context.shuffle(job, exchange, leaked_prompts)
    return mark_hits(context, rows, hits, LoserMark("split", "prompt_in_train"))
