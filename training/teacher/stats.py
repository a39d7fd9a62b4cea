"""Statistics of log-probabilities: means, and quantiles of the log-probability of tokens and of examples.

Log-probabilities are float16 values, which are multiples of 2^-24, so sums are exact integers and the counts of parts
add up to the same whatever the order. A histogram has one bin for each 16 neighbouring float16 values: quantiles are
within 1.6 %.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl.errors import DataError
from etl.schema import SPAN_KINDS

QUANTILES: Final = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
LEAST_LOGP: Final = -65504.0
"""The least float16, in the place of the logarithm of 0; servers say −9999 or −Infinity for that."""
_UNIT: Final = 2.0**-24
_BIN_BITS: Final = 4


def distributions(batch: pa.RecordBatch, kinds: list[npt.NDArray[np.int8]]) -> dict[str, Any]:
    """Counts of some TEACHER_LOGP rows, which add up over parts; `floored` are the tokens at LEAST_LOGP.

    Args:
        batch: the rows.
        kinds: span kind of each supervised token, a row at a time.
    """
    logp = batch.column("logp").flatten().to_numpy()
    kind = np.concatenate(kinds)
    lengths = batch.column("logp").value_lengths().to_numpy(zero_copy_only=False)
    means = np.add.reduceat(logp.astype(np.float64), np.cumsum(lengths) - lengths) / lengths
    row_mode = np.array(batch.column("reasoning_mode").fill_null("none").to_pylist())
    mode = np.repeat(row_mode, lengths)
    return {
        "spans": {SPAN_KINDS[k]: _counts(logp[kind == k]) for k in np.unique(kind).tolist()},
        "floored": int((logp <= LEAST_LOGP).sum()),
        "examples": _counts(means.astype(np.float16).astype(np.float32)),
        "modes": {
            name: {"rows": int((row_mode == name).sum()), **_counts(logp[mode == name])}
            for name in np.unique(row_mode).tolist()
        },
    }


def _counts(logp: npt.NDArray[np.float32]) -> dict[str, Any]:
    bins, counts = np.unique(np.abs(logp).astype(np.float16).view(np.uint16) >> _BIN_BITS, return_counts=True)
    return {
        "tokens": len(logp),
        "units": int(np.round(logp.astype(np.float64) / _UNIT).astype(np.int64).sum()),
        "histogram": {f"{b:04d}": n for b, n in zip(bins.tolist(), counts.tolist(), strict=True)},
    }


def findings(summed: dict[str, Any]) -> dict[str, Any]:
    """The summary of a whole dataset's distributions: means in nats, quantiles by span kind, effort and example.

    `left_out` counts rows by reason; of the supervised tokens of the other rows `unpredicted` have no score, and
    `floored` had a probability of 0. A part that an earlier version scored has none of these three.

    Raises:
        DataError: nothing was scored.
    """
    left_out = summed.get("left_out", {})
    if "spans" not in summed:
        why = ", ".join(f"{rows:,} {reason}" for reason, rows in left_out.items())
        raise DataError(f"no row was scored ({why}); take another subset or a teacher with more context")
    spans = summed["spans"].values()
    examples = _summary(summed["examples"])
    return {
        "tokens": sum(counts["tokens"] for counts in spans),
        "mean_logp": sum(counts["units"] for counts in spans) * _UNIT / sum(counts["tokens"] for counts in spans),
        "left_out": left_out,
        "unpredicted": summed.get("unpredicted", 0),
        "floored": summed.get("floored", 0),
        "spans": {kind: _summary(counts) for kind, counts in summed["spans"].items()},
        "examples": {"rows": examples.pop("tokens"), **examples},
        "modes": {mode: {"rows": counts["rows"], **_summary(counts)} for mode, counts in summed["modes"].items()},
    }


def _summary(counts: dict[str, Any]) -> dict[str, Any]:
    bins = sorted((int(name), count) for name, count in counts["histogram"].items())
    upper = (np.array([name for name, _ in bins], np.uint16) << _BIN_BITS) + np.uint16(1 << (_BIN_BITS - 1))
    values = -upper.view(np.float16).astype(np.float64)[::-1]
    below = np.cumsum([count for _, count in reversed(bins)])
    place = np.searchsorted(below, np.array(QUANTILES) * below[-1])
    return {
        "tokens": counts["tokens"],
        "mean_logp": counts["units"] * _UNIT / counts["tokens"],
        "quantiles": {f"{q:g}": float(values[at]) for q, at in zip(QUANTILES, place.tolist(), strict=True)},
    }
