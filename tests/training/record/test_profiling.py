import gzip
import json

import torch

from training.record.profiling import SKIPPED_STEPS, profiled


def test_some_steps_give_a_trace_and_a_table_of_the_top_operators(tmp_path):
    weight = torch.ones(64, 64)
    with profiled(tmp_path / "profile", 2) as step_done:
        for step in range(SKIPPED_STEPS + 4):
            assert (tmp_path / "profile" / "top_ops.txt").exists() == (step >= SKIPPED_STEPS + 2)
            with torch.profiler.record_function(f"made_step_{step}"):
                weight @ weight
            step_done()
    with gzip.open(tmp_path / "profile" / "trace.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    made = {name for name in names if name is not None and name.startswith("made_step_")}
    assert made == {f"made_step_{step}" for step in (SKIPPED_STEPS, SKIPPED_STEPS + 1)}
    assert "aten::mm" in (tmp_path / "profile" / "top_ops.txt").read_text()


def test_a_run_that_ends_before_leaves_no_trace(tmp_path):
    with profiled(tmp_path, 2) as step_done:
        step_done()
    assert list(tmp_path.iterdir()) == []
