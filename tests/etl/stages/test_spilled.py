"""Rows come back in the order of their keys, whole, however many runs they were spilled to."""

import random

import numpy as np
import pyarrow as pa
import pytest

from etl.stages import spilled
from etl.stages.spilled import SpilledRows

SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.string())])


@pytest.mark.parametrize("run_bytes", [1, 500, 1 << 20])
@pytest.mark.parametrize("seed", range(3))
def test_stretches_of_keys_hold_their_rows(monkeypatch, run_bytes, seed):
    monkeypatch.setattr(spilled, "RUN_BYTES", run_bytes)
    monkeypatch.setattr(spilled, "_BATCH_BYTES", 60)
    rng = random.Random(seed)
    keys = [rng.choice([0, 5, 2**63, 2**64 - 1, rng.getrandbits(64)]) for _ in range(200)]
    rows = pa.table({"n": range(200), "text": [f"text {key}" for key in keys]}, schema=SCHEMA)
    with SpilledRows(SCHEMA) as held:
        for start in range(0, 200, 17):
            (piece,) = rows.slice(start, 17).combine_chunks().to_batches()
            held.add(piece, np.array(keys[start : start + 17], np.uint64))
        borders = sorted({*rng.sample(keys, 5), 7, 2**64 - 1})
        seen = []
        for low, high in zip([-1, *borders], borders, strict=False):
            found = held.until(high)
            assert found.schema == SCHEMA
            assert sorted(found["n"].to_pylist()) == [n for n, key in enumerate(keys) if low < key <= high]
            assert all(row["text"] == f"text {keys[row['n']]}" for row in found.to_pylist())
            seen += found["n"].to_pylist()
    assert sorted(seen) == list(range(200))


def test_nothing_stays_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with SpilledRows(SCHEMA) as held:
        held.add(pa.record_batch({"n": [1], "text": ["a"]}, schema=SCHEMA), np.array([3], np.uint64))
        assert len(held.until(2)) == 0
        assert list(tmp_path.rglob("*.arrow"))
        assert held.until(3).to_pylist() == [{"n": 1, "text": "a"}]
    assert not list(tmp_path.iterdir())
