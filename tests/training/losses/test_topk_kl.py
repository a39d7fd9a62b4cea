import math

import pytest
import torch
from torch.nn.functional import kl_div

from etl.errors import ConfigError, DataError
from tests.training.losses.toy_steps import FINAL, VOCAB, pack_of, run
from tests.training.packs import toy_pack
from training.losses.topk_kl import TopKDivergence, TopKRows

NUM_ROWS = 6


def rows(student, ids, logp, temperature=1.0):
    """The divergences [n] and their gradients [n, V] in the student's logits [n, V]."""
    buffer = student.clone()
    coefficients = torch.ones(len(student), dtype=torch.float64)
    found = TopKRows(ids, logp, coefficients, temperature)([buffer], slice(0, len(student)))
    return found.values, buffer * found.scales[:, None]


def random_logits(seed):
    return 2 * torch.randn(NUM_ROWS, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def best(teacher, k):
    logp, ids = teacher.topk(k)
    return ids, logp


def full_divergence(student, teacher):
    return kl_div(student.log_softmax(1), teacher, log_target=True, reduction="none").sum(1)


def test_one_stored_token_and_its_tail_by_hand():
    """1/2 and 1/2 of the teacher against 1/4 and 3/4 of the student, however it spreads the rest."""
    student = torch.tensor([[0.5, 0.25, 0.25], [0.0001, 0.25, 0.7499]], dtype=torch.float64).log()
    values, _ = rows(student, torch.tensor([[1], [1]]), torch.tensor([[0.5], [0.5]], dtype=torch.float64).log())
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert values.tolist() == pytest.approx([expected, expected])


def test_of_the_whole_vocabulary_it_is_the_full_divergence():
    student, teacher = random_logits(1).requires_grad_(), random_logits(2).log_softmax(1)
    expected = full_divergence(student, teacher)
    values, gradient = rows(student.detach(), *best(teacher, VOCAB))
    torch.testing.assert_close(values, expected.detach(), rtol=0, atol=1e-12)
    (naive,) = torch.autograd.grad(expected.sum(), student)
    torch.testing.assert_close(gradient, naive, rtol=0, atol=1e-12)


def test_temperature_is_that_of_both_distributions():
    student, teacher = random_logits(1).requires_grad_(), (random_logits(2) / 2.5).log_softmax(1)
    expected = full_divergence(student / 2.5, teacher)
    values, gradient = rows(student.detach(), *best(teacher, VOCAB), temperature=2.5)
    torch.testing.assert_close(values, expected.detach(), rtol=0, atol=1e-12)
    (naive,) = torch.autograd.grad(expected.sum(), student)
    torch.testing.assert_close(gradient, naive, rtol=0, atol=1e-12)


def test_more_stored_tokens_never_lessen_it():
    """A bucket hides differences inside it, so each k is a lower bound of the next."""
    student, teacher = random_logits(1), random_logits(2).log_softmax(1)
    by_k = torch.stack([rows(student, *best(teacher, k))[0] for k in range(1, VOCAB + 1)])
    assert by_k.min() >= 0
    assert (by_k.diff(dim=0) >= -1e-12).all()
    assert (by_k[0] < by_k[-1] / 2).any()


def test_a_student_that_meets_the_teacher_on_k_tokens_has_no_divergence():
    teacher = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64)
    student = torch.tensor([[0.5, 0.25, 0.01, 0.24]], dtype=torch.float64)
    values, gradient = rows(student.log(), *best(teacher.log(), 2))
    assert values.tolist() == pytest.approx([0.0], abs=1e-15)
    assert gradient.abs().max() < 1e-15


def test_absent_entries_count_nothing():
    student, teacher = random_logits(1), random_logits(2).log_softmax(1)
    ids, logp = best(teacher, 4)
    absent = torch.full((NUM_ROWS, 2), -1)
    padded = torch.cat([ids, absent], 1), torch.cat([logp, absent * torch.nan], 1)
    for ours, theirs in zip(rows(student, *padded), rows(student, ids, logp), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15)


def test_stored_probabilities_above_one_have_no_tail():
    """Rounding may bring their sum above 1, and a tail below 0 has no logarithm."""
    teacher = torch.tensor([0.75, 0.26], dtype=torch.float64)
    logits = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
    values, gradient = rows(logits[None], torch.tensor([[0, 1]]), teacher.log()[None])
    log_s = logits.log_softmax(0)
    assert values.tolist() == pytest.approx([float((teacher * (teacher.log() - log_s[:2])).sum())])
    torch.testing.assert_close(gradient[0], 1.01 * log_s.exp() - torch.tensor([0.75, 0.26, 0.0], dtype=torch.float64))


def test_the_loss_reads_the_entries_of_supervised_rows():
    """Row 1 of two tokens of room and text: 3/4 and 1/4 of the teacher against two halves."""
    pack = toy_pack(
        [2],
        3,
        {1: FINAL},
        topk_ids=torch.tensor([[0], [2], [-1]], dtype=torch.int32).numpy(),
        topk_logp=torch.tensor([[0.9], [0.75], [torch.nan]]).log().numpy(),
    )
    student = torch.tensor([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]], dtype=torch.float64)
    found = run(TopKDivergence(span_weights={"final": 2.0}), [pack], [student.log()])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert found.report["span_loss"] == pytest.approx({"final": expected}, rel=1e-6)
    assert found.total == pytest.approx(2 * expected, rel=1e-6)


def test_tokens_without_stored_top_k_stop_the_step():
    pack = pack_of(1)
    pack.topk_ids[8] = -1
    with pytest.raises(DataError, match="1 supervised tokens of 1 documents have no stored top-k"):
        TopKDivergence().counts(pack)
    with pytest.raises(DataError, match="no stored top-k"):
        TopKDivergence().counts(toy_pack([6], 16, {2: FINAL}))


def test_top_k_is_refused_at_a_temperature_that_it_was_not_stored_at():
    TopKDivergence(temperature=2.0).check_stored(2.0, topk=3)
    with pytest.raises(ConfigError, match=r"temperature is 1, .* stored at temperature 2 .* set it to 2"):
        TopKDivergence().check_stored(2.0, topk=3)


def test_a_table_without_top_k_is_refused():
    with pytest.raises(ConfigError, match="has no top-k"):
        TopKDivergence().check_stored(1.0, topk=0)
