"""Toy fastText files: random weights, words and labels of one's own, any part wrong on request."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

ARGS = ("dim", "ws", "epoch", "min_count", "neg", "word_ngrams", "loss", "model", "bucket", "min_n", "max_n", "rate")
DEFAULTS: dict[str, Any] = {
    "magic": 793712314,
    "version": 12,
    "dim": 5,
    "word_ngrams": 1,
    "loss": 1,
    "model": 3,
    "bucket": 1000,
    "min_n": 2,
    "max_n": 4,
}


def fasttext_bytes(
    words: Sequence[str],
    counts: dict[str, int],
    kept: Sequence[int] | None = None,
    parts: int | None = None,
    seed: int = 0,
    **other: Any,
) -> bytes:
    """A supervised model.

    Args:
        words: the dictionary, without labels.
        counts: how often training met each label, in falling order.
        kept: buckets that have a row; None: all. fastText takes it only in quantised models.
        parts: columns of a part of the quantiser; None: the matrix is plain.
        seed: of the weights.
        other: what is written for an argument or for `num_words`, `weights`, `kind`, in the place of the right value.
    """
    rng = np.random.default_rng(seed)
    put = DEFAULTS | other
    dim = put["dim"]
    out = [struct.pack("<ii", put["magic"], put["version"])]
    out.append(struct.pack("<12id", *(put.get(name, 0) for name in ARGS), 1e-4))
    num_pruned = -1 if kept is None else len(kept)
    num_words = put.get("num_words", len(words))
    out.append(struct.pack("<iiiqq", len(words) + len(counts), num_words, len(counts), 9, num_pruned))
    out += [word.encode() + struct.pack("<bqb", 0, 1, put.get("kind", 0)) for word in words]
    out += [label.encode() + struct.pack("<bqb", 0, count, 1) for label, count in counts.items()]
    out += [struct.pack("<ii", bucket, row) for row, bucket in enumerate(kept or ())]
    num_rows = len(words) + (put["bucket"] if kept is None else len(kept))
    out.append(struct.pack("<b", parts is not None))
    out.append(plain(rng, num_rows, dim) if parts is None else quantised(rng, num_rows, dim, parts))
    out.append(struct.pack("<b", 0) + plain(rng, len(counts), dim, put.get("weights", 1.0)))
    return b"".join(out)


def plain(rng: np.random.Generator, rows: int, columns: int, weight: float = 1.0) -> bytes:
    """A matrix of normal numbers."""
    values = (weight * rng.standard_normal((rows, columns))).astype("<f4")
    return struct.pack("<qq", rows, columns) + values.tobytes()


def quantised(rng: np.random.Generator, rows: int, columns: int, width: int) -> bytes:
    """A matrix of random codes, with norms."""
    parts = -(-columns // width)
    codes = rng.integers(0, 256, rows * parts, np.uint8).tobytes()
    norms = rng.integers(0, 256, rows, np.uint8).tobytes()
    head = struct.pack("<?qqi", True, rows, columns, rows * parts)
    return head + codes + quantiser(rng, columns, width) + norms + quantiser(rng, 1, 1)


def quantiser(rng: np.random.Generator, columns: int, width: int) -> bytes:
    """256 centroids of each part."""
    parts = -(-columns // width)
    head = struct.pack("<iiii", columns, parts, width, columns - (parts - 1) * width)
    return head + rng.standard_normal(256 * columns).astype("<f4").tobytes()
