"""Every loss against float64 values and gradients that were computed elsewhere, entry by entry."""

import json
import math

import numpy as np
import pytest
import torch

from etl.schema import SPAN_KINDS
from tests.training.packs import toy_pack
from training.losses.chunked_head import LmHead
from training.losses.objective import (
    CrossEntropy,
    Divergence,
    OnPolicy,
    StepContext,
    TeacherOutput,
    TopKDivergence,
    WeightedCrossEntropy,
)
from training.losses.router import RouterConfig, router_loss
from training.losses.spans import SpanWeights
from training.record.metrics import router_metrics

ANALYSIS, FINAL = SPAN_KINDS.index("analysis"), SPAN_KINDS.index("final")
CPU = torch.device("cpu")
WEIGHTINGS = {"loss_w1_1": {}, "loss_w0.8_1.2": {"span_weights": {"analysis": 0.8, "final": 1.2}}}
NO_WEIGHT = dict.fromkeys(SPAN_KINDS, 0.0)
LAST_DIGITS = {"rel": 1e-13, "abs": 1e-14}


@pytest.fixture(scope="module")
def reference(shared_data):
    return json.loads((shared_data.parent / "research" / "loss_reference.json").read_text())


@pytest.fixture(scope="module")
def expected(reference):
    return reference["expected"]


@pytest.fixture(scope="module")
def inputs(reference):
    return reference["inputs"]


def targets_of(inputs):
    return [*inputs["token_ids"][1:], 0]


def kind_at(inputs, *kinds):
    """Span kind of each supervised row; a span covers tokens, predicted one row earlier."""
    spans = {ANALYSIS: inputs["analysis_spans"], FINAL: inputs["final_spans"]}
    return {
        position - 1: kind
        for kind in kinds or (ANALYSIS, FINAL)
        for start, end in spans[kind]
        for position in range(start, end)
    }


def pack_of(inputs, kinds, **more):
    return toy_pack([8, 6], 14, kinds, targets=np.array(targets_of(inputs)), **more)


def by_row(of_position, dtype=np.float64):
    """[T] of the supervised rows, from values by the position of the target; NaN elsewhere."""
    values = np.full(14, np.nan, dtype)
    for position, value in of_position.items():
        values[int(position) - 1] = value
    return values


class Result:
    """An objective on the reference's pack, through a head that is the identity: hidden states are the logits."""

    def __init__(self, objective, inputs, pack, **step):
        self.logits = torch.tensor(inputs["student_logits"], dtype=torch.float64, requires_grad=True)
        head = LmHead(torch.nn.Parameter(torch.eye(16, dtype=torch.float64)), logits_bytes=3 * 16 * 8)
        self.counts = torch.from_numpy(objective.counts(pack))
        output = objective.loss(head, self.logits, pack.tensors(CPU), StepContext(self.counts, **step))
        output.total.backward()
        self.total = float(output.total.detach())
        self.sums = output.sums
        self.report = objective.report(self.counts, output.sums)

    @property
    def analysis(self):
        return self.report["span_loss"]["analysis"]

    @property
    def final(self):
        return self.report["span_loss"]["final"]


def plain_ce(expected):
    return {"analysis": expected["span_ce"]["ce_reasoning"], "final": expected["span_ce"]["ce_final"]}


def agree(result, value):
    assert result.total == pytest.approx(value, **LAST_DIGITS)


def same_gradient(result, found):
    expected = torch.tensor(found, dtype=torch.float64)
    torch.testing.assert_close(result.logits.grad, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("key", WEIGHTINGS)
def test_span_cross_entropy(inputs, expected, key):
    found = Result(CrossEntropy(**WEIGHTINGS[key]), inputs, pack_of(inputs, kind_at(inputs)))
    agree(found, expected["span_ce"][key])
    assert found.analysis == pytest.approx(expected["span_ce"]["ce_reasoning"], **LAST_DIGITS)
    assert found.final == pytest.approx(expected["span_ce"]["ce_final"], **LAST_DIGITS)
    assert found.report["span_tokens"] == {"analysis": 5, "commentary": 0, "final": 6, "text": 0}
    if key == "loss_w1_1":
        same_gradient(found, expected["grad_span_ce_w1_1"])


def test_the_mean_over_documents_is_the_other_reading(inputs, expected):
    found = Result(CrossEntropy(normalise="example"), inputs, pack_of(inputs, kind_at(inputs)))
    agree(found, expected["span_ce"]["per_document_span_mean_then_mean(alternative reading)"])


def test_the_plain_mean_over_tokens_is_what_is_logged_and_what_all_minimises(inputs, expected):
    plain = pytest.approx(expected["span_ce"]["plain_token_mean_ce(wrong for seed 002)"], **LAST_DIGITS)
    for normalise in ("kind", "all", "example"):
        found = Result(CrossEntropy(normalise=normalise), inputs, pack_of(inputs, kind_at(inputs)))
        assert found.report["loss"] == plain
        assert (found.total == plain) == (normalise == "all")


@pytest.mark.parametrize("key", ["logp_student", "logp_teacher"])
def test_log_probabilities_of_single_tokens(inputs, expected, key):
    rows = kind_at(inputs)
    logits = {**inputs, "student_logits": inputs[key.replace("logp_", "") + "_logits"]}
    for row, kind in rows.items():
        found = Result(CrossEntropy(), logits, pack_of(inputs, {row: kind}))
        assert -found.total == pytest.approx(expected[key][str(row + 1)], **LAST_DIGITS)


def test_an_empty_span_adds_nothing(inputs, expected):
    found = Result(CrossEntropy(), inputs, pack_of(inputs, kind_at(inputs, ANALYSIS)))
    agree(found, expected["empty_final_span"]["loss_w1_1"])
    assert found.report["span_loss"] == pytest.approx({"analysis": expected["empty_final_span"]["ce_reasoning"]})
    assert torch.isfinite(found.logits.grad).all()


@pytest.mark.parametrize("number", [0, 1, 2, 3, "fp16"])
def test_teacher_weighted_cross_entropy(inputs, expected, number):
    if number == "fp16":
        entry = expected["teacher_confidence_ce_fp16_stored"]
        logp = entry["logp_teacher_fp16"]
    else:
        entry, logp = expected["teacher_confidence_ce"][number], expected["logp_teacher"]
    for key, weighting in WEIGHTINGS.items():
        objective = WeightedCrossEntropy(
            temperature=entry["T"], min_weight=entry["w_min"], max_weight=entry["w_max"], **weighting
        )
        mean = torch.tensor(entry["m"], dtype=torch.float64)
        pack = pack_of(inputs, kind_at(inputs), teacher_logp=by_row(logp))
        found = Result(objective, inputs, pack, teacher_mean=mean)
        agree(found, entry[key])
        of_spans = {"analysis": entry["cew_reasoning"], "final": entry["cew_final"]}
        for kind in of_spans:
            alone = objective.model_copy(update={"span_weights": SpanWeights(**{**NO_WEIGHT, kind: 1.0})})
            of_kind = Result(alone, inputs, pack, teacher_mean=mean).total
            assert of_kind == pytest.approx(of_spans[kind], **LAST_DIGITS)
            assert found.report["span_loss"][kind] == pytest.approx(plain_ce(expected)[kind], **LAST_DIGITS)
        variant = entry["self_normalised_variant(sum w*nll / sum w)"]
        for kind, name in (("analysis", "reasoning"), ("final", "final")):
            ratio = of_spans[kind] / found.report["span_weight"][kind]
            assert ratio == pytest.approx(variant[name], **LAST_DIGITS)
    rows = torch.tensor([int(position) - 1 for position in entry["weights"]])
    weights = objective.weights(torch.from_numpy(pack.teacher_logp)[rows], mean)
    assert weights.tolist() == pytest.approx(list(entry["weights"].values()), **LAST_DIGITS)


def test_the_centre_of_the_reference_is_the_mean_of_its_tokens(inputs, expected):
    objective = WeightedCrossEntropy(m_rate=1.0)
    pack = pack_of(inputs, kind_at(inputs), teacher_logp=by_row(expected["logp_teacher"]))
    found = Result(objective, inputs, pack, teacher_mean=torch.tensor(0.0, dtype=torch.float64))
    after = objective.next_teacher_mean(0.0, found.counts, found.sums)
    assert after == pytest.approx(expected["teacher_confidence_ce"][0]["m"], **LAST_DIGITS)


@pytest.mark.parametrize(("key", "clip"), [("opd", math.inf), ("opd_adv_clip2", 2.0)])
def test_on_policy_distillation(inputs, expected, key, clip):
    entry = expected[key]
    pack = pack_of(inputs, kind_at(inputs), teacher_logp=by_row(expected["logp_teacher"]))
    found = Result(OnPolicy(advantage_clip=clip), inputs, pack)
    agree(found, entry["loss_w1_1"])
    same_gradient(found, entry["grad_student_logits"])
    assert found.total == pytest.approx(entry["l_opd_reasoning"] + entry["l_opd_final"], **LAST_DIGITS)
    assert found.report["span_loss"] == pytest.approx(plain_ce(expected), **LAST_DIGITS)
    k1, k3 = found.report["span_reverse_kl_k1"], found.report["span_reverse_kl_k3"]
    assert k1["analysis"] == pytest.approx(entry["k1_reverse_kl_reasoning"], **LAST_DIGITS)
    assert k1["final"] == pytest.approx(entry["k1_reverse_kl_final"], **LAST_DIGITS)
    assert (5 * k3["analysis"] + 6 * k3["final"]) / 11 == pytest.approx(entry["k3_reverse_kl_all"], **LAST_DIGITS)


def test_an_anchor_is_a_mixture_of_two_losses(inputs, expected):
    pack = pack_of(inputs, kind_at(inputs), teacher_logp=by_row(expected["logp_teacher"]))
    part = expected["opd_plus_ce_anchor"]["anchor_fraction"]
    mixed = (1 - part) * Result(OnPolicy(), inputs, pack).total + part * Result(CrossEntropy(), inputs, pack).total
    assert mixed == pytest.approx(expected["opd_plus_ce_anchor"]["loss"], **LAST_DIGITS)


def teacher_of(inputs, padding=0):
    """A teacher whose hidden states are its logits; rows that pad its head would be likely."""
    logits = torch.tensor(inputs["teacher_logits"], dtype=torch.float64)
    head = torch.cat([torch.eye(16, dtype=torch.float64), torch.ones(padding, 16, dtype=torch.float64)])
    return lambda batch: TeacherOutput(logits, head)


# One span kind for all tokens makes L the mean over tokens.
def one_kind(inputs):
    return dict.fromkeys(kind_at(inputs), FINAL)


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("number", range(10))
def test_generalised_divergences(inputs, expected, number, padding):
    entry = expected["generalized_jsd_trl"][number]
    objective = Divergence(beta=entry["beta"], temperature=entry["temperature"])
    teacher = teacher_of(inputs, padding)
    found = Result(objective, inputs, pack_of(inputs, one_kind(inputs)), teacher=teacher)
    agree(found, entry["batchmean(sum over vocab, mean over unmasked tokens)"])
    assert float(found.sums.sum()) == pytest.approx(entry["sum"], **LAST_DIGITS)
    for position, value in entry["per_position"].items():
        single = Result(objective, inputs, pack_of(inputs, {int(position) - 1: FINAL}), teacher=teacher)
        assert single.total == pytest.approx(value, **LAST_DIGITS)
    if (entry["beta"], entry["temperature"]) == (0, 1):
        same_gradient(found, expected["grad_forward_kl_batchmean_T1"])


def test_reverse_divergence_of_single_steps(inputs, expected):
    found = Result(Divergence(beta=1), inputs, pack_of(inputs, one_kind(inputs)), teacher=teacher_of(inputs))
    agree(found, expected["minillm_single_step_reverse_kl_full"]["token_mean"])


@pytest.mark.parametrize("number", [0, 1])
def test_forward_divergence_by_span(inputs, expected, number):
    entry = expected["kd_forward_kl_span_normalised"][number]
    teacher, pack = teacher_of(inputs), pack_of(inputs, kind_at(inputs))
    found = Result(Divergence(temperature=entry["T"]), inputs, pack, teacher=teacher)
    agree(found, entry["loss_w1_1"])
    assert (found.analysis, found.final) == pytest.approx((entry["reasoning"], entry["final"]), **LAST_DIGITS)
    squared = Divergence(temperature=entry["T"], times_temperature_squared=True)
    agree(Result(squared, inputs, pack, teacher=teacher), entry["with_T2"])


@pytest.mark.parametrize("number", [0, 1])
def test_temperature_squared(inputs, expected, number):
    entry = expected["distillkit_kl"][number]
    objective = Divergence(temperature=entry["T"], times_temperature_squared=True)
    found = Result(objective, inputs, pack_of(inputs, one_kind(inputs)), teacher=teacher_of(inputs))
    agree(found, entry["loss=T^2*sum/n_tokens"])


def topk(inputs):
    logp, ids = torch.tensor(inputs["teacher_logits"], dtype=torch.float64).log_softmax(-1).topk(inputs["topk"])
    return {"topk_ids": ids.int().numpy(), "topk_logp": logp.numpy()}


def test_stored_top_k_with_a_bucket_for_the_tail(inputs, expected):
    treatments = expected["topk4_forward_kl"]
    entry = treatments["tail_bucket(=DistillKit symmetric_uniform, TRL add_tail_bucket)"]
    found = Result(TopKDivergence(), inputs, pack_of(inputs, one_kind(inputs), **topk(inputs)))
    agree(found, entry["token_mean"])
    for position, value in entry["per_position"].items():
        single = Result(TopKDivergence(), inputs, pack_of(inputs, {int(position) - 1: FINAL}, **topk(inputs)))
        assert single.total == pytest.approx(value, **LAST_DIGITS)


def test_what_other_treatments_of_the_tail_leave_out(inputs, expected):
    """Without the bucket the tail's term is missing; renormalised, the teacher's mass over k is 1 besides."""
    treatments = expected["topk4_forward_kl"]
    stored = topk(inputs)
    student = torch.tensor(inputs["student_logits"], dtype=torch.float64).softmax(-1)
    for row in kind_at(inputs):
        position = str(row + 1)
        ours = Result(TopKDivergence(), inputs, pack_of(inputs, {row: FINAL}, **stored)).total
        teacher = torch.from_numpy(stored["topk_logp"][row]).exp()
        mass, tail = float(teacher.sum()), float(1 - student[row, stored["topk_ids"][row].tolist()].sum())
        truncated = ours - (1 - mass) * math.log((1 - mass) / tail)
        assert truncated == pytest.approx(treatments["truncated_no_tail"]["per_position"][position], rel=1e-12)
        renormalised = truncated / mass - math.log(mass)
        assert renormalised == pytest.approx(treatments["zero_renormalised"]["per_position"][position], rel=1e-12)


def test_router(inputs, expected):
    entry = expected["router"]
    logits = torch.tensor(inputs["router_logits"], dtype=torch.float64)
    top_k, everywhere = inputs["experts_top_k"], torch.ones(14, dtype=torch.bool)
    balance, sums = router_loss([logits], everywhere, top_k, RouterConfig(aux_coefficient=1.0), 1.0)
    assert float(balance) == pytest.approx(entry["switch_normalised(f/k)"], **LAST_DIGITS)
    pooled = entry["hf_load_balancing_loss(E*sum_e f_e*p_e, f=tokens routed to e / tokens)"]
    assert float(balance) * top_k == pytest.approx(pooled, **LAST_DIGITS)
    z, _ = router_loss([logits], everywhere, top_k, RouterConfig(aux_coefficient=0.0, z_coefficient=1.0), 1.0)
    assert float(z) == pytest.approx(entry["z_loss(mean logsumexp^2)"], **LAST_DIGITS)
    assert sums.load.tolist() == [entry["counts"]]
    metrics = router_metrics(sums.load)
    assert metrics["max_violation"] == pytest.approx(entry["max_violation(max/mean-1)"])
    assert metrics["entropy"] == pytest.approx(entry["load_entropy_normalised"])
    assert metrics["dead_experts"] == entry["dead_experts"]
    load = sums.load.double()
    assert float(load.std(correction=0) / load.mean()) == pytest.approx(entry["cv"])
