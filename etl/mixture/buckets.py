"""The context bucket of a rendered example: the smallest of etl.schema.CTX_BUCKETS that its tokens fit in."""

from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from etl.schema import CTX_BUCKETS
from etl.step import BatchFn, Step, append, drop, live

LARGEST = max(CTX_BUCKETS.values())


class CtxBucketStep(Step):
    """Adds `ctx_bucket` from `n_tokens`, null if that is; a longer row gets verdict `longer_than_max_tokens` (n)."""

    kind: Literal["ctx_bucket"] = "ctx_bucket"
    purpose: ClassVar[str] = "Assign context buckets by the number of tokens and drop rows that are too long."
    example: ClassVar[str] = "{kind: ctx_bucket}"
    reads: ClassVar[tuple[str, ...]] = ("n_tokens",)
    reads_namesake: ClassVar[tuple[str, ...]] = ("n_tokens",)
    adds: ClassVar[pa.Schema] = pa.schema([pa.field("ctx_bucket", pa.string())])

    max_tokens: int = Field(default=LARGEST, ge=1, le=LARGEST)
    """Longest example to keep, in tokens."""

    def open(self) -> BatchFn:
        names, limits = pa.array(list(CTX_BUCKETS)), np.array(list(CTX_BUCKETS.values()))

        def bucket(batch: pa.RecordBatch) -> pa.RecordBatch:
            num_tokens = batch.column("n_tokens")
            too_long = pc.greater(num_tokens, self.max_tokens)
            batch = drop(batch, self.label, too_long, "longer_than_max_tokens", num_tokens)
            is_live = pc.and_(live(batch), num_tokens.is_valid())
            sizes = pc.if_else(is_live, num_tokens, 0).to_numpy(zero_copy_only=False)
            index = pa.array(np.searchsorted(limits, sizes), mask=~is_live.to_numpy(zero_copy_only=False))
            return append(batch, self.adds, [names.take(index)])

        return bucket
