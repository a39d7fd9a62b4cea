import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from etl import conf
from tests.training.losses.toy_steps import (
    ANALYSIS,
    COMMENTARY,
    CPU,
    FINAL,
    identity_head,
    pack_of,
    run,
    states,
    states_giving,
)
from tests.training.packs import toy_pack
from training.config import TrainConfig
from training.losses.span_ce import CrossEntropy
from training.losses.spans import StepContext
from training.models.config import ModelConfig
from training.models.factory import build_student

LN2 = math.log(2)


def test_a_short_answer_counts_as_much_as_a_long_analysis():
    """-ln p is ln 2, 2 ln 2 and 3 ln 2 in the analysis, 3 ln 2 in the answer; the fourth row is unsupervised."""
    pack = toy_pack([5], 5, {0: ANALYSIS, 1: ANALYSIS, 2: ANALYSIS, 4: FINAL})
    found = run(CrossEntropy(), [pack], [states_giving([0.5, 0.25, 0.125, 0.9, 0.125])])
    assert found.total == pytest.approx(2 * LN2 + 3 * LN2)
    assert found.report["loss"] == pytest.approx((6 + 3) / 4 * LN2)
    assert found.report["span_loss"] == pytest.approx({"analysis": 2 * LN2, "final": 3 * LN2})
    assert found.report["span_tokens"] == {"analysis": 3, "commentary": 0, "final": 1, "text": 0}


def test_weights_of_kinds_and_means_of_documents():
    """The analyses of both documents have the means 1.5 ln 2 and 3 ln 2."""
    pack = toy_pack([3, 1], 4, {0: ANALYSIS, 1: ANALYSIS, 2: FINAL, 3: ANALYSIS})
    objective = CrossEntropy(normalise="example", span_weights={"analysis": 2.0, "final": 0.5})
    found = run(objective, [pack], [states_giving([0.5, 0.25, 0.0625, 0.125])])
    assert found.total == pytest.approx(2.0 * (1.5 + 3) / 2 * LN2 + 0.5 * 4 * LN2)
    assert found.report["span_loss"] == pytest.approx({"analysis": (1 + 2 + 3) / 3 * LN2, "final": 4 * LN2})
    assert found.report["loss"] == pytest.approx((1 + 2 + 3 + 4) / 4 * LN2)


def test_of_one_kind_it_is_torchs_mean_in_value_and_gradient():
    pack = pack_of(1, kind_at={1: FINAL, 4: FINAL, 9: FINAL})
    batch, objective = pack.tensors(CPU), CrossEntropy()
    ours, naive = states(1).requires_grad_(), states(1).requires_grad_()
    step = StepContext(torch.from_numpy(objective.counts(pack)))
    total = objective.loss(identity_head(ours.shape[1]), ours, batch, step).total
    expected = cross_entropy(naive, batch.targets.where(batch.target_kind >= 0, -100))
    total.backward()
    expected.backward()
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    torch.testing.assert_close(ours.grad, naive.grad)


@pytest.mark.parametrize("normalise", ["kind", "all", "example"])
@pytest.mark.parametrize("kinds", [(FINAL,), (ANALYSIS, FINAL), (ANALYSIS, COMMENTARY, FINAL)])
def test_a_fresh_student_has_a_loss_of_ln_v(kinds, normalise):
    """Of the demo's kind and of 997 ids, whatever the kinds of span and how they are normalised."""
    params = {**conf.load(TrainConfig, "demo", "training", ["data.corpus=none"]).model.params, "vocab": 997}
    student = build_student(ModelConfig(factory="training.models.gpt_oss:build", params=params), seed=3)
    ids = torch.arange(64).numpy() * 13 % 997
    kind_at = {row: kinds[row * len(kinds) // 62] for row in range(62)}
    pack = toy_pack([40, 24], 64, kind_at, input_ids=ids, targets=np.roll(ids, -1))
    objective, batch = CrossEntropy(normalise=normalise), pack.tensors(CPU)
    counts = torch.from_numpy(objective.counts(pack))
    with torch.no_grad():
        hidden, _ = student(batch.input_ids, batch.position_ids, batch.cu_seqlens)
        found = objective.loss(student.lm_head, hidden, batch, StepContext(counts))
    report = objective.report(counts, found.sums)
    assert report["loss"] == pytest.approx(math.log(997), abs=2e-2)
    assert float(found.total) == pytest.approx(math.log(997) * (1 if normalise == "all" else len(kinds)), abs=6e-2)
