import contextlib
import io
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from etl.errors import ConfigError
from tests.training.packs import toy_pack
from training.record import metrics
from training.record.metrics import (
    Journal,
    JsonLines,
    MetricsConfig,
    Place,
    SpikeWatch,
    StepClock,
    StepWork,
    TeacherLogps,
    distribution,
    live_text,
    open_journal,
    router_metrics,
    scalars,
    throughput,
    to_json,
    training_seconds,
)

QUIET = MetricsConfig(tensorboard=False)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def step_record(step, loss=2.0):
    return {"step": step, "loss": loss, "lr": 1e-4, "tokens_per_s": 12_345.6, "span_loss": {"final": loss}}


def test_a_resumed_file_ends_at_the_step_it_resumes_from(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    sink = JsonLines(path, 0)
    for record in (
        {"step": 0, "left_out": 3},
        step_record(1),
        step_record(2),
        {"step": 2, "held_out": 1.5},
        step_record(3),
    ):
        sink.write(record)
    sink.close()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    JsonLines(path, 3).close()
    assert [record["step"] for record in lines(path)] == [0, 1, 2, 2, 3]
    sink = JsonLines(path, 2)
    sink.write(step_record(3, loss=1.0))
    sink.close()
    assert [(record["step"], record.get("loss")) for record in lines(path)] == [
        (0, None), (1, 2.0), (2, 2.0), (2, None), (3, 1.0)
    ]  # fmt: skip
    JsonLines(path, 0).close()
    assert path.read_text() == ""


def test_a_torn_line_of_an_earlier_step_is_cut_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    JsonLines(path, 5).close()
    assert path.read_text() == '{"step": 1}\n'


def test_the_stream_gets_one_line_a_step_and_the_file_everything(tmp_path):
    stream = io.StringIO()
    with open_journal(tmp_path, QUIET, Place(0, 0, 10), stream) as journal:
        journal.write({"step": 0, "held_out": {"B1/C1": 3.0}})
        journal.step(step_record(1), 5)
        assert json.loads(stream.getvalue()) == step_record(1)
        journal.step(step_record(2, loss=math.nan), 10)
    assert [json.loads(line)["loss"] for line in stream.getvalue().splitlines()] == [2.0, None]
    assert lines(tmp_path / "metrics.jsonl")[0] == {"step": 0, "held_out": {"B1/C1": 3.0}}
    assert len(lines(tmp_path / "metrics.jsonl")) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_journal_of_another_rank_writes_nothing():
    with Journal() as journal:
        journal.write({"step": 0})
        journal.step(step_record(1), 1)


def test_tensorboard_has_the_scalars_and_a_resumed_run_takes_steps_back(tmp_path):
    with open_journal(tmp_path, MetricsConfig(), Place(0, 0, 3), io.StringIO()) as journal:
        for step in (1, 2, 3):
            journal.step({**step_record(step), "router": {"layer_entropy": [0.5, 1.0], "load": [[1, 2]]}}, step)
    with open_journal(tmp_path, MetricsConfig(), Place(1, 1, 3), io.StringIO()) as journal:
        journal.step(step_record(2, loss=7.0), 2)
    events = EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    assert [(found.step, found.value) for found in events.Scalars("loss")] == [(1, 2.0), (2, 7.0)]
    assert set(events.Tags()["scalars"]) == {
        "loss", "lr", "tokens_per_s", "span_loss/final", "router/layer_entropy/0", "router/layer_entropy/1"
    }  # fmt: skip


def test_wandb_that_is_not_installed_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"wandb_project is 'p', but the package wandb is not installed"):
        open_journal(tmp_path, MetricsConfig(wandb_project="p"), Place(0, 0, 1), None)


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    started, logged = [], []

    def init(**options):
        started.append(options)
        return SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    config = MetricsConfig(tensorboard=False, wandb_project="p")
    for step in (1, 2):
        with open_journal(tmp_path, config, Place(step - 1, 0, 2), io.StringIO()) as journal:
            journal.step({"step": step, "loss": 2.0}, step)
    assert logged == [(1, {"loss": 2.0}), (2, {"loss": 2.0})]
    assert started[0] == started[1]
    assert (started[0]["project"], started[0]["resume"]) == ("p", "allow")


def test_the_live_line_says_loss_rate_speed_mfu_and_time_left(tmp_path, capsys):
    assert (
        live_text({**step_record(17), "mfu": 0.4123}) == "step 17  loss 2.000  lr 1.00e-04  12,346 tokens/s  MFU 41.2%"
    )
    assert "MFU" not in live_text(step_record(17))
    with open_journal(tmp_path, QUIET, Place(0, 0, 4), None) as journal:
        journal.step(step_record(1), 1)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "25%" in shown.err
    assert "left" in shown.err


def test_records_are_json_whatever_the_numbers():
    record = {"step": 1, "a": math.nan, "b": {"c": [1.0, math.inf]}, "d": (None, "x", True)}
    assert to_json(record) == '{"step": 1, "a": null, "b": {"c": [1.0, null]}, "d": [null, "x", true]}'


def test_scalars_are_the_numbers_by_path():
    record = {"step": 3, "a": 1, "b": {"c": {"d": 2.5}, "e": None}, "f": [1, 2], "g": [[1], [2]], "h": "text", "i": []}
    assert scalars(record) == {"a": 1.0, "b/c/d": 2.5, "f/0": 1.0, "f/1": 2.0}


def test_log_every_steps():
    config = MetricsConfig(log_every_steps=5)
    assert [step for step in range(1, 16) if config.logs(step)] == [5, 10, 15]


class Now:
    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def test_the_clock_splits_a_step_and_an_inner_phase_is_not_the_outer_ones():
    now, phases = Now(), []
    clock = StepClock(torch.device("cpu"), phases.append, now)
    with clock.phase("data"):
        now.seconds += 1
    with clock.phase("forward_backward"):
        now.seconds += 10
        with clock.phase("optimizer"):
            now.seconds += 100
        now.seconds += 20
    now.seconds += 5
    expected = {"data_s": 1, "forward_backward_s": 30, "optimizer_s": 100, "checkpoint_s": 0, "evaluation_s": 0}
    split = clock.take()
    assert split == {**expected, "other_s": 5, "total_s": 136}
    assert training_seconds({**split, "checkpoint_s": 30, "evaluation_s": 6}) == 100
    assert phases == ["data", "forward_backward", "optimizer", "forward_backward"]
    with contextlib.suppress(KeyError), clock.phase("checkpoint"):
        now.seconds += 2
        raise KeyError
    assert clock.take() == {**dict.fromkeys(expected, 0), "checkpoint_s": 2, "other_s": 0, "total_s": 2}


def test_throughput_with_and_without_a_known_peak():
    work = StepWork(tokens=1000, supervised_tokens=400, flops=8e12, seconds=2.0)
    found = throughput(work, world_size=4, peak_flops=2e12)
    assert found == {
        "seconds": 2.0, "tokens_per_s": 500.0, "supervised_tokens_per_s": 200.0, "flops": 8e12, "flops_per_s": 4e12,
        "mfu": 0.5,
    }  # fmt: skip
    assert throughput(work, 4, None).keys() == found.keys() - {"mfu"}


def test_router_metrics_of_even_collapsed_and_partly_dead_layers():
    found = router_metrics(torch.tensor([[5, 5, 5, 5], [20, 0, 0, 0], [10, 10, 0, 0]]))
    assert found["layer_entropy"] == pytest.approx([1.0, 0.0, 0.5])
    assert found["layer_max_load"] == pytest.approx([1.0, 4.0, 2.0])
    assert found["layer_dead_experts"] == [0, 3, 2]
    assert (found["dead_experts"], found["load"][1]) == (5, [20, 0, 0, 0])
    assert found["entropy"] == pytest.approx(0.5)
    assert found["max_violation"] == pytest.approx(4 / 3)
    assert router_metrics(torch.zeros(0, 0, dtype=torch.int64)) == {}


def test_spikes_are_counted_against_a_robust_spread():
    noise = np.random.default_rng(0).normal(3.0, 0.1, 200).tolist()
    watch = SpikeWatch(QUIET, None)
    found = [watch.see(loss) for loss in noise[:100]]
    assert [record["loss_z"] is None for record in found] == [True] * 16 + [False] * 84
    assert found[-1]["spikes"] == 0
    assert watch.see(5.0)["spikes"] == 1
    assert watch.see(5.0)["spikes"] == 2
    assert watch.see(0.5)["spikes"] == 2
    assert [watch.see(loss)["spikes"] for loss in noise[100:]] == [2] * 100


def test_a_spikes_score_is_in_standard_deviations():
    watch = SpikeWatch(QUIET, None)
    for loss in [1.0, 3.0] * 8:
        watch.see(loss)
    # Median 2, median absolute deviation 1.
    assert watch.see(5.0)["loss_z"] == pytest.approx(3 / 1.4826)


def test_a_flat_loss_is_no_spike_of_rounding():
    watch = SpikeWatch(QUIET, None)
    assert [watch.see(2.0 + 1e-7 * (step % 2))["spikes"] for step in range(50)] == [0] * 50


@given(st.lists(st.floats(0, 100), max_size=60), st.integers(0, 60))
def test_a_resumed_spike_watch_goes_on_exactly(losses, saved_at):
    config = MetricsConfig(spike_window=20, spike_z=2.0)
    whole = SpikeWatch(config, None)
    expected = [whole.see(loss) for loss in losses]
    first = SpikeWatch(config, None)
    found = [first.see(loss) for loss in losses[:saved_at]]
    second = SpikeWatch(config, json.loads(json.dumps(first.state)))
    assert found + [second.see(loss) for loss in losses[saved_at:]] == expected


def test_teacher_logps_by_example_and_span_over_ranks():
    nan = math.nan
    # Document 0: rows 0 to 3, document 1: rows 4 to 6, room: row 7. Row 5 has no value.
    first = toy_pack([4, 3], 8, {0: 0, 1: 0, 2: 2, 4: 2, 5: 2},
                     teacher_logp=np.array([-1, -3, -5, nan, -7, nan, nan, nan], np.float32))  # fmt: skip
    without = toy_pack([2], 8, {0: 0})
    second = toy_pack([2], 8, {0: 2}, teacher_logp=np.array([-9] + [nan] * 7, np.float32))
    found = TeacherLogps.merge([TeacherLogps.of([first, without]), TeacherLogps.of([]), TeacherLogps.of([second])])
    assert found.of_example.tolist() == [-3.0, -7.0, -9.0]
    report = found.report()
    assert report["span"].keys() == {"analysis", "final"}
    assert report["span"]["analysis"] == pytest.approx({"count": 2, "mean": -2, "p5": -2.9, "p50": -2, "p95": -1.1})
    assert report["span"]["final"]["count"] == 3
    assert report["example"]["p50"] == -7.0
    assert TeacherLogps.of([without]).report() == {}


def test_quantiles_of_a_distribution():
    found = distribution(np.arange(101, dtype=np.float32))
    assert found == {"count": 101, "mean": 50.0, "p5": 5.0, "p50": 50.0, "p95": 95.0}


def test_what_is_measured_anew_is_named():
    work = StepWork(1, 1, 1.0, 1.0)
    assert throughput(work, 1, 1.0).keys() - metrics.MEASURED == {"flops"}
