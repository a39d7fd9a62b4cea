import contextlib
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.packs import toy_pack
from training.record import metrics
from training.record.metrics import (
    MetricsConfig,
    SpikeWatch,
    StepClock,
    StepWork,
    TeacherLogps,
    distribution,
    router_metrics,
    throughput,
    training_seconds,
)

QUIET = MetricsConfig(tensorboard=False)


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
