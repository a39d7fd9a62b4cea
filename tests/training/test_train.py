import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import training.train
from etl import conf
from etl.errors import ConfigError, DataError
from etl.schema import SPAN_KINDS
from tests.datasets import write_dataset
from tests.training import forked
from tests.training.corpora import documents
from tests.training.data.streams import plan_of
from tests.training.disturbed_runs import arguments
from tests.training.teacher_tables import rows_of
from tests.training.toy_runs import PulledPlugError, deterministic, pull_the_plug_at, records, weights
from training.config import TrainConfig
from training.data.reader import CorpusReader
from training.data.stream.decisions import DecisionLog
from training.data.stream.lanes import RankStream
from training.data.stream.plan import initial_value
from training.engine.engine import TrainingModule
from training.engine.optimizer import parameter_groups
from training.losses.objective import CrossEntropy, StepContext
from training.models.factory import build_student
from training.record.metrics import PHASES
from training.train import RunOptions, train

# DeepSpeed and what it imports late use deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")

PROJECT = Path(__file__).resolve().parents[2]
SMALL = [
    "model.params.vocab=97", "model.params.hidden=32", "model.params.head_dim=8", "model.params.intermediate=16",
    "data.pack_tokens=64", "data.global_batch_packs=4", "data.lanes=4", "data.segment_tokens=512",
    "stages.0.tokens=1400", "evaluate.every_tokens=700", "checkpoint.every_steps=3",
    "optimizer.schedule.warmup_tokens=512", "metrics.tensorboard=false", "router.aux_coefficient=0",
]  # fmt: skip


def overrides(corpus, output, *more):
    return [*SMALL, f"data.corpus={corpus}", f"output={output}", *more]


def configuration(corpus, output, *more):
    return conf.load(TrainConfig, "demo", "training", overrides(corpus, output, *more))


def modified(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def checkpoints(output):
    """Steps of the complete ones."""
    return sorted(json.loads(path.read_text())["step"] for path in (output / "checkpoints").glob("*/manifest.json"))


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The folder and the result of an uninterrupted run of one process."""
    output = tmp_path_factory.mktemp("whole")
    return output, train(configuration(corpus, output))


def test_the_loss_falls_and_the_run_is_written_down(whole):
    output, result = whole
    steps = [record for record in records(output) if "loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    assert (steps[0]["loss"], steps[-1]["loss"]) == (result.first_loss, result.last_loss)
    # Of two kinds of span; each counts as much in what is minimised.
    assert steps[0]["loss"] == pytest.approx(math.log(97), abs=5e-2)
    assert 1.5 * math.log(97) < steps[0]["objective"] < 2.05 * math.log(97)
    assert result.last_loss < result.first_loss
    assert result.last_held_out < result.first_held_out
    assert result.supervised_tokens == sum(record["supervised_tokens"] for record in steps)
    for record in steps:
        by_kind = sum(count * record["span_loss"].get(kind, 0.0) for kind, count in record["span_tokens"].items())
        assert record["loss"] == pytest.approx(by_kind / record["supervised_tokens"])
        assert sum(record["time"][f"{phase}_s"] for phase in (*PHASES, "other")) == pytest.approx(
            record["time"]["total_s"]
        )
        assert record["supervised_tokens"] == sum(record["span_tokens"].values())
        assert [sum(layer) for layer in record["router"]["load"]] == [2 * record["tokens"]] * 2
        assert record["grad_norm"] > 0
    assert [record["step"] for record in records(output) if "held_out" in record] == [0, 3, 6]


def test_steps_equal_a_plain_torch_loop(corpus, whole):
    """No DeepSpeed: the same packs, one backward pass each, clip_grad_norm_ and torch's AdamW."""
    config = configuration(corpus, "unused")
    module = TrainingModule(build_student(config.model, config.seed), config.router)
    optimizer = torch.optim.AdamW(
        parameter_groups(module, config.optimizer.weight_decay), betas=config.optimizer.betas, eps=config.optimizer.eps
    )
    reader = CorpusReader(config.data.corpus, "train")
    log = DecisionLog.preview(None, initial_value(config.data, config.seed, reader.parts))
    stream = RankStream(plan_of(reader, config.data, config.seed, log), [reader])
    objective, rows = CrossEntropy(), rows_of(corpus)
    held = [sum(s["end"] - s["start"] for row in rows for s in row["spans"] if s["kind"] == k) for k in SPAN_KINDS]
    rates = torch.tensor([*held, *[0] * 4], dtype=torch.float64) / sum(row["n_tokens"] for row in rows)
    for record in [record for record in records(whole[0]) if "loss" in record]:
        packs = stream.next_step().packs
        counts = torch.from_numpy(sum(objective.counts(pack) for pack in packs))
        context = StepContext(counts, expected=rates * sum(pack.num_tokens for pack in packs))
        share = torch.tensor(0.0)
        losses = [module(pack.tensors(torch.device("cpu")), objective, context, share)[0] for pack in packs]
        sum(losses).backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), config.optimizer.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = record["lr"]
        optimizer.step()
        optimizer.zero_grad()
        assert record["objective"] == pytest.approx(float(sum(losses).detach()), abs=1e-5)
        assert record["grad_norm"] == pytest.approx(float(norm), abs=1e-4)
    stream.close()


def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(corpus, whole, tmp_path):
    with pytest.raises(PulledPlugError):
        train(configuration(corpus, tmp_path), pull_the_plug_at(5))
    assert checkpoints(tmp_path) == [3]
    half_written = tmp_path / "checkpoints" / "step-00000009-000000000000"
    half_written.mkdir()
    (half_written / "rng-7.pt").write_bytes(b"what a killed writer left")
    seen = []
    resumed = train(configuration(corpus, tmp_path), lambda record: seen.append(record["step"]))
    assert seen == [4, 5, 6]
    assert checkpoints(tmp_path) == [6]
    assert not list(tmp_path.rglob("rng-7.pt"))
    output, result = whole
    assert deterministic(records(tmp_path)) == deterministic(records(output))
    ours, theirs = weights(resumed), weights(result)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ledgers = [json.loads((folder / "ledger.json").read_text()) for folder in (tmp_path, output)]
    assert ledgers[0] == ledgers[1]
    assert ledgers[0]["total"]["tokens"] == result.tokens
    assert ledgers[0]["total"]["supervised_tokens"] == result.supervised_tokens


def test_a_complete_run_does_nothing_and_gives_its_result_again(corpus, whole):
    output, result = whole
    before = modified(output)
    assert train(configuration(corpus, output)) == result
    assert modified(output) == before


def test_a_stream_that_stops_ends_the_run_after_every_document_once(corpus, tmp_path, capsys):
    more = ["data.on_exhausted=stop", "stages.0.tokens=1000000", "checkpoint.keep=1", "evaluate=null"]
    result = train(configuration(corpus, tmp_path, *more))
    assert result.tokens == sum(documents(90, 1)["n_tokens"].to_pylist()) + sum(
        documents(30, 2)["n_tokens"].to_pylist()
    )
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == [Path(result.checkpoint).name]
    assert result.complete
    said = " ".join(capsys.readouterr().err.split())
    assert f"{result.tokens:,} tokens x 1 epochs are fewer than the 1,000,000" in said
    (ended,) = result.ended
    assert ended["learning_rate"] > 0
    told = {"stage": "warm_start", "tokens": result.tokens, "target_tokens": 1_000_000, "reason": "documents"}
    assert ended == {**told, "learning_rate": ended["learning_rate"]}
    assert f"ended after {result.tokens:,} of 1,000,000 tokens: its documents are read" in said
    assert result.left_out == {"warm_start": {"main": {"documents": 120}}}
    assert "'warm_start': 120 documents, none of them left out" in said
    assert train(configuration(corpus, tmp_path, *more)) == result


def test_max_steps_pauses_and_a_higher_one_goes_on_to_the_same_end(corpus, whole, tmp_path):
    paused = train(configuration(corpus, tmp_path, "max_steps=2"))
    assert (paused.steps, paused.complete) == (2, False)
    assert train(configuration(corpus, tmp_path, "max_steps=2")) == paused
    finished = train(configuration(corpus, tmp_path))
    assert finished.complete
    assert deterministic(records(tmp_path)) == deterministic(records(whole[0]))


def test_a_complete_run_goes_on_when_its_last_stage_is_given_more_tokens(corpus, tmp_path):
    first = train(configuration(corpus, tmp_path, "evaluate=null"))
    more = train(configuration(corpus, tmp_path, "evaluate=null", "stages.0.tokens=2000"))
    assert first.complete
    assert more.complete
    assert more.steps > first.steps
    assert [record["step"] for record in records(tmp_path)] == list(range(1, more.steps + 1))


def test_stages_follow_each_other_and_arms_share_the_steps_of_one(corpus, tmp_path):
    arms = [
        {"name": "a", "share": 0.65, "data": {"shares": {"B1/*": 1.0}}},
        {"name": "b", "share": 0.35, "objective": {"kind": "ce", "span_weights": {"final": 2.0}}},
    ]
    stages = [
        {"name": "first", "tokens": 500},
        {"name": "mixed", "tokens": 2300, "arms": arms, "optimizer": {"lr": 0.001}, "reset": True},
    ]
    more = [f"stages={json.dumps(stages)}", "evaluate=null"]
    result = train(configuration(corpus, tmp_path, *more))
    found = records(tmp_path)[: result.steps]
    assert [record["stage"] for record in found] == ["first"] * 2 + ["mixed"] * (result.steps - 2)
    mixed = [record["arm"] for record in found[2:]]
    assert mixed.count("a") == pytest.approx(0.65 * len(mixed), abs=1.5)
    assert max(record["lr"] for record in found[2:]) <= 0.001 < max(record["lr"] for record in found[:2])
    names = {path.parent.relative_to(tmp_path / "decisions").as_posix() for path in tmp_path.rglob("000000.json")}
    assert names == {"first/main", "mixed/a", "mixed/b"}

    with pytest.raises(PulledPlugError):
        train(configuration(corpus, tmp_path / "again", *more), pull_the_plug_at(5))
    train(configuration(corpus, tmp_path / "again", *more))
    assert deterministic(records(tmp_path / "again")) == deterministic(records(tmp_path))


def test_overfitting_one_batch_learns_it_and_saves_nothing(corpus, tmp_path):
    more = ["stages.0.tokens=12000", "optimizer.schedule.kind=constant"]
    config = configuration(corpus, tmp_path, *more, "optimizer.schedule={kind: constant, warmup_tokens: 512}")
    result = train(config, options=RunOptions(overfit=True))
    assert result.last_loss < 0.5 * result.first_loss
    assert result.checkpoint is None


def test_another_stream_or_student_in_the_same_output_is_refused(corpus, whole):
    output, _ = whole
    with pytest.raises(ConfigError, match=r"began with another stream: data\.lanes changed from 4 to 2"):
        train(configuration(corpus, output, "data.lanes=2", "stages.0.tokens=5000"))
    with pytest.raises(ConfigError, match="seed was 0 and is 1"):
        train(configuration(corpus, output, "seed=1", "stages.0.tokens=5000"))
    with pytest.raises(ConfigError, match="layers"):
        train(configuration(corpus, output, "model.params.layers=1", "stages.0.tokens=5000"))


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_other_zero_stages_give_the_same_losses(corpus, whole, tmp_path, stage):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    train(configuration(corpus, tmp_path / "run", f"deepspeed={path}"))
    expected = [record["loss"] for record in records(whole[0]) if "loss" in record]
    found = [record["loss"] for record in records(tmp_path / "run") if "loss" in record]
    assert found == pytest.approx(expected, abs=1e-4)


def test_bf16_trains(corpus, whole, tmp_path):
    result = train(configuration(corpus, tmp_path, "deepspeed=conf/deepspeed/zero1_bf16.json"))
    assert result.first_loss == pytest.approx(whole[1].first_loss, abs=2e-2)
    assert result.last_loss < result.first_loss


def test_with_deterministic_kernels_alone_a_run_on_a_cpu_is_the_same(corpus, whole, tmp_path):
    enabled = []
    # Such kernels fill what is not initialised: at DeepSpeed's own size of a bucket 2 GB a step.
    zero = {"stage": 1, "reduce_bucket_size": 100_000}
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": zero}))
    train(
        configuration(corpus, tmp_path, "deterministic=true", f"deepspeed={tmp_path / 'ds.json'}"),
        lambda _: enabled.append(torch.are_deterministic_algorithms_enabled()),
    )
    assert enabled == [True] * 6
    assert not torch.are_deterministic_algorithms_enabled()
    assert deterministic(records(tmp_path)) == deterministic(records(whole[0]))


def test_a_corpus_without_a_usable_document_is_refused(tmp_path):
    cell = {"split=train/skill_bucket=B1/ctx_bucket=C1": documents(3, 0)}
    write_dataset(str(tmp_path / "c"), "layout", "corpus", cell)
    with pytest.raises(DataError, match="'longer than pack_tokens': 3"):
        train(
            configuration(
                tmp_path / "c", tmp_path / "out", "data.pack_tokens=3", "evaluate=null", "data.max_left_out=1"
            )
        )


@pytest.mark.slow
def test_two_processes_of_the_deepspeed_launcher_equal_one(corpus, whole, tmp_path):
    launcher = str(Path(sys.executable).parent / "deepspeed")
    command = [sys.executable, launcher, "--num_gpus", "2", "--module", "training.train"]
    command += arguments(overrides(corpus, tmp_path))
    environment = {**os.environ, **forked.ENVIRONMENT}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = records(tmp_path), records(whole[0])
    for key in ("loss", "held_out"):
        values = [record[key] for record in ours if key in record]
        assert values == pytest.approx([record[key] for record in theirs if key in record], abs=1e-5)
    for key in ("span_tokens", "tokens"):
        assert [r[key] for r in ours if key in r] == [r[key] for r in theirs if key in r]


def test_the_command_says_what_is_wrong_and_exits_with_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--conf", "demo", "--set", "optimiser.lr=1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(training.train.__file__, run_name="__main__")
    assert ended.value.code == 2
    assert "did you mean 'optimizer'" in capsys.readouterr().err
