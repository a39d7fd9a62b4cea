import numpy as np
import pyarrow as pa
import pytest

from etl.errors import DataError
from etl.schema import SPAN_KINDS
from training.teacher.stats import distributions, findings

ANALYSIS, FINAL = SPAN_KINDS.index("analysis"), SPAN_KINDS.index("final")


def rows(logps, modes):
    lists = [np.array(logp, np.float16).astype(np.float32) for logp in logps]
    return pa.record_batch({"logp": pa.array(lists, pa.list_(pa.float32())), "reasoning_mode": pa.array(modes)})


def test_means_by_span_kind_mode_and_example_are_exact():
    batch = rows([[-1.0, -3.0], [-0.5]], ["high", None])
    found = findings(distributions(batch, [np.array([ANALYSIS, FINAL], np.int8), np.array([FINAL], np.int8)]))
    assert (found["tokens"], found["mean_logp"]) == (3, -1.5)
    assert {kind: counts["mean_logp"] for kind, counts in found["spans"].items()} == {"analysis": -1.0, "final": -1.75}
    assert (found["examples"]["rows"], found["examples"]["mean_logp"]) == (2, -1.25)
    assert {mode: (counts["rows"], counts["mean_logp"]) for mode, counts in found["modes"].items()} == {
        "high": (1, -2.0), "none": (1, -0.5),
    }  # fmt: skip


def test_quantiles_are_within_two_percent_and_ordered():
    logp = -np.random.default_rng(0).exponential(2.0, 20_000)
    batch = rows([logp], ["low"])
    found = findings(distributions(batch, [np.full(len(logp), FINAL, np.int8)]))["spans"]["final"]["quantiles"]
    for name, value in found.items():
        assert value == pytest.approx(np.quantile(logp, float(name)), rel=0.02), name
    assert list(found.values()) == sorted(found.values())


def test_nothing_scored_is_an_error():
    with pytest.raises(DataError, match="no row was scored"):
        findings({})
