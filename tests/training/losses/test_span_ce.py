import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.training.losses.toy_steps import ANALYSIS, CPU, FINAL, identity_head, pack_of, run, states, states_giving
from tests.training.packs import toy_pack
from training.losses.span_ce import CrossEntropy
from training.losses.spans import StepContext

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
