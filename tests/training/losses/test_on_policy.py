import math

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div

from tests.training.losses.toy_steps import ANALYSIS, FINAL, run, states_giving
from tests.training.packs import toy_pack
from training.losses.on_policy import AdvantageNll, OnPolicy, advantages

LN2 = math.log(2)
FLOAT32 = {"rel": 1e-6}
"""The teacher's ln p come as float32."""


def test_advantages_are_the_teachers_logp_less_the_students_within_the_clip():
    teacher_logp, nll = torch.tensor([-1.0, -3.0, -9.0, 0.0]), torch.tensor([3.0, 1.0, 1.0, 9.0], dtype=torch.float64)
    found = advantages(teacher_logp, nll, math.inf)
    assert (found.dtype, found.tolist()) == (torch.float64, [2, -2, -8, 9])
    assert advantages(teacher_logp, nll, 2.5).tolist() == [2, -2, -2.5, 2.5]


def test_the_expected_gradient_is_that_of_the_reverse_divergence():
    """Every token of the vocabulary as a target, counted by the student's probability of it."""
    logits = torch.tensor([0.3, -1.0, 2.0, 0.5, -0.2], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([1.0, 0.1, 0.4, -2.0, 0.7], dtype=torch.float64).log_softmax(0)
    student = logits.log_softmax(0)
    divergence = kl_div(teacher, student, log_target=True, reduction="sum")
    (expected,) = torch.autograd.grad(divergence, logits)
    row_loss = AdvantageNll(torch.arange(5), student.detach().exp(), teacher, math.inf)
    buffer = logits.detach().repeat(5, 1)
    found = row_loss([buffer], slice(0, 5))
    torch.testing.assert_close((buffer * found.scales[:, None]).sum(0), expected)
    torch.testing.assert_close(found.values, -student.detach())


def test_the_advantage_of_a_row_is_not_differentiated_and_is_clipped():
    """p is 1/4, so the gradient is coefficient * a * (p - target); a is ln 2, and -5 clipped to -1."""
    teacher_logp = torch.tensor([9.0, -LN2, -5.0 - 2 * LN2], dtype=torch.float64)
    coefficients = torch.tensor([9.0, 3.0, 0.5], dtype=torch.float64)
    row_loss = AdvantageNll(torch.tensor([1, 0, 0]), coefficients, teacher_logp, clip=1.0)
    buffer = states_giving([0.25, 0.25])
    found = row_loss([buffer], slice(1, 3))
    assert found.weights.tolist() == pytest.approx([3 * LN2, -0.5])
    expected = torch.tensor([[-0.75, 0.75], [-0.75, 0.75]], dtype=torch.float64) * found.weights[:, None]
    torch.testing.assert_close(buffer * found.scales[:, None], expected)


def step(probabilities, teacher_logp, **more):
    pack = toy_pack([3], 3, {0: ANALYSIS, 1: ANALYSIS, 2: FINAL}, teacher_logp=np.array(teacher_logp, np.float32))
    return run(OnPolicy(**more), [pack], [states_giving(probabilities)])


def test_the_loss_and_the_estimates_of_the_divergence():
    """a is -ln 2, ln 4 and 0: k1 = -a, k3 = exp(a) - 1 - a, and a token's loss is a * -ln p."""
    found = step([0.5, 0.125, 0.5], [-2 * LN2, -LN2, -LN2])
    assert found.report["span_reverse_kl_k1"] == pytest.approx({"analysis": -LN2 / 2, "final": 0.0}, abs=1e-6)
    k3 = ((0.5 - 1 + LN2) + (4 - 1 - 2 * LN2)) / 2
    assert found.report["span_reverse_kl_k3"] == pytest.approx({"analysis": k3, "final": 0.0}, abs=1e-6)
    assert found.total == pytest.approx((-LN2 * LN2 + 2 * LN2 * 3 * LN2) / 2, **FLOAT32)
    assert found.report["span_loss"] == pytest.approx({"analysis": (1 + 3) / 2 * LN2, "final": LN2})


def test_the_clip_bounds_the_loss_and_leaves_the_estimates_alone():
    free, clipped = (step([0.5, 0.125, 0.5], [-9.0, -LN2, -LN2], advantage_clip=clip) for clip in (math.inf, 1.0))
    assert clipped.total == pytest.approx((-1.0 * LN2 + 1.0 * 3 * LN2) / 2, **FLOAT32)
    for key in ("span_reverse_kl_k1", "span_reverse_kl_k3"):
        assert clipped.report[key] == free.report[key]


def test_a_token_that_the_student_finds_impossible_leaves_the_estimates_finite():
    found = step([1e-300, 0.5, 0.5], [0.0, -LN2, -LN2])
    assert math.isfinite(found.report["span_reverse_kl_k3"]["analysis"])
    assert found.report["span_reverse_kl_k1"]["analysis"] == pytest.approx(-88 / 2, **FLOAT32)
