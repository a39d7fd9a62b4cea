"""The records of a run of one rank, with an engine that only has what a record reads."""

import io
import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from tests.training.packs import toy_pack
from training.losses.router import RouterSums
from training.record.flops import ModelShape
from training.record.journal import Place
from training.record.metrics import MetricsConfig
from training.record.recorder import Recorder
from training.record.watchdog import WatchdogConfig
from training.stages.state import TrainState

# DeepSpeed, which the recorder's engine comes from, uses deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")

SHAPE = ModelShape(token_flops=6.0, head_flops=100.0, attention=())
LABELS = [("books", "B1", "C1", "mit")]
DENSE = RouterSums(torch.zeros(0, 0, dtype=torch.int64), *[torch.zeros(0, 0, dtype=torch.float64)] * 3)
BEGINS = TrainState()


class ToyEngine:
    def __init__(self, rank=0):
        self.world = SimpleNamespace(rank=rank, size=1, device=torch.device("cpu"), gather=lambda value: [value])
        self.phase = nullcontext
        self.progress = None

    def on_progress(self, call):
        self.progress = call

    def gradient_norm(self):
        return 0.5

    def update_ratio(self):
        return 0.25


def recorder(folder, engine=None, state=BEGINS, **config):
    place = Place(state.step, state.tokens, 1000, ("toy",))
    config = MetricsConfig(tensorboard=False, **config)
    return Recorder(engine or ToyEngine(), SHAPE, folder, config, WatchdogConfig(), place, state)


def batch():
    packs = (toy_pack([4, 6], 16, {1: 0, 2: 0, 7: 1}),)
    return SimpleNamespace(packs=packs, num_tokens=10, num_supervised=3, capacity=16)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_record_says_what_the_steps_since_the_last_one_came_to(tmp_path):
    stream = io.StringIO()
    with recorder(tmp_path).start(stream, profile=False) as found:
        found.took(batch(), LABELS, 2.0)
        spikes = found.took(batch(), LABELS, 2.0)
        state = TrainState(step=2, tokens=20, skipped=1)
        found.step(state, batch(), SimpleNamespace(router=DENSE), {"loss": 2.0, "lr": 0.1, **spikes})
    (record,) = lines(tmp_path)
    assert json.loads(stream.getvalue()) == record
    assert (record["step"], record["total_tokens"], record["skipped_steps"], record["fill"]) == (2, 20, 1, 10 / 16)
    assert (record["grad_norm"], record["update_ratio"], record["spikes"]) == (0.5, 0.25, 0)
    assert record["flops"] == 2 * (6 * 10 + 100 * 3)
    assert record["router"] == {}
    assert "teacher_logp" not in record


def test_the_ledger_and_the_spikes_travel_with_the_checkpoint(tmp_path):
    with recorder(tmp_path).start(io.StringIO(), profile=False) as found:
        found.took(batch(), LABELS, 2.0)
        rows, spikes = found.ledger_rows(), found.spikes
    assert [(row["source_dataset"], row["documents"], row["tokens"]) for row in rows] == [("books", 2, 10)]
    assert json.loads((tmp_path / "ledger.json").read_text())["rows"] == rows
    with recorder(tmp_path, state=TrainState(step=1, ledger=rows, spikes=spikes)).start(io.StringIO(), False) as again:
        again.took(batch(), LABELS, 3.0)
        assert again.ledger_rows()[0]["documents"] == 4
        assert again.spikes == {"losses": [2.0, 3.0], "spikes": 0}


def test_a_skipped_step_is_written_down_with_what_it_was_on(tmp_path):
    with recorder(tmp_path).start(io.StringIO(), profile=False) as found:
        found.skipped(TrainState(step=4, skipped=1), batch(), "the gradient is not finite")
    assert lines(tmp_path) == [{"step": 4, "fault": "the gradient is not finite", "skipped_steps": 1}]
    assert [path for path in (tmp_path / "watchdog").iterdir() if "nan" in path.name]


def test_an_evaluation_is_written_down_by_cell(tmp_path):
    total = {"loss": 2.0, "span_loss": {"final": 2.0}, "format": None}
    with recorder(tmp_path).start(io.StringIO(), profile=False) as found:
        found.held_out(TrainState(step=3), {"all": total, "B1/C1": {"loss": 2.5}})
    (record,) = lines(tmp_path)
    assert (record["held_out"], record["held_out_cells"]) == (2.0, {"B1/C1": 2.5})


def test_another_rank_writes_no_record(tmp_path):
    with recorder(tmp_path, ToyEngine(rank=1)).start(None, profile=True) as found:
        found.held_out(TrainState(), {"all": {"loss": 2.0, "span_loss": {}, "format": None}})
        assert found.ledger_rows() == []
    assert {path.name for path in tmp_path.iterdir()} == {"watchdog"}


def test_the_engine_reports_its_phases_and_progress_to_the_recorder(tmp_path):
    engine = ToyEngine()
    with recorder(tmp_path, engine).start(io.StringIO(), profile=False) as found:
        assert engine.phase == found.clock.phase
        assert engine.progress == found.watchdog.progress
