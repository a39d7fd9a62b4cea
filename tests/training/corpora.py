"""A made-up corpus of small vocabulary, in the layout and columns that the trainer reads."""

import uuid

import numpy as np
import pyarrow as pa

from etl.schema import SPAN
from etl.storage.dataset import Dataset
from tests.datasets import write_dataset

VOCAB = 97


def documents(num: int, seed: int, max_tokens: int = 40) -> pa.Table:
    """Documents of 4 to `max_tokens` tokens with an analysis span in the middle and a final span at the end."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(num):
        size = int(generator.integers(4, max_tokens + 1))
        first, second = sorted(generator.choice(np.arange(1, size), size=2, replace=False).tolist())
        # A step of 1 or 2 from a random start: something that a small student learns quickly.
        ids = (int(generator.integers(VOCAB)) + np.arange(size) * int(generator.integers(1, 3))) % VOCAB
        rows.append(
            {
                "id": str(uuid.UUID(int=seed * 1_000_000 + number)),
                "input_ids": ids.tolist(),
                "n_tokens": size,
                "spans": [
                    {"kind": "analysis", "turn": 0, "start": first, "content_start": first, "end": second},
                    {"kind": "final", "turn": 0, "start": second, "content_start": second, "end": size},
                ],
                "sampling_weight": float(generator.uniform(0.5, 2.0)),
            }
        )
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("input_ids", pa.list_(pa.int32())),
            ("n_tokens", pa.int32()),
            ("spans", pa.list_(SPAN)),
            ("sampling_weight", pa.float64()),
        ]
    )
    return pa.Table.from_pylist(rows, schema)


def write_corpus(folder: object, num_train: int = 120, max_tokens: int = 40) -> Dataset:
    """A committed corpus of two training cells of unequal size and one validation cell."""
    large, small = num_train - num_train // 4, num_train // 4
    return write_dataset(
        str(folder),
        "layout",
        "corpus",
        {
            "split=train/skill_bucket=B1/ctx_bucket=C1": documents(large, 1, max_tokens),
            "split=train/skill_bucket=B3/ctx_bucket=C1": documents(small, 2, max_tokens),
            "split=validation/skill_bucket=B1/ctx_bucket=C1": documents(12, 3, max_tokens),
        },
    )
