import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.nn.functional import cross_entropy

from etl.errors import ConfigError, DataError
from etl.schema import SPAN_KINDS
from tests.training.packs import toy_pack
from training.losses.chunked_head import LmHead
from training.losses.objective import (
    CrossEntropy,
    Divergence,
    Dpo,
    Objective,
    OnPolicy,
    StepContext,
    TeacherOutput,
    TopKDivergence,
    WeightedCrossEntropy,
)

CPU = torch.device("cpu")
VOCAB, PACK_TOKENS = 13, 16
ANALYSIS, FINAL, TEXT = (SPAN_KINDS.index(kind) for kind in ("analysis", "final", "text"))
TEACHER = nn.Parameter(torch.randn(VOCAB, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64))


def teacher(batch):
    states = torch.sin(torch.arange(PACK_TOKENS * 3, dtype=torch.float64)).reshape(PACK_TOKENS, 3)
    return TeacherOutput(states + batch.targets[:, None], TEACHER)


def signals(seed):
    generator = np.random.default_rng(seed)
    topk = np.sort(generator.dirichlet(np.ones(4), PACK_TOKENS)[:, :3])[:, ::-1]
    ids = np.stack([generator.permutation(VOCAB)[:3] for _ in range(PACK_TOKENS)])
    return {
        "targets": generator.integers(0, VOCAB, PACK_TOKENS),
        "teacher_logp": -generator.exponential(size=PACK_TOKENS).astype(np.float32),
        "topk_ids": ids.astype(np.int32),
        "topk_logp": np.log(topk).astype(np.float32),
    }


def pack_of(seed, lengths=(6, 7), kind_at=None):
    """A pack with every signal; by default two documents, the second of which lacks a kind of the first."""
    kinds = {1: ANALYSIS, 2: ANALYSIS, 4: FINAL, 8: FINAL, 9: FINAL, 11: FINAL} if kind_at is None else kind_at
    return toy_pack(list(lengths), PACK_TOKENS, kinds, **signals(seed))


def pair_pack(seed, **more):
    pairs = {
        "pair": np.array([0, 1, 1, 0], np.int32),
        "side": np.array([0, 1, 0, 1], np.int8),
        "reference_logp": np.array([-3.0, -5.0, -4.0, -6.5], np.float32),
    }
    kinds = {1: ANALYSIS, 2: FINAL, 5: FINAL, 6: FINAL, 9: FINAL, 10: ANALYSIS, 12: ANALYSIS, 13: FINAL}
    return toy_pack([4, 4, 3, 4], PACK_TOKENS, kinds, **{**signals(seed), **pairs, **more})


def states(seed):
    return torch.randn(PACK_TOKENS, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(objective, packs, seeds):
    """Report, total and gradient of the weight over packs, as a step over their ranks would sum them."""
    weight = nn.Parameter(torch.eye(VOCAB, dtype=torch.float64))
    head = LmHead(weight, logits_bytes=2 * 4 * VOCAB * 8)
    counts = torch.from_numpy(sum(objective.counts(pack) for pack in packs))
    step = StepContext(counts, torch.tensor(-1.0, dtype=torch.float64), teacher)
    outputs = [
        objective.loss(head, states(seed), pack.tensors(CPU), step) for pack, seed in zip(packs, seeds, strict=True)
    ]
    total = sum(output.total for output in outputs)
    total.backward()
    sums = sum(output.sums for output in outputs)
    return objective.report(counts, sums), float(total.detach()), weight.grad


EVERY = [
    CrossEntropy(),
    CrossEntropy(normalise="example", span_weights={"analysis": 0.5, "final": 3.0}),
    WeightedCrossEntropy(),
    WeightedCrossEntropy(normalise="example"),
    OnPolicy(advantage_clip=1.0),
    Divergence(beta=0.3, temperature=2.0, times_temperature_squared=True),
    TopKDivergence(temperature=2.0),
    Dpo(label_smoothing=0.1),
]


def name_of(objective):
    return f"{objective.kind}-{getattr(objective, 'normalise', 'pair')}"


@pytest.mark.parametrize("objective", EVERY, ids=name_of)
def test_totals_of_packs_sum_to_the_reported_loss(objective):
    packs = [pair_pack(seed) if objective.kind == "dpo" else pack_of(seed) for seed in (1, 2)]
    if objective.kind != "dpo":
        packs.append(pack_of(3, [16], {5: TEXT}))
    report, total, _ = run(objective, packs, range(len(packs)))
    assert report["loss"] == pytest.approx(total, rel=1e-12)
    expected = {"analysis": 4, "final": 8, "text": 1} if objective.kind != "dpo" else {"analysis": 6, "final": 10}
    assert {kind: count for kind, count in report["span_tokens"].items() if count} == expected
    if objective.kind != "dpo":
        weights = objective.span_weights.model_dump()
        by_span = sum(weights[kind] * mean for kind, mean in report["span_loss"].items())
        assert report["loss"] == pytest.approx(by_span, rel=1e-12)


@pytest.mark.parametrize("objective", EVERY, ids=name_of)
def test_a_pack_without_documents_changes_nothing(objective):
    pack = pair_pack(1) if objective.kind == "dpo" else pack_of(1)
    filler = toy_pack([], PACK_TOKENS, {})
    report, total, gradient = run(objective, [pack], [0])
    with_filler = run(objective, [pack, filler], [0, 1])
    assert with_filler[:2] == (report, total)
    torch.testing.assert_close(with_filler[2], gradient, rtol=0, atol=0)
    report, total, gradient = run(objective, [filler], [1])
    assert (total, report["loss"]) == (0.0, 0.0)
    assert float(gradient.abs().max()) == 0


@pytest.mark.parametrize("objective", EVERY, ids=name_of)
def test_no_gradient_comes_from_unsupervised_rows(objective):
    pack = pair_pack(1) if objective.kind == "dpo" else pack_of(1)
    hidden = states(0).requires_grad_()
    counts = torch.from_numpy(objective.counts(pack))
    step = StepContext(counts, torch.tensor(-1.0, dtype=torch.float64), teacher)
    head = LmHead(nn.Parameter(torch.eye(VOCAB, dtype=torch.float64)))
    objective.loss(head, hidden, pack.tensors(CPU), step).total.backward()
    touched = hidden.grad.abs().sum(1) > 0
    np.testing.assert_array_equal(touched.numpy(), pack.target_kind >= 0)


@given(
    kinds=st.lists(st.lists(st.integers(-1, 3), min_size=8, max_size=8), min_size=1, max_size=3),
    lengths=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    normalise=st.sampled_from(["token", "example"]),
)
def test_span_normalised_loss_is_the_mean_of_means(kinds, lengths, normalise):
    """Against lists of tokens by kind and document, over packs of any composition, empty kinds included."""
    used = sum(lengths)
    packs = [
        toy_pack(
            list(lengths), 8, {row: kind for row, kind in enumerate(rows[:used]) if kind >= 0}, targets=np.arange(8)
        )
        for rows in kinds
    ]
    objective = CrossEntropy(normalise=normalise, span_weights={"analysis": 0.5, "text": 2.0})
    weight = nn.Parameter(torch.eye(8, dtype=torch.float64))
    hidden = torch.cos(torch.arange(64, dtype=torch.float64)).reshape(8, 8)
    nll = cross_entropy(hidden, torch.arange(8), reduction="none").tolist()
    groups = {}
    for number, pack in enumerate(packs):
        for row in np.flatnonzero(pack.target_kind >= 0):
            document = 0 if normalise == "token" else (number, pack.document[row])
            groups.setdefault(int(pack.target_kind[row]), {}).setdefault(document, []).append(nll[row])
    weights = list(objective.span_weights.model_dump().values())
    expected = sum(weights[kind] * np.mean([np.mean(own) for own in of.values()]) for kind, of in groups.items())
    counts = torch.from_numpy(sum(objective.counts(pack) for pack in packs))
    found = [objective.loss(LmHead(weight), hidden, pack.tensors(CPU), StepContext(counts)) for pack in packs]
    assert float(sum(output.total for output in found).detach()) == pytest.approx(float(expected), rel=1e-12, abs=1e-14)
    assert objective.report(counts, sum(output.sums for output in found))["loss"] == pytest.approx(float(expected))


def test_weights_are_clipped_and_the_loss_is_divided_by_tokens():
    objective = WeightedCrossEntropy(temperature=2.0, min_weight=0.5, max_weight=3.0)
    logp = torch.tensor([-1.0, -2.0, -9.0, 8.0])
    found = objective.weights(logp, torch.tensor(-1.0)).tolist()
    assert found == pytest.approx([1.0, math.exp(-0.5), 0.5, 3.0])


def test_the_centre_follows_the_mean_of_the_step_before():
    objective = WeightedCrossEntropy(m_rate=0.1)
    packs = [pack_of(seed) for seed in (1, 2)]
    counts = torch.from_numpy(sum(objective.counts(pack) for pack in packs))
    mean = np.mean([pack.teacher_logp[pack.target_kind >= 0] for pack in packs], dtype=np.float64)
    assert objective.next_teacher_mean(-3.0, counts, torch.zeros(12)) == pytest.approx(0.9 * -3.0 + 0.1 * mean)
    nothing = torch.from_numpy(objective.counts(toy_pack([], PACK_TOKENS, {})))
    assert objective.next_teacher_mean(-3.0, nothing, torch.zeros(12)) == -3.0


@pytest.mark.parametrize("objective", [WeightedCrossEntropy(), OnPolicy()], ids=name_of)
def test_tokens_without_a_teacher_signal_stop_the_step(objective):
    logp = np.full(PACK_TOKENS, -1.0, np.float32)
    logp[[0, 9]] = np.nan
    kinds = {1: ANALYSIS, 9: FINAL}
    with pytest.raises(DataError, match=r"1 supervised tokens of 1 documents have no teacher logp; .*data\.teacher"):
        objective.counts(toy_pack([6, 7], PACK_TOKENS, kinds, teacher_logp=logp))
    with pytest.raises(DataError, match="2 supervised tokens of 2 documents"):
        objective.counts(toy_pack([6, 7], PACK_TOKENS, kinds))


def test_tokens_without_stored_top_k_stop_the_step():
    pack = pack_of(1)
    pack.topk_ids[8] = -1
    with pytest.raises(DataError, match="1 supervised tokens of 1 documents have no stored top-k"):
        TopKDivergence().counts(pack)
    with pytest.raises(DataError, match="no stored top-k"):
        TopKDivergence().counts(toy_pack([6], PACK_TOKENS, {2: FINAL}))


def test_top_k_is_refused_at_a_temperature_that_it_was_not_stored_at():
    TopKDivergence(temperature=2.0).check_stored(2.0, topk=3)
    with pytest.raises(ConfigError, match=r"temperature is 1, .* stored at temperature 2 .* set it to 2"):
        TopKDivergence().check_stored(2.0, topk=3)


def test_a_table_without_top_k_is_refused():
    with pytest.raises(ConfigError, match="holds no top-k"):
        TopKDivergence().check_stored(1.0, topk=0)


def test_a_vocabulary_that_a_head_does_not_have_is_refused_with_all_sizes():
    objective = Divergence(vocab_size=VOCAB + 1)
    with pytest.raises(ConfigError, match=r"vocab_size is 14, but the student's head has 13 rows and the teacher's 13"):
        run(objective, [pack_of(1)], [0])


def test_heads_of_different_sizes_need_the_tokenizers_size():
    with pytest.raises(ConfigError, match=r"student's head has 13 rows and the teacher's 15; .* at most 13"):
        Divergence().check_heads(13, 15)
    Divergence(vocab_size=12).check_heads(13, 15)
    Divergence().check_heads(13, 13)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_rows_that_pad_either_head_take_no_part(beta):
    """A wider head gives the same loss, and its padding gets no gradient."""
    pack = pack_of(1).tensors(CPU)
    found = []
    for student_padding, teacher_padding in ((0, 0), (3, 0), (0, 2), (5, 4)):
        padding = torch.full((student_padding, VOCAB), 9.0, dtype=torch.float64)
        weight = nn.Parameter(torch.cat([torch.eye(VOCAB, dtype=torch.float64), padding]))
        rows = torch.cat([TEACHER.detach(), torch.full((teacher_padding, 3), 9.0, dtype=torch.float64)])
        objective = Divergence(beta=beta, vocab_size=VOCAB)
        counts = torch.from_numpy(objective.counts(pack_of(1)))
        step = StepContext(counts, teacher=lambda batch, rows=rows: TeacherOutput(teacher(batch).hidden, rows))
        output = objective.loss(LmHead(weight), states(0), pack, step)
        output.total.backward()
        assert float(weight.grad[VOCAB:].abs().sum()) == 0
        found.append((float(output.total.detach()), weight.grad[:VOCAB]))
    for total, gradient in found[1:]:
        assert total == pytest.approx(found[0][0], rel=1e-12)
        torch.testing.assert_close(gradient, found[0][1])


def test_a_student_equal_to_its_teacher_has_no_divergence_and_no_gradient():
    for beta in (0.0, 0.4, 1.0):
        objective = Divergence(beta=beta)
        weight = nn.Parameter(TEACHER.detach().clone())
        pack = pack_of(1)
        step = StepContext(torch.from_numpy(objective.counts(pack)), teacher=teacher)
        output = objective.loss(LmHead(weight), teacher(pack.tensors(CPU)).hidden, pack.tensors(CPU), step)
        output.total.backward()
        assert float(output.total.detach()) == pytest.approx(0, abs=1e-12)
        assert float(weight.grad.abs().max()) < 1e-12


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_preference_pairs_equal_their_definition(smoothing):
    packs = [pair_pack(1), pair_pack(2)]
    report, total, gradient = run(Dpo(beta=0.7, label_smoothing=smoothing), packs, [1, 2])
    weight = torch.eye(VOCAB, dtype=torch.float64, requires_grad=True)
    margins = []
    for pack, seed in zip(packs, (1, 2), strict=True):
        logp = -cross_entropy(states(seed) @ weight.T, torch.from_numpy(pack.targets), reduction="none")
        of_document = [logp[(pack.document == number) & (pack.target_kind >= 0)].sum() for number in range(4)]
        ratio = [own - float(reference) for own, reference in zip(of_document, pack.reference_logp, strict=True)]
        margins += [0.7 * (ratio[0] - ratio[3]), 0.7 * (ratio[2] - ratio[1])]
    margins = torch.stack(margins)
    losses = -(1 - smoothing) * margins.sigmoid().log() - smoothing * (-margins).sigmoid().log()
    losses.mean().backward()
    assert total == pytest.approx(float(losses.mean().detach()), rel=1e-12)
    torch.testing.assert_close(gradient, weight.grad)
    assert report["pairs"] == 4
    assert report["accuracy"] == float((margins > 0).double().mean())
    assert report["margin"] == pytest.approx(float(margins.mean().detach()))
    assert report["reward_chosen"] - report["reward_rejected"] == pytest.approx(report["margin"])


def test_preferences_need_both_sides_and_a_reference():
    with pytest.raises(DataError, match="documents without pairs"):
        Dpo().counts(pack_of(1))
    with pytest.raises(DataError, match=r"2 documents of a pack are not one of the two sides of a pair"):
        Dpo().counts(pair_pack(1, pair=np.array([0, -1, 1, 0], np.int32)))
    with pytest.raises(DataError, match="4 documents of a pack are not"):
        Dpo().counts(pair_pack(1, side=np.array([0, 1, 1, 0], np.int8), pair=np.array([0, 0, 1, 0], np.int32)))
    with pytest.raises(DataError, match="1 documents of preference pairs have no reference logp"):
        Dpo().counts(pair_pack(1, reference_logp=np.array([-1, np.nan, -1, -1], np.float32)))
    with pytest.raises(DataError, match="4 documents of preference pairs have no reference logp"):
        Dpo().counts(pair_pack(1, reference_logp=None))


def test_an_objective_is_chosen_by_its_kind():
    adapter = TypeAdapter(Objective)
    for objective in EVERY:
        assert adapter.validate_python(objective.model_dump()) == objective
    with pytest.raises(ValidationError, match="'ce', 'weighted_ce', 'opd', 'kl', 'topk_kl', 'dpo'"):
        adapter.validate_python({"kind": "mse"})
    with pytest.raises(ValidationError, match="min_weight 5 is above max_weight 4"):
        adapter.validate_python({"kind": "weighted_ce", "min_weight": 5})
