"""Stages end to end: a rescored mix, teachers, preference pairs, fine-tuning, and what happens between two stages."""

import json
import math
from collections import Counter
from contextlib import closing

import numpy as np
import pyarrow as pa
import pytest
import torch

from etl.errors import ConfigError
from tests.datasets import write_dataset
from tests.training.corpora import VOCAB, documents, write_corpus
from tests.training.disturbed_runs import arguments
from tests.training.forked import run_ranks
from tests.training.models.toys import family
from tests.training.teacher_tables import append_columns, rows_of, write_teacher
from tests.training.toy_runs import (
    PulledPlugError,
    configuration,
    deterministic,
    manifest,
    pull_the_plug_at,
    records,
    settings,
    steps_of,
    weights,
)
from training.data.stream.decisions import DecisionLog
from training.models.config import ModelConfig
from training.models.factory import build_student, export_model
from training.stages.dry_run import plan_stage
from training.train import main, train

# DeepSpeed and what it imports late use deprecated parts of torch; so does peft.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")

OF_KIND = {"analysis": -0.25, "final": -2.0}
"""ln p of the toy teacher, by span kind: both are exact in float16."""
TOPK = 3


def logp_by_kind(row, number):
    """The toy teacher's ln p of a target."""
    analysis, _ = row["spans"]
    return OF_KIND["analysis" if number < analysis["end"] - max(analysis["start"], 1) else "final"]


def top_in_vocabulary(place, topk):
    """A distribution's likeliest ids: they hold seven eighths of it."""
    return [(place + rank) % VOCAB for rank in range(topk)], [math.log(0.5**rank) for rank in range(1, topk + 1)]


@pytest.fixture(scope="module")
def scores(corpus, tmp_path_factory):
    """A toy teacher's table over 40 % of the training rows."""
    folder = tmp_path_factory.mktemp("scores") / "teacher_logp"
    rows = [row for number, row in enumerate(rows_of(corpus)) if number % 5 < 2]
    write_teacher(folder, rows, TOPK, logp_by_kind, top_in_vocabulary)
    return folder


# --- 2B: rescored -------------------------------------------------------------------------------------------------

WEIGHTED = {"kind": "weighted_ce", "temperature": 1.0, "min_weight": 0.25, "max_weight": 4.0, "m_rate": 0.25}


def rescored_stages(scores, tokens=4400):
    arms = [
        {"name": "weighted", "share": 0.65, "objective": WEIGHTED, "data": {"teacher": str(scores)}},
        {"name": "vanilla", "share": 0.35},
    ]
    return [{"name": "warm_start", "tokens": 500}, {"name": "rescored", "tokens": tokens, "arms": arms}]


@pytest.fixture(scope="module")
def rescored(corpus, scores, tmp_path_factory):
    """The folder and the result of a run of a warm start and a rescored stage."""
    output = tmp_path_factory.mktemp("rescored")
    return output, train(configuration(corpus, output, stages=rescored_stages(scores)))


def test_a_rescored_stage_weighs_by_the_teacher_and_keeps_the_documented_mean(rescored):
    output, result = rescored
    steps = [record for record in steps_of(output) if record["stage"] == "rescored"]
    assert result.complete
    weighted = [record for record in steps if record["arm"] == "weighted"]
    assert 0.5 <= len(weighted) / len(steps) <= 0.8
    mean = -1.0  # findings.mean_logp of the table
    for record in weighted:
        assert sum(span["count"] for span in record["teacher_logp"]["span"].values()) == record["supervised_tokens"]
        assert record["teacher_logp"]["example"]["count"] > 0
        for kind, logp in OF_KIND.items():
            weight = min(max(math.exp(logp - mean), 0.25), 4.0)
            assert record["span_teacher_logp"][kind] == pytest.approx(logp)
            assert record["span_weight"][kind] == pytest.approx(weight)
            assert {record["teacher_logp"]["span"][kind][key] for key in ("mean", "p5", "p50", "p95")} == {logp}
        tokens = record["span_tokens"]
        of_step = sum(logp * tokens[kind] for kind, logp in OF_KIND.items()) / sum(tokens.values())
        mean += 0.25 * (of_step - mean)
    assert manifest(result)["payload"]["teacher_mean"] == {"weighted": pytest.approx(mean)}
    for record in steps:
        assert ("teacher_logp" in record) == (record["arm"] == "weighted")


def test_only_scored_documents_come_in_the_weighted_arm_and_all_others_in_the_other(corpus, scores, tmp_path):
    config = configuration(corpus, tmp_path, stages=rescored_stages(scores))
    seen = {"weighted": set(), "vanilla": set()}
    with closing(config.streams.open_stage(config.stages[1], 0, 1, DecisionLog.preview)) as stream:
        for _ in range(80):
            step = stream.next_step()
            seen[step.arm.name].update(*(pack.id_hash.tolist() for pack in step.packs))
    assert len(seen["weighted"]) == 48
    # The other arm takes first what the teacher has not scored.
    assert len(seen["vanilla"] - seen["weighted"]) == 72
    assert len(seen["vanilla"] | seen["weighted"]) == 120


def test_a_rescored_stage_resumes_where_it_was_cut(corpus, scores, rescored, tmp_path):
    sections = {"stages": rescored_stages(scores)}
    with pytest.raises(PulledPlugError):
        train(configuration(corpus, tmp_path, "checkpoint.every_steps=7", **sections), pull_the_plug_at(12))
    result = train(configuration(corpus, tmp_path, **sections))
    output, whole = rescored
    assert deterministic(records(tmp_path)) == deterministic(records(output))
    ours, theirs = weights(result), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert manifest(result)["payload"]["teacher_mean"] == manifest(whole)["payload"]["teacher_mean"]


def test_each_stage_begins_with_the_mean_of_its_own_table(corpus, scores, tmp_path):
    arm = {"objective": WEIGHTED, "data": {"teacher": str(scores)}}
    stages = [{"name": name, "tokens": 700, "arms": [arm]} for name in ("first", "second")]
    train(configuration(corpus, tmp_path, stages=stages))
    first = [next(step for step in steps_of(tmp_path) if step["stage"] == name) for name in ("first", "second")]
    assert first[0]["span_weight"] == pytest.approx(first[1]["span_weight"])


# --- teachers' distributions --------------------------------------------------------------------------------------

TEACHER = {
    "factory": "training.models.causal_lm:build",
    "params": {"config": {**family("llama"), "num_hidden_layers": 1}},
}


def kl_stage(tokens=3000, **objective):
    return [{"name": "distil", "tokens": tokens, "arms": [{"objective": objective}]}]


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_a_student_comes_nearer_to_a_teacher_model_that_no_checkpoint_has(corpus, tmp_path, beta):
    stages = kl_stage(kind="kl", beta=beta)
    result = train(configuration(corpus, tmp_path, stages=stages, teacher=TEACHER))
    assert 0 < result.last_loss < 0.8 * result.first_loss
    student = build_student(configuration(corpus, tmp_path).model, 0)
    assert set(weights(result)) == {f"student.{name}" for name in student.state_dict()}


def test_a_teacher_of_another_vocabulary_is_refused_with_both_sizes_before_the_run(corpus, tmp_path):
    other = {**TEACHER, "params": {"config": {**TEACHER["params"]["config"], "vocab_size": 101}}}
    stages = kl_stage(kind="kl")
    with pytest.raises(ConfigError, match=r"student's head has 97 rows and the teacher's 101"):
        train(configuration(corpus, tmp_path, stages=stages, teacher=other))
    assert not (tmp_path / "metrics.jsonl").exists()
    padded = kl_stage(tokens=300, kind="kl", vocab_size=97)
    assert train(configuration(corpus, tmp_path, stages=padded, teacher=other)).complete
    with pytest.raises(ConfigError, match="needs `teacher`"):
        train(configuration(corpus, tmp_path, stages=stages))


def test_stored_top_k_pull_the_student_at_their_own_temperature_only(corpus, scores, tmp_path):
    more = [f"data.teacher={scores}"]
    result = train(configuration(corpus, tmp_path / "run", *more, stages=kl_stage(kind="topk_kl")))
    assert 0 < result.last_loss < 0.8 * result.first_loss
    with pytest.raises(ConfigError, match="stored at temperature 1 "):
        train(configuration(corpus, tmp_path / "hot", *more, stages=kl_stage(kind="topk_kl", temperature=2.0)))
    assert not (tmp_path / "hot").exists()


def test_a_table_without_top_k_is_refused_before_the_run(corpus, tmp_path):
    write_teacher(tmp_path / "scores", rows_of(corpus), topk=0)
    more = [f"data.teacher={tmp_path / 'scores'}"]
    with pytest.raises(ConfigError, match="no top-k"):
        train(configuration(corpus, tmp_path / "run", *more, stages=kl_stage(kind="topk_kl")))
    assert not (tmp_path / "run").exists()


# --- preference pairs ---------------------------------------------------------------------------------------------

PAIRS = 40
UNSCORED = 6


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A corpus whose chosen sides count up and whose rejected ones count down, and a table that lacks some rows."""
    folder = tmp_path_factory.mktemp("pairs")
    table = documents(2 * PAIRS, 5, max_tokens=30)
    ids = table["input_ids"].to_pylist()
    ids[PAIRS:] = [row[::-1] for row in ids[PAIRS:]]
    table = table.set_column(1, "input_ids", pa.array(ids, pa.list_(pa.int32())))
    names = [f"pair-{number}" for number in range(PAIRS)]
    sides = ["chosen"] * PAIRS + ["rejected"] * PAIRS
    table = append_columns(table, pair_id=[*names, *reversed(names)], side=sides)
    cells = {"split=train/skill_bucket=B1/ctx_bucket=C1": table}
    write_dataset(str(folder / "corpus"), "layout", "corpus", cells)
    # The last rows are rejected sides of the first pairs.
    write_teacher(folder / "reference", rows_of(folder / "corpus")[:-UNSCORED], logp=lambda _row, _number: -4.5)
    return folder


def dpo_run(pairs, output, tokens):
    stages = [{"name": "dpo", "tokens": tokens, "arms": [{"objective": {"kind": "dpo", "beta": 0.1}}]}]
    return configuration(pairs / "corpus", output, f"data.reference={pairs / 'reference'}", stages=stages)


def test_dpo_learns_an_easy_preference(pairs, tmp_path):
    result = train(dpo_run(pairs, tmp_path, 6000))
    found = steps_of(tmp_path)
    assert result.complete
    assert found[0]["loss"] == pytest.approx(math.log(2), abs=0.3)
    assert np.mean([record["accuracy"] for record in found[-4:]]) > 0.9
    assert found[-1]["reward_chosen"] > found[-1]["reward_rejected"]
    assert all(record["pairs"] >= 4 for record in found)


def test_both_sides_of_a_pair_are_in_one_pack_and_pairs_that_are_not_both_scored_are_counted(pairs, tmp_path):
    config = dpo_run(pairs, tmp_path, 3000)
    (stage,) = config.stages
    seen = set()
    with closing(config.streams.open_stage(stage, 0, 1, DecisionLog.preview)) as stream:
        for _ in range(20):
            for pack in stream.next_step().packs:
                assert sorted(Counter(pack.pair.tolist()).values()) == [2] * (len(pack.pair) // 2)
                assert pack.side.tolist() == [0, 1] * (len(pack.pair) // 2)
                assert np.isfinite(pack.reference_logp).all()
                seen.update(pack.id_hash.tolist())
    (plan,) = plan_stage(config.streams, stage).arms
    assert len(seen) == plan.available_documents == 2 * (PAIRS - UNSCORED)
    assert plan.left_out == {"not scored by the teacher": UNSCORED, "pair without both sides": UNSCORED}


def test_preference_stages_without_pairs_or_reference_are_refused_before_the_first_stage(corpus, scores, tmp_path):
    dpo = {"name": "dpo", "tokens": 500, "arms": [{"objective": {"kind": "dpo"}}]}
    stages = [{"name": "sft", "tokens": 500}, dpo]
    with pytest.raises(ConfigError, match=r"needs data\.reference"):
        train(configuration(corpus, tmp_path, stages=stages))
    with pytest.raises(ConfigError, match=r"of stage 'dpo' needs preference pairs, but .* pair_id, side"):
        train(configuration(corpus, tmp_path, f"data.reference={scores}", stages=stages))
    assert not (tmp_path / "metrics.jsonl").exists()


# --- stages that are edited between two starts ----------------------------------------------------------------------


def test_a_run_goes_on_with_an_edited_list_and_refuses_one_that_trains_a_stage_again(corpus, tmp_path, capsys):
    def run(*names, **changes):
        stages = [{"name": name, "tokens": 700, **changes.get(name, {})} for name in names]
        return train(configuration(corpus, tmp_path, *limit, stages=stages))

    limit = ["max_steps=4"]
    assert not run("a", "b", "c").complete
    for names in (("new", "a", "b", "c"), ("b", "c"), ("b", "a", "c"), ("a", "new", "b"), ("a", "renamed", "c")):
        with pytest.raises(ConfigError, match=r"has 'a' \(done\), 'b' \(begun: .*the configuration has '"):
            run(*names)
    limit.clear()
    capsys.readouterr()
    assert run("a", "b", "new", b={"optimizer": {"lr": 0.02}}).complete
    said = capsys.readouterr().err
    assert "resumed from step 4 (stage 'b', " in said
    assert "stage 'b': optimizer.lr changed from 0.01 to 0.02" in said
    assert "the stages that have not begun were 'c' and are 'new'" in said
    stages = [record["stage"] for record in steps_of(tmp_path)]
    assert list(dict.fromkeys(stages)) == ["a", "b", "new"]
    assert stages == sorted(stages)
    (again,) = [record["lr"] for record in steps_of(tmp_path) if record["step"] == 5]
    assert again == pytest.approx(0.02, rel=0.01)


# --- fine-tuning --------------------------------------------------------------------------------------------------


def test_epochs_auto_ends_the_stage_after_exactly_three_passes_of_a_small_corpus(tmp_path):
    write_corpus(tmp_path / "corpus", num_train=24)
    more = ["data.epochs=auto", "data.on_exhausted=stop"]
    after = {"name": "after", "tokens": 10_000_000, "data": {"epochs": 1, "order": "fresh"}}
    stages = [{"name": "sft", "tokens": 10_000_000}, after]
    result = train(configuration(tmp_path / "corpus", tmp_path / "run", *more, stages=stages))
    once = sum(row["n_tokens"] for row in rows_of(tmp_path / "corpus"))
    of_stage = Counter()
    for record in steps_of(tmp_path / "run"):
        of_stage[record["stage"]] += record["tokens"]
    assert of_stage == {"sft": 3 * once, "after": once}
    assert result.complete


def test_an_upcycled_student_takes_adapters(corpus, tmp_path):
    params = {"parent": {"config": family("llama")}, "experts": 4, "experts_per_token": 2}
    model = {"factory": "training.models.upcycle:build", "params": params, "lora": {"r": 2}}
    result = train(configuration(corpus, tmp_path, model=model))
    assert result.last_loss < result.first_loss


LORA = ["model.lora={r: 2, alpha: 4, targets: [q_proj, v_proj]}"]


def test_lora_trains_the_adapters_alone_and_resumes(corpus, tmp_path):
    whole = train(configuration(corpus, tmp_path / "whole", *LORA))
    config = configuration(corpus, tmp_path / "cut", *LORA, "checkpoint.every_steps=3")
    with pytest.raises(PulledPlugError):
        train(config, pull_the_plug_at(5))
    resumed = train(config)
    assert deterministic(records(tmp_path / "cut")) == deterministic(records(tmp_path / "whole"))
    found, again = weights(whole), weights(resumed)
    before = {f"student.{name}": value for name, value in build_student(config.model, config.seed).state_dict().items()}
    assert set(found) == set(before)
    assert all(torch.equal(found[name], again[name]) for name in found)
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert changed == {name for name in found if ".lora_" in name}
    assert whole.last_loss < whole.first_loss


def test_gradient_checkpointing_changes_no_number(corpus, tmp_path):
    for name in ("true", "false"):
        train(configuration(corpus, tmp_path / name, f"model.gradient_checkpointing={name}"))
    kept, recomputed = (
        [(record["loss"], record["grad_norm"]) for record in steps_of(tmp_path / name)] for name in ("false", "true")
    )
    assert recomputed == kept


def test_an_upcycled_student_trains_and_its_routers_are_measured(corpus, tmp_path):
    dense = {"factory": "training.models.causal_lm:build", "params": {"config": family("llama")}}
    student = build_student(ModelConfig(**dense), 3)
    export_model(student, student.state_dict()).save_pretrained(tmp_path / "dense")
    params = {"parent": {"weights": str(tmp_path / "dense")}, "experts": 4, "experts_per_token": 2}
    model = {"factory": "training.models.upcycle:build", "params": params}
    more = ["router.aux_coefficient=0.01"]
    result = train(configuration(corpus, tmp_path / "routed", *more, model=model))
    plain = {**dense, "params": {"weights": str(tmp_path / "dense")}}
    parent = train(configuration(corpus, tmp_path / "plain", "max_steps=1", model=plain))
    assert result.first_loss == pytest.approx(parent.first_loss, rel=1e-6)
    assert result.last_loss < result.first_loss
    for record in steps_of(tmp_path / "routed"):
        router = record["router"]
        assert [sum(layer) for layer in router["load"]] == [2 * record["tokens"]] * 2
        assert all(0 < entropy <= 1 for entropy in router["layer_entropy"])
        assert router["layer_max_load"] == [max(layer) / (record["tokens"] / 2) for layer in router["load"]]
        assert router["layer_dead_experts"] == [layer.count(0) for layer in router["load"]]
    # A dense student has none.
    assert steps_of(tmp_path / "plain")[0]["router"] == {}


# --- from stage to stage ------------------------------------------------------------------------------------------


def test_the_rate_warms_up_anew_and_moments_are_kept_unless_they_are_reset(corpus, tmp_path):
    second = {"name": "second", "tokens": 900, "optimizer": {"lr": 0.002}}
    for name, reset in (("kept", False), ("reset", True)):
        stages = [{"name": "first", "tokens": 900}, {**second, "reset": reset}]
        train(configuration(corpus, tmp_path / name, stages=stages))
    kept, reset = (steps_of(tmp_path / name) for name in ("kept", "reset"))
    tokens = Counter()
    for record in kept:
        tokens[record["stage"]] += record["tokens"]
        peak = {"first": 0.01, "second": 0.002}[record["stage"]]
        assert record["lr"] == pytest.approx(peak * min(tokens[record["stage"]] / 512, 1.0))
    start = next(number for number, record in enumerate(kept) if record["stage"] == "second")
    assert deterministic(kept[:start]) == deterministic(reset[:start])
    # The gradient of the stage's first step is the same; only what the moments make of it differs.
    assert reset[start]["grad_norm"] == kept[start]["grad_norm"]
    # After a reset, Adam's first update moves every weight that has a gradient by the rate.
    assert reset[start]["update_ratio"] > 1.2 * kept[start]["update_ratio"]


def test_wsd_falls_at_the_end_of_each_stage(corpus, tmp_path):
    schedule = {"kind": "wsd", "warmup_tokens": 300, "decay_fraction": 0.25, "decay": "linear"}
    stages = [{"name": name, "tokens": 2000} for name in ("first", "second")]
    train(configuration(corpus, tmp_path, stages=stages, optimizer={"lr": 0.01, "schedule": schedule}))
    for name in ("first", "second"):
        total = 0
        for record in steps_of(tmp_path):
            if record["stage"] == name:
                total += record["tokens"]
                expected = 0.01 * min(total / 300, 1.0, max(2000 - total, 0) / 500)
                assert record["lr"] == pytest.approx(expected, abs=1e-12)


def test_a_stop_rule_ends_a_stage_early_and_the_next_one_begins(corpus, tmp_path):
    stop = {"flat_evaluations": 2, "min_improvement": 0.99}
    stages = [{"name": "first", "tokens": 100_000, "stop": stop}, {"name": "second", "tokens": 600}]
    result = train(configuration(corpus, tmp_path, stages=stages, evaluate={"every_tokens": 400, "max_packs": 1}))
    assert result.complete
    found = records(tmp_path)
    second = next(number for number, record in enumerate(found) if record.get("stage") == "second")
    # Evaluations at steps 0, 2 and 4: the first one, then two that are flat.
    assert [record["step"] for record in found[:second] if "held_out" in record] == [0, 2, 4]
    assert found[second]["step"] == 5
    assert sum(record.get("tokens", 0) for record in found[second:]) >= 600


def test_further_sets_are_evaluated_beside_the_cells(corpus, tmp_path):
    cell = {"split=validation/skill_bucket=B2/ctx_bucket=C2": documents(8, 9)}
    write_dataset(str(tmp_path / "canary"), "layout", "corpus", cell)
    evaluate = {"every_tokens": 700, "max_packs": 2, "sets": {"canary": {"corpus": str(tmp_path / "canary")}}}
    result = train(configuration(corpus, tmp_path / "run", evaluate=evaluate))
    found = [record for record in records(tmp_path / "run") if "held_out" in record]
    assert [record["held_out"] for record in (found[0], found[-1])] == [result.first_held_out, result.last_held_out]
    for record in found:
        assert set(record["held_out_cells"]) == {"B1/C1", "canary/B2/C2"}
        assert record["held_out"] == pytest.approx(record["held_out_cells"]["B1/C1"])
        assert record["held_out_cells"]["canary/B2/C2"] != pytest.approx(record["held_out"])
        assert set(record["held_out_span_loss"]) == {"analysis", "final"}


def test_a_corpus_without_validation_documents_that_fit_is_refused_even_beside_further_sets(corpus, tmp_path):
    cells = {
        "split=train/skill_bucket=B1/ctx_bucket=C1": documents(20, 1),
        "split=validation/skill_bucket=B1/ctx_bucket=C1": documents(1, 2, max_tokens=4),
    }
    weightless = cells["split=validation/skill_bucket=B1/ctx_bucket=C1"]
    cells["split=validation/skill_bucket=B1/ctx_bucket=C1"] = weightless.set_column(
        weightless.schema.get_field_index("sampling_weight"), "sampling_weight", pa.array([0.0])
    )
    write_dataset(str(tmp_path / "corpus"), "layout", "corpus", cells)
    evaluate = {"sets": {"other": {"corpus": str(corpus)}}}
    with pytest.raises(ConfigError, match="no document of the validation split"):
        train(configuration(tmp_path / "corpus", tmp_path / "run", evaluate=evaluate))


@pytest.mark.slow
def test_two_processes_train_a_stage_of_two_arms_as_one_does(corpus, scores, rescored, tmp_path):
    run = [*arguments(settings(corpus, tmp_path, stages=rescored_stages(scores))), "--json"]
    ranks = run_ranks(main, run, world_size=2, folder=tmp_path)
    for code, said in ranks:
        assert code == 0, said
    assert json.loads(ranks[0][1].splitlines()[-1])["complete"]
    ours, theirs = steps_of(tmp_path), steps_of(rescored[0])
    for key in ("stage", "arm", "tokens", "span_tokens"):
        assert [record[key] for record in ours] == [record[key] for record in theirs]
    assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in theirs], abs=1e-5)
    assert [r["grad_norm"] for r in ours] == pytest.approx([r["grad_norm"] for r in theirs], abs=1e-4)
    weighted = [[record["teacher_logp"] for record in run if record["arm"] == "weighted"] for run in (ours, theirs)]
    assert weighted[0] == weighted[1]
