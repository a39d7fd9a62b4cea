import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from etl import conf
from etl.errors import ConfigError, DataError
from etl.storage.dataset import write_dataset
from tests.training.corpora import documents, write_corpus
from training.data.lanes import RankStream
from training.data.plan import first_decision
from training.data.reader import CorpusReader
from training.engine import TrainingModule, parameter_groups
from training.models.factory import build_student
from training.train import TrainConfig, train

# DeepSpeed and what it imports late use deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")

PROJECT = Path(__file__).resolve().parents[2]
SMALL = [
    "model.params.vocab=97", "model.params.hidden=32", "model.params.head_dim=8", "model.params.intermediate=16",
    "data.pack_tokens=64", "data.global_batch_packs=4", "data.lanes=4", "data.segment_tokens=512", "max_steps=6",
    "max_supervised_tokens=null", "evaluate.every_steps=3", "evaluate.max_packs=3", "checkpoint.every_steps=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    write_corpus(folder)
    return folder


def overrides(corpus, output, *more):
    return [*SMALL, f"data.corpus={corpus}", f"output={output}", *more]


def configuration(corpus, output, *more):
    return conf.load(TrainConfig, "demo", "training", overrides(corpus, output, *more))


def records(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def deterministic(record):
    return {key: value for key, value in record.items() if key != "seconds" and not key.endswith("_per_s")}


def modified(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def weights(result):
    return torch.load(Path(result.checkpoint) / "mp_rank_00_model_states.pt", weights_only=False)["module"]


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
    assert result.last_loss < result.first_loss
    assert result.last_held_out < result.first_held_out
    assert result.supervised_tokens == sum(record["supervised_tokens"] for record in steps)
    for record in steps:
        assert record["loss"] == pytest.approx(sum(record["span_loss"].values()))
        assert record["supervised_tokens"] == sum(record["span_tokens"].values())
        assert [sum(layer) for layer in record["router"]["load"]] == [2 * record["tokens"]] * 2
        assert record["grad_norm"] > 0
    assert [record["step"] for record in records(output) if "held_out" in record] == [0, 3, 6]


def test_steps_equal_a_plain_torch_loop(corpus, whole):
    """No DeepSpeed: the same packs, one backward pass each, clip_grad_norm_ and torch's AdamW."""
    config = configuration(corpus, "unused")
    module = TrainingModule(build_student(config.model, config.seed), 16)
    optimizer = torch.optim.AdamW(
        parameter_groups(module, config.optimizer.weight_decay), betas=config.optimizer.betas, eps=config.optimizer.eps
    )
    reader = CorpusReader(config.data.corpus, "train")
    decision = first_decision(config.data, config.seed, reader.parts)
    stream = RankStream(reader, config.data, config.seed, decision, rank=0, world=1)
    for record in [record for record in records(whole[0]) if "loss" in record]:
        packs = stream.next_step().packs
        coefficients = 1.0 / torch.tensor(sum(pack.span_counts() for pack in packs)).double().clamp(min=1)
        losses = [module(**vars(pack.tensors(torch.device("cpu"))), coefficients=coefficients)[0] for pack in packs]
        sum(losses).backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), config.optimizer.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = record["lr"]
        optimizer.step()
        optimizer.zero_grad()
        assert record["loss"] == pytest.approx(float(sum(losses).detach()), abs=1e-5)
        assert record["grad_norm"] == pytest.approx(float(norm), abs=1e-4)


class PulledPlugError(Exception):
    pass


def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(corpus, whole, tmp_path):
    def pull_the_plug(report):
        if report.step == 5:
            raise PulledPlugError

    with pytest.raises(PulledPlugError):
        train(configuration(corpus, tmp_path), pull_the_plug)
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000003\n"
    for name in ("step-00000006", "step-00000009"):
        half_written = tmp_path / "checkpoints" / name
        half_written.mkdir()
        (half_written / "rng-7.pt").write_bytes(b"what a killed writer left")
    seen = []
    resumed = train(configuration(corpus, tmp_path), lambda report: seen.append(report.step))
    assert seen == [4, 5, 6]
    assert [path.parent.name for path in tmp_path.rglob("train_state.json")] == ["step-00000006"]
    assert not list(tmp_path.rglob("rng-7.pt"))
    output, result = whole
    assert list(map(deterministic, records(tmp_path))) == list(map(deterministic, records(output)))
    ours, theirs = weights(resumed), weights(result)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_complete_run_does_nothing_and_gives_its_result_again(corpus, whole):
    output, result = whole
    before = modified(output)
    assert train(configuration(corpus, output)) == result
    assert modified(output) == before


def test_a_stream_that_stops_ends_the_run_after_every_document_once(corpus, tmp_path):
    more = ["data.on_exhausted=stop", "max_steps=1000", "checkpoint.keep=1", "evaluate=null"]
    result = train(configuration(corpus, tmp_path, *more))
    assert result.tokens == sum(documents(90, 1)["n_tokens"].to_pylist()) + sum(
        documents(30, 2)["n_tokens"].to_pylist()
    )
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == [Path(result.checkpoint).name]
    assert train(configuration(corpus, tmp_path, *more)) == result


def test_supervised_tokens_can_end_the_run(corpus, tmp_path):
    result = train(configuration(corpus, tmp_path, "max_supervised_tokens=150", "evaluate=null"))
    steps = [record["supervised_tokens"] for record in records(tmp_path) if "loss" in record]
    assert sum(steps) == result.supervised_tokens >= 150 > sum(steps[:-1])


def test_another_stream_or_student_in_the_same_output_is_refused(corpus, whole):
    output, _ = whole
    with pytest.raises(ConfigError, match="began with another stream"):
        train(configuration(corpus, output, "seed=1"))
    with pytest.raises(ConfigError, match="'layers': 2"):
        train(configuration(corpus, output, "model.params.layers=1"))
    (output.parent / "stage0.json").write_text("{}")
    with pytest.raises(ConfigError, match="at ZeRO stage 1, this run has 1 at stage 0"):
        train(configuration(corpus, output, f"deepspeed={output.parent / 'stage0.json'}"))


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_other_zero_stages_give_the_same_losses(corpus, whole, tmp_path, stage):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    train(configuration(corpus, tmp_path / "run", f"deepspeed={path}", "max_steps=6"))
    expected = [record["loss"] for record in records(whole[0]) if "loss" in record]
    found = [record["loss"] for record in records(tmp_path / "run") if "loss" in record]
    assert found == pytest.approx(expected, abs=1e-4)


def test_bf16_trains(corpus, whole, tmp_path):
    result = train(configuration(corpus, tmp_path, "deepspeed=conf/deepspeed/zero1_bf16.json", "max_steps=6"))
    assert result.first_loss == pytest.approx(whole[1].first_loss, abs=2e-2)
    assert result.last_loss < result.first_loss


def test_a_corpus_without_a_usable_document_is_refused(tmp_path):
    cell = {"split=train/skill_bucket=B1/ctx_bucket=C1": documents(3, 0)}
    write_dataset(str(tmp_path / "c"), "layout", "corpus", cell)
    with pytest.raises(DataError, match="'longer than pack_tokens': 3"):
        train(configuration(tmp_path / "c", tmp_path / "out", "data.pack_tokens=3", "evaluate=null"))


def launch(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(arguments, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)


def settings(values):
    return [word for value in values for word in ("--set", value)]


def test_two_processes_of_the_deepspeed_launcher_equal_one(corpus, whole, tmp_path):
    launcher = str(Path(sys.executable).parent / "deepspeed")
    found = launch(
        sys.executable, launcher, "--num_gpus", "2", "--module", "training.train", "--conf", "demo",
        *settings(overrides(corpus, tmp_path)),
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    ours, theirs = records(tmp_path), records(whole[0])
    for key in ("loss", "held_out"):
        values = [record[key] for record in ours if key in record]
        assert values == pytest.approx([record[key] for record in theirs if key in record], abs=1e-5)
    for key in ("span_tokens", "tokens"):
        assert [r[key] for r in ours if key in r] == [r[key] for r in theirs if key in r]


def test_the_command_says_what_is_wrong_and_exits_with_2(tmp_path):
    found = launch(sys.executable, "-m", "training.train", "--conf", "demo", "--set", "optimiser.lr=1")
    assert found.returncode == 2
    assert "did you mean 'optimizer'" in found.stderr
