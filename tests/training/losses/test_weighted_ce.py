import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.training.losses.toy_steps import ANALYSIS, FINAL, PACK_TOKENS, TEACHER_MEAN, pack_of, run, states_giving
from tests.training.packs import toy_pack
from training.losses.weighted_ce import WeightedCrossEntropy

LN2 = math.log(2)
FLOAT32 = {"rel": 1e-6}
"""The teacher's ln p come as float32."""


def test_weights_are_clipped_at_a_quarter_and_four():
    """Probabilities relative to exp(m): 1/8, 1/4, 1/2, 1, 2, 4, 8."""
    logp = torch.tensor([power * LN2 - 1.0 for power in range(-3, 4)], dtype=torch.float64)
    found = WeightedCrossEntropy().weights(logp, torch.tensor(-1.0))
    assert found.tolist() == pytest.approx([0.25, 0.25, 0.5, 1.0, 2.0, 4.0, 4.0], rel=1e-12)
    extremes = WeightedCrossEntropy().weights(torch.tensor([-1e4, 1e4]), torch.tensor(-1.0))
    assert extremes.tolist() == [0.25, 4.0]


def test_temperature_and_other_limits_of_the_weights():
    objective = WeightedCrossEntropy(temperature=2.0, min_weight=0.5, max_weight=3.0)
    logp = torch.tensor([-1.0, -2.0, -9.0, 8.0])
    found = objective.weights(logp, torch.tensor(-1.0)).tolist()
    assert found == pytest.approx([1.0, math.exp(-0.5), 0.5, 3.0])


def test_limits_out_of_order_are_refused():
    with pytest.raises(ValidationError, match="min_weight 5 is above max_weight 4"):
        WeightedCrossEntropy(min_weight=5)


def step(**more):
    """The analyses have weights 2 and 1/2, and in the second document 4; -ln p is ln 2, 2 ln 2 and 3 ln 2."""
    logp = TEACHER_MEAN + LN2 * np.array([1, -1, 0, 9], np.float32)
    pack = toy_pack([3, 1], 4, {0: ANALYSIS, 1: ANALYSIS, 2: FINAL, 3: ANALYSIS}, teacher_logp=logp)
    return run(WeightedCrossEntropy(**more), [pack], [states_giving([0.5, 0.25, 0.5, 0.125])])


def test_the_loss_is_divided_by_tokens_rather_than_weights():
    found = step()
    assert found.total == pytest.approx((2 + 1 + 12) / 3 * LN2 + LN2, **FLOAT32)
    assert found.report["span_loss"] == pytest.approx({"analysis": 2 * LN2, "final": LN2})
    assert found.report["span_weight"] == pytest.approx({"analysis": 6.5 / 3, "final": 1.0}, **FLOAT32)


def test_means_of_documents_leave_what_is_logged_alone():
    found = step(normalise="example")
    assert found.total == pytest.approx(((2 + 1) / 2 + 12) / 2 * LN2 + LN2, **FLOAT32)
    assert found.report["span_loss"]["analysis"] == pytest.approx(2 * LN2)
    assert found.report["span_weight"]["analysis"] == pytest.approx(6.5 / 3, **FLOAT32)


def test_the_gradient_is_that_of_cross_entropy_times_the_weight():
    """Of the identity's first row: sum of weight * (p - 1) * hidden over the tokens, each over its kind's count."""
    hidden = states_giving([0.5, 0.25, 0.5, 0.125])
    factors = torch.tensor([2.0 / 3, 0.5 / 3, 1.0, 4.0 / 3], dtype=torch.float64) * (hidden[:, 0].exp() - 1)
    expected = factors @ hidden
    torch.testing.assert_close(step().gradient[0], expected, rtol=1e-6, atol=0)


def test_the_centre_follows_the_mean_of_the_step_before():
    objective = WeightedCrossEntropy(m_rate=0.1)
    packs = [pack_of(seed) for seed in (1, 2)]
    counts = torch.from_numpy(sum(objective.counts(pack) for pack in packs))
    mean = np.mean([pack.teacher_logp[pack.target_kind >= 0] for pack in packs], dtype=np.float64)
    assert objective.next_teacher_mean(-3.0, counts, torch.zeros(12)) == pytest.approx(0.9 * -3.0 + 0.1 * mean)
    nothing = torch.from_numpy(objective.counts(toy_pack([], PACK_TOKENS, {})))
    assert objective.next_teacher_mean(-3.0, nothing, torch.zeros(12)) == -3.0
