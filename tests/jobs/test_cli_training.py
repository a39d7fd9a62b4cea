"""The commands of `stillhouse` around a training run: what a run will do, its stream, decisions, and ways to look."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from etl.storage.location import Location
from etl.storage.record import RunRecord, write_record
from jobs.cli import app
from tests.training.corpora import write_corpus
from tests.training.models.toys import family
from tests.training.teacher_tables import rows_of, write_teacher
from tests.training.toy_runs import settings, steps_of
from training.models.config import ModelConfig, student_factory
from training.models.factory import build_student, export_model
from training.models.gpt_oss import build

# DeepSpeed and what it imports late use deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")

BOTH = {"B1/*": 0.5, "B3/*": 0.5}


def call(command, *arguments, sets=()):
    words = [command, *map(str, arguments), *(word for value in sets for word in ("--set", value))]
    result = CliRunner().invoke(app, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    write_corpus(folder)
    return folder


# --- train --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_exhausted", ["repeat", "stop"])
def test_a_dry_run_says_what_the_run_then_does(corpus, tmp_path, on_exhausted):
    write_teacher(tmp_path / "scores", rows_of(corpus)[::2])
    arms = [
        {
            "name": "weighted",
            "share": 0.65,
            "objective": {"kind": "weighted_ce"},
            "data": {"teacher": str(tmp_path / "scores")},
        },
        {"name": "vanilla", "share": 0.35},
    ]
    stages = [{"name": "warm_start", "tokens": 1500}, {"name": "rescored", "tokens": 6000, "arms": arms}]
    sets = settings(corpus, tmp_path / "run", f"data.on_exhausted={on_exhausted}", stages=stages)
    found = call("train", "demo", "--dry-run", "--json", sets=sets)
    assert found.exit_code == 0
    plans = json.loads(found.stdout)["arms"]
    assert not (tmp_path / "run").exists()
    table = call("train", "demo", "--dry-run", sets=sets)
    assert table.exit_code == 0
    assert "warm_start / main: tokens by cell" in table.stdout
    assert "train_batch_size" not in table.stdout
    assert call("train", "demo", sets=sets).exit_code == 0
    steps = steps_of(tmp_path / "run")
    for plan in plans:
        of_arm = [record for record in steps if (record["stage"], record["arm"]) == (plan["stage"], plan["arm"])]
        assert plan["steps"] == pytest.approx(len(of_arm), abs=1), plan
        assert plan["tokens"] == pytest.approx(sum(record["tokens"] for record in of_arm), abs=256), plan
        assert sum(plan["cells"].values()) == pytest.approx(plan["tokens"], abs=2)


def test_json_prints_a_line_a_logged_step_and_then_the_result(corpus, tmp_path):
    sets = settings(corpus, tmp_path, "metrics.log_every_steps=2")
    found = call("train", "demo", "--json", sets=sets)
    assert found.exit_code == 0
    *steps, result = map(json.loads, found.stdout.splitlines())
    assert steps == steps_of(tmp_path)
    assert [record["step"] for record in steps] == list(range(2, result["steps"] + 1, 2))
    assert result["complete"]
    again = call("train", "demo", "--json", sets=sets)
    assert [json.loads(line) for line in again.stdout.splitlines()] == [result]
    (line,) = call("train", "demo", sets=sets).stdout.splitlines()
    assert line.startswith(f"{result['steps']} steps, ")
    assert line.endswith(f"complete; checkpoint: {result['checkpoint']}, metrics: {result['metrics']}")


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_batch_is_overfitted_beside_a_run_that_is_left_as_it_is(corpus, tmp_path):
    assert call("train", "demo", sets=settings(corpus, tmp_path, "max_steps=2")).exit_code == 0
    before = files(tmp_path)
    for seed in (0, 1):
        sets = settings(corpus, tmp_path, f"seed={seed}", "stages.0.tokens=12000")
        found = call("train", "demo", "--overfit-one-batch", "--json", sets=sets)
        assert found.exit_code == 0
        result = json.loads(found.stdout.splitlines()[-1])
        assert result["last_loss"] < 0.6 * result["first_loss"]
        assert result["checkpoint"] is None
        assert Path(result["metrics"]) == tmp_path / "overfit" / "metrics.jsonl"
    assert before.items() <= files(tmp_path).items()


def test_a_profile_is_written_and_changes_no_loss(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("training.record.recorder.PROFILED_STEPS", 1)
    for name, flags in (("plain", []), ("profiled", ["--profile"])):
        sets = settings(corpus, tmp_path / name, "stages.0.tokens=1400")
        assert call("train", "demo", *flags, sets=sets).exit_code == 0
    assert (tmp_path / "profiled" / "profile" / "trace.json.gz").stat().st_size > 1000
    assert "aten::" in (tmp_path / "profiled" / "profile" / "top_ops.txt").read_text()
    losses = [[record["loss"] for record in steps_of(tmp_path / name)] for name in ("plain", "profiled")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("factory", ["causal_lm", "upcycle"])
def test_a_dry_run_of_saved_weights_reads_their_sizes_alone(corpus, tmp_path, factory):
    dense = {"factory": "training.models.causal_lm:build", "params": {"config": family("llama")}}
    student = build_student(ModelConfig(**dense), 3)
    export_model(student, student.state_dict()).save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / "model.safetensors").write_bytes(b"")
    weights = {"weights": str(tmp_path / "dense")}
    upcycled = {"parent": weights, "experts": 4, "experts_per_token": 2}
    model = {
        "factory": f"training.models.{factory}:build",
        "params": weights if factory == "causal_lm" else upcycled,
        "lora": {"r": 2, "targets": ["q_proj"]},
    }
    found = call("train", "demo", "--dry-run", "--json", sets=settings(corpus, tmp_path / "run", model=model))
    assert found.exit_code == 0
    memory = json.loads(found.stdout)["memory"]
    assert set(memory) == {"0", "1", "2", "3"}
    assert all(stage["total"] > 0 for stage in memory.values())


@pytest.mark.parametrize("flags", [["--dry-run"], ["--overfit-one-batch"]])
def test_a_corpus_that_an_earlier_recipe_left_is_not_trained_on_silently(tmp_path, flags):
    write_corpus(tmp_path / "out" / "layout")
    write_record(Location.of(tmp_path / "out"), RunRecord(name="toy", stages=(), recipe={}))
    sets = settings(tmp_path / "out" / "layout", tmp_path / "run", stages=[{"tokens": 200}])
    found = call("train", "demo", "--json", *flags, sets=sets)
    assert found.exit_code == 0
    assert found.stderr.count("may be out of date: no stage of the recipe that last ran in") == 1
    assert "out of date" not in found.stdout


def test_a_dry_run_of_more_processes_than_lanes_is_refused(corpus, tmp_path):
    found = call("train", "demo", "--dry-run", "--nproc", 5, sets=settings(corpus, tmp_path / "run"))
    assert found.exit_code == 2
    assert "data.lanes is 4, fewer than the 5 processes" in found.output


def test_folders_in_whose_place_something_else_lies_are_refused_in_one_line(corpus, tmp_path):
    (tmp_path / "file").write_text("x")
    outside = call("train", "demo", sets=settings(corpus.parent, tmp_path / "run"))
    scratch = call("train", "demo", sets=settings(corpus, tmp_path / "run", f"checkpoint.scratch={tmp_path / 'file'}"))
    root = call("train", "demo", sets=settings(corpus, tmp_path / "run", f"checkpoint.root={tmp_path / 'file'}"))
    phase = ["--segment", 4, "--kind", "phase", "--value", json.dumps({"shares": BOTH})]
    decided = call("decide", "demo", *phase, sets=settings(corpus, tmp_path / "file"))
    exported = call("export", tmp_path / "file", tmp_path / "target")
    words = [
        (outside, f"{corpus.parent} is not a committed dataset (no _manifest.json); name {corpus}"),
        (scratch, f"checkpoint.scratch: {tmp_path / 'file'} is a file; name a folder"),
        (root, f"checkpoint.root: {tmp_path / 'file'} is a file; name a folder"),
        (decided, "start the run first"),
        (exported, f"{tmp_path / 'file'} has no run.json"),
    ]
    for result, said in words:
        assert (result.exit_code, result.stdout) == (2, "")
        assert said in result.stderr


# --- stream-digest ------------------------------------------------------------------------------------------------


def test_the_stream_digest_is_one_line_and_the_same_for_ranks_workers_and_resume_points(corpus, tmp_path):
    arms = [{"name": "a", "share": 2, "data": {"shares": BOTH}}, {"name": "b"}]
    stages = [{"name": "first", "tokens": 1000}, {"name": "second", "tokens": 1000, "arms": arms}]
    sets = settings(corpus, tmp_path / "run", stages=stages)
    ways = [[], *(["--world-size", n] for n in (2, 4)), *(["--workers", n] for n in (1, 3)), ["--resume-at", 3],
            ["--world-size", 2, "--workers", 3, "--resume-at", 5]]  # fmt: skip
    digests = {}
    for stage in ("first", "second"):
        found = [call("stream-digest", "demo", "--steps", 9, "--stage", stage, *way, sets=sets) for way in ways]
        assert {result.exit_code for result in found} == {0}
        (digests[stage],) = {result.stdout for result in found}
        assert re.fullmatch(r"[0-9a-f]{64}\n", digests[stage])
    assert digests["first"] != digests["second"]
    assert call("stream-digest", "demo", "--steps", 9, sets=[*sets, "seed=1"]).stdout != digests["first"]
    assert not (tmp_path / "run").exists()


def test_a_digest_of_more_ranks_than_lanes_or_of_no_such_stage_is_refused(corpus, tmp_path):
    sets = settings(corpus, tmp_path / "run")
    ranks = call("stream-digest", "demo", "--world-size", 5, sets=sets)
    assert ranks.exit_code == 2
    assert "data.lanes is 4, fewer than the 5 processes" in ranks.output
    beyond = call("stream-digest", "demo", "--steps", 2, "--resume-at", 3, sets=sets)
    assert beyond.exit_code == 2
    assert "--resume-at 3 is beyond --steps 2; lower it" in beyond.output
    stage = call("stream-digest", "demo", "--stage", "dpo", sets=sets)
    assert stage.exit_code == 2
    assert "there is no stage 'dpo'; the configuration has: warm_start" in stage.output


# --- decide -------------------------------------------------------------------------------------------------------


def test_a_decision_changes_the_shares_from_its_segment_on(corpus, tmp_path):
    """A segment is two steps of 4 packs of 64 tokens."""
    sets = settings(corpus, tmp_path, f"data.shares={json.dumps(BOTH)}", "stages.0.tokens=6000")
    before = call("decide", "demo", "--segment", 4, "--kind", "phase", "--value", "{}", sets=sets)
    assert before.exit_code == 2
    assert "start the run first" in before.output
    assert call("train", "demo", sets=[*sets, "max_steps=3"]).exit_code == 0
    only = {"B1/*": 0.0, "B3/*": 1.0}
    late = call("decide", "demo", "--segment", 1, "--kind", "phase", "--value", json.dumps({"shares": only}), sets=sets)
    assert late.exit_code == 2
    assert "segment 1 of " in late.output
    assert "records never change" in late.output
    decided = call(
        "decide", "demo", "--segment", 5, "--kind", "phase", "--value", json.dumps({"shares": only}), sets=sets
    )
    assert decided.exit_code == 0, decided.output
    assert "segment 5: phase" in decided.output
    small = []
    for max_steps in (10, 11, 20):
        assert call("train", "demo", sets=[*sets, f"max_steps={max_steps}"]).exit_code == 0
        rows = json.loads((tmp_path / "ledger.json").read_text())["rows"]
        small.append({bucket: sum(r["tokens"] for r in rows if r["skill_bucket"] == bucket) for bucket in ("B1", "B3")})
    # Half and half in steps 1 to 10, and nothing of B1 from step 11, the first of segment 5, on.
    assert small[0]["B3"] == pytest.approx(small[0]["B1"], rel=0.15)
    assert small[0]["B1"] == small[1]["B1"] == small[2]["B1"]
    assert small[2]["B3"] > small[1]["B3"] > small[0]["B3"]


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("phases", '{"shares": {"B1/*": 1}}', "did you mean 'phase'"),
        ("phase", '{"shares": {"B7/*": 1}}', "matches no remaining cell"),
        ("phase", "5", "must be a mapping"),
        ("phase", '{"weights": "uniform"}', "it must set shares"),
    ],
)
def test_a_wrong_decision_is_refused_and_leaves_no_record(corpus, started, kind, value, message):
    found = call("decide", "demo", "--segment", 50, "--kind", kind, "--value", value, sets=settings(corpus, started))
    assert found.exit_code == 2
    assert message in found.output
    assert not list(Path(started).rglob("000050.json"))


@pytest.fixture(scope="module")
def started(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("started")
    assert call("train", "demo", sets=settings(corpus, output, "max_steps=1")).exit_code == 0
    return output


# --- check-model --------------------------------------------------------------------------------------------------


@student_factory
def leaky(params):
    """A student whose documents see each other: it is given the pack as one document."""
    network = build(params)
    whole = network.forward

    def forward(input_ids, position_ids, cu_seqlens):
        cut = cu_seqlens.clone()
        cut[1:] = cu_seqlens[-1]
        return whole(input_ids, position_ids, cut)

    network.forward = forward
    return network


def test_check_model_reads_the_students_section_alone(tmp_path):
    """A configuration that no run could start with."""
    path = tmp_path / "student.yaml"
    tiny = {"layers": 1, "hidden": 8, "heads": 2, "kv_heads": 1, "head_dim": 4, "intermediate": 8, "vocab": 31}
    model = {"factory": "training.models.gpt_oss:build", "params": {**tiny, "experts": 2, "experts_per_token": 1}}
    path.write_text(json.dumps({"model": model, "data": {"pack_tokens": "many"}}))
    found = call("check-model", path)
    assert found.exit_code == 0, found.output
    assert "no gradient across documents" in found.output
    misspelt = call("check-model", path, sets=["sead=1"])
    assert misspelt.exit_code == 2
    assert "unknown key 'sead'; did you mean 'seed'?" in misspelt.output


def test_check_model_passes_the_demos_student_and_fails_one_that_leaks(corpus, tmp_path):
    sets = settings(corpus, tmp_path)
    passed = call("check-model", "demo", sets=sets)
    assert passed.exit_code == 0, passed.output
    assert "no gradient across documents" in passed.output
    assert "FAIL" not in passed.output
    failed = call("check-model", "demo", sets=[*sets, "model.factory=tests.jobs.test_cli_training:leaky"])
    assert failed.exit_code == 1
    assert re.search(r"packed = alone, float32.*FAIL", failed.output)
    assert re.search(r"no gradient across documents.*FAIL", failed.output)
