import io
import itertools
import json
import math
import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from etl.errors import ConfigError
from etl.live import LiveLine
from training.record.journal import Journal, JsonLines, Place, ProgressLine, live_text, open_journal, scalars, to_json
from training.record.metrics import MetricsConfig

QUIET = MetricsConfig(tensorboard=False)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def step_record(step, loss=2.0):
    speed = {"lr": 1e-4, "tokens_per_s": 12_345.6}
    return {"step": step, "stage": "toy", "loss": loss, "objective": 3 * loss, **speed, "span_loss": {"final": loss}}


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
    with open_journal(tmp_path, QUIET, Place(0, 0, 10, ("toy",)), stream) as journal:
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
    with open_journal(tmp_path, MetricsConfig(), Place(0, 0, 3, ("toy",)), io.StringIO()) as journal:
        for step in (1, 2, 3):
            journal.step({**step_record(step), "router": {"layer_entropy": [0.5, 1.0], "load": [[1, 2]]}}, step)
    with open_journal(tmp_path, MetricsConfig(), Place(1, 1, 3, ("toy",)), io.StringIO()) as journal:
        journal.step(step_record(2, loss=7.0), 2)
    events = EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    assert [(found.step, found.value) for found in events.Scalars("loss")] == [(1, 2.0), (2, 7.0)]
    assert set(events.Tags()["scalars"]) == {
        "loss", "objective", "lr", "tokens_per_s", "span_loss/final", "router/layer_entropy/0", "router/layer_entropy/1"
    }  # fmt: skip


def test_wandb_that_is_not_installed_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"wandb_project is 'p', but the package wandb is not installed"):
        open_journal(tmp_path, MetricsConfig(wandb_project="p"), Place(0, 0, 1, ("toy",)), None)


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    started, logged = [], []

    def init(**options):
        started.append(options)
        return SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    config = MetricsConfig(tensorboard=False, wandb_project="p")
    for step in (1, 2):
        with open_journal(tmp_path, config, Place(step - 1, 0, 2, ("toy",)), io.StringIO()) as journal:
            journal.step({"step": step, "loss": 2.0}, step)
    assert logged == [(1, {"loss": 2.0}), (2, {"loss": 2.0})]
    assert started[0] == started[1]
    assert (started[0]["project"], started[0]["resume"]) == ("p", "allow")


def test_the_live_line_says_loss_rate_speed_mfu_and_time_left(tmp_path, capsys):
    expected = "step 17  loss 2.000  objective 6.000  lr 1.00e-04  12,346 tokens/s  MFU 41.2%"
    assert live_text({**step_record(17), "mfu": 0.4123}) == expected
    assert "MFU" not in live_text(step_record(17))
    assert "objective" not in live_text({**step_record(17), "objective": 2.0})
    clock = itertools.chain([0.0], itertools.repeat(31.0))
    stream = io.StringIO()
    line = ProgressLine(
        Place(0, 2, 10, ("first", "toy")), LiveLine(lambda: stream, iter([0.0, 31.0, 31.0]).__next__), clock.__next__
    )
    line.update(step_record(17), 4)
    line.close()
    assert stream.getvalue() == f"2/2 toy: 40%, 1m 33s left, {expected.removesuffix('  MFU 41.2%')}\n"
    with open_journal(tmp_path, QUIET, Place(0, 0, 4, ("toy",)), None) as journal:
        journal.step(step_record(1), 1)
    assert capsys.readouterr() == ("", "")


def test_records_are_json_whatever_the_numbers():
    record = {"step": 1, "a": math.nan, "b": {"c": [1.0, math.inf]}, "d": (None, "x", True)}
    assert to_json(record) == '{"step": 1, "a": null, "b": {"c": [1.0, null]}, "d": [null, "x", true]}'


def test_scalars_are_the_numbers_by_path():
    record = {"step": 3, "a": 1, "b": {"c": {"d": 2.5}, "e": None}, "f": [1, 2], "g": [[1], [2]], "h": "text", "i": []}
    assert scalars(record) == {"a": 1.0, "b/c/d": 2.5, "f/0": 1.0, "f/1": 2.0}
