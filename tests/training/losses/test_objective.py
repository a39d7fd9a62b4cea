import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from tests.training.losses.toy_steps import (
    CPU,
    PACK_TOKENS,
    TEACHER_MEAN,
    TEXT,
    VOCAB,
    identity_head,
    pack_of,
    pair_pack,
    run,
    states,
    teacher,
)
from tests.training.packs import toy_pack
from training.losses.objective import (
    AnyObjective,
    CrossEntropy,
    Divergence,
    Dpo,
    OnPolicy,
    StepContext,
    TopKDivergence,
    WeightedCrossEntropy,
)
from training.losses.spans import SpanWeights

EVERY = [
    CrossEntropy(),
    CrossEntropy(normalise="example", span_weights={"analysis": 0.5, "final": 3.0}),
    WeightedCrossEntropy(),
    WeightedCrossEntropy(normalise="example"),
    OnPolicy(advantage_clip=1.0),
    CrossEntropy(normalise="all", span_weights={"analysis": 0.5, "final": 3.0}),
    Divergence(beta=0.3, temperature=2.0, times_temperature_squared=True),
    Divergence(beta=1.0, temperature=2.0, alpha=0.25),
    TopKDivergence(temperature=2.0),
    TopKDivergence(alpha=0.5, normalise="all"),
    Dpo(label_smoothing=0.1),
]


def name_of(objective):
    return f"{objective.kind}-{getattr(objective, 'normalise', 'pair')}-{getattr(objective, 'alpha', 1)}"


@pytest.mark.parametrize("objective", EVERY, ids=name_of)
def test_what_is_logged_is_by_token_and_adds_up(objective):
    """Over all tokens it is the mean of the kinds by their tokens, whatever the weights and the normalisation."""
    packs = [pair_pack(seed) if objective.kind == "dpo" else pack_of(seed) for seed in (1, 2)]
    if objective.kind != "dpo":
        packs.append(pack_of(3, [16], {5: TEXT}))
    report, total, _ = run(objective, packs, [states(seed) for seed in range(len(packs))])
    expected = {"analysis": 4, "final": 8, "text": 1} if objective.kind != "dpo" else {"analysis": 6, "final": 10}
    assert {kind: count for kind, count in report["span_tokens"].items() if count} == expected
    if objective.kind == "dpo":
        assert report["loss"] == pytest.approx(total, rel=1e-12)
        return
    by_kind = sum(count * report["span_loss"][kind] for kind, count in expected.items()) / 13
    assert report["loss"] == pytest.approx(by_kind, rel=1e-12)
    plain = objective.model_copy(update={"span_weights": SpanWeights(), "normalise": "all"})
    again, mean, _ = run(plain, packs, [states(seed) for seed in range(len(packs))])
    assert again == report
    if objective.kind in ("ce", "kl", "topk_kl"):
        assert mean == pytest.approx(report["loss"], rel=1e-12)


@pytest.mark.parametrize("objective", EVERY, ids=name_of)
def test_a_pack_without_documents_changes_nothing(objective):
    pack = pair_pack(1) if objective.kind == "dpo" else pack_of(1)
    filler = toy_pack([], PACK_TOKENS, {})
    report, total, gradient = run(objective, [pack], [states(0)])
    with_filler = run(objective, [pack, filler], [states(0), states(1)])
    assert with_filler[:2] == (report, total)
    torch.testing.assert_close(with_filler[2], gradient, rtol=0, atol=0)
    report, total, gradient = run(objective, [filler], [states(1)])
    assert (total, report["loss"]) == (0.0, 0.0)
    assert float(gradient.abs().max()) == 0


@pytest.mark.parametrize("objective", EVERY, ids=name_of)
def test_no_gradient_comes_from_unsupervised_rows(objective):
    pack = pair_pack(1) if objective.kind == "dpo" else pack_of(1)
    hidden = states(0).requires_grad_()
    counts = torch.from_numpy(objective.counts(pack))
    step = StepContext(counts, torch.tensor(TEACHER_MEAN, dtype=torch.float64), teacher)
    objective.loss(identity_head(VOCAB), hidden, pack.tensors(CPU), step).total.backward()
    touched = hidden.grad.abs().sum(1) > 0
    np.testing.assert_array_equal(touched.numpy(), pack.target_kind >= 0)


def test_an_objective_is_chosen_by_its_kind():
    adapter = TypeAdapter(AnyObjective)
    for objective in EVERY:
        assert adapter.validate_python(objective.model_dump()) == objective
    with pytest.raises(ValidationError, match="'ce', 'weighted_ce', 'opd', 'kl', 'topk_kl', 'dpo'"):
        adapter.validate_python({"kind": "mse"})
