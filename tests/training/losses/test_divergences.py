import math

import pytest
import torch
from torch import nn
from torch.nn.functional import kl_div

from etl.errors import ConfigError
from tests.training.losses.toy_steps import CPU, TEACHER, VOCAB, pack_of, run, states, teacher
from training.losses.chunked_head import LmHead
from training.losses.divergences import Divergence, DivergenceRows
from training.losses.spans import StepContext, TeacherOutput

STUDENT_P, TEACHER_P = [[0.5, 0.5], [0.9, 0.1]], [[0.25, 0.75], [0.9, 0.1]]


def rows(student, of_teacher, beta, temperature=1.0):
    """The divergences [n] and their gradients [n, V] in the student's logits, from both heads' logits [n, V]."""
    num_rows, vocab_size = student.shape
    coefficients = torch.ones(num_rows, dtype=torch.float64)
    head = torch.eye(vocab_size, dtype=torch.float64)
    buffers = [student.clone(), torch.empty_like(student)]
    found = DivergenceRows(of_teacher, head, coefficients, beta, temperature, vocab_size)(buffers, slice(0, num_rows))
    return found.values, buffers[0] * found.scales[:, None]


def random_logits(seed):
    return 2 * torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        (0.0, kl([0.25, 0.75], [0.5, 0.5])),
        (1.0, kl([0.5, 0.5], [0.25, 0.75])),
        (0.5, (kl([0.25, 0.75], [0.375, 0.625]) + kl([0.5, 0.5], [0.375, 0.625])) / 2),
        (0.2, 0.2 * kl([0.25, 0.75], [0.45, 0.55]) + 0.8 * kl([0.5, 0.5], [0.45, 0.55])),
    ],
)
def test_values_of_two_tokens(beta, expected):
    """The second row's student is its teacher."""
    values, gradient = rows(*(torch.tensor(p, dtype=torch.float64).log() for p in (STUDENT_P, TEACHER_P)), beta)
    assert values.tolist() == pytest.approx([expected, 0.0], abs=1e-15)
    assert gradient[1].abs().max() < 1e-15


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_ends_are_torchs_divergences_in_value_and_gradient(beta, temperature):
    student, of_teacher = random_logits(1).requires_grad_(), random_logits(2)
    log_s, log_t = ((logits / temperature).log_softmax(1) for logits in (student, of_teacher))
    compared, target = (log_s, log_t) if beta == 0 else (log_t, log_s)
    expected = kl_div(compared, target, log_target=True, reduction="none").sum(1)
    values, gradient = rows(student.detach(), of_teacher, beta, temperature)
    torch.testing.assert_close(values, expected.detach())
    torch.testing.assert_close(gradient, *torch.autograd.grad(expected.sum(), student))


def test_near_the_ends_the_generalised_divergence_is_a_part_of_them():
    """D(beta) / beta tends to the forward divergence at 0, D(beta) / (1 - beta) to the reverse one at 1."""
    student, of_teacher = random_logits(1), random_logits(2)
    near = 1e-7
    forward, _ = rows(student, of_teacher, near)
    reverse, _ = rows(student, of_teacher, 1 - near)
    torch.testing.assert_close(forward / near, rows(student, of_teacher, 0.0)[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(reverse / near, rows(student, of_teacher, 1.0)[0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5])
def test_exchanging_both_sides_mirrors_beta(beta):
    student, of_teacher = random_logits(1), random_logits(2)
    torch.testing.assert_close(rows(student, of_teacher, beta)[0], rows(of_teacher, student, 1 - beta)[0])


def test_of_distributions_that_have_nothing_in_common_it_is_ln_2():
    values, gradient = rows(*torch.tensor([[[0.0, 2000.0]], [[2000.0, 0.0]]], dtype=torch.float64), 0.5)
    assert values.tolist() == pytest.approx([math.log(2)])
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_a_vocabulary_of_several_parts_is_one_sum(monkeypatch, beta):
    whole = rows(random_logits(1), random_logits(2), beta)
    monkeypatch.setattr("training.losses.distillation.COLUMNS", 5)
    parts = rows(random_logits(1), random_logits(2), beta)
    for ours, theirs in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_temperature_squared_multiplies_the_loss_and_its_gradient():
    plain = run(Divergence(temperature=3.0), [pack_of(1)], [states(1)])
    squared = run(Divergence(temperature=3.0, times_temperature_squared=True), [pack_of(1)], [states(1)])
    assert squared.total == pytest.approx(9 * plain.total, rel=1e-12)
    assert squared.report["loss"] == pytest.approx(9 * plain.report["loss"], rel=1e-12)
    torch.testing.assert_close(squared.gradient, 9 * plain.gradient)


def test_a_vocabulary_that_a_head_does_not_have_is_refused_with_all_sizes():
    objective = Divergence(vocab_size=VOCAB + 1)
    with pytest.raises(ConfigError, match=r"vocab_size is 14, but the student's head has 13 rows and the teacher's 13"):
        run(objective, [pack_of(1)], [states(0)])


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
        head = torch.cat([TEACHER.detach(), torch.full((teacher_padding, 3), 9.0, dtype=torch.float64)])
        objective = Divergence(beta=beta, vocab_size=VOCAB)
        counts = torch.from_numpy(objective.counts(pack_of(1)))
        step = StepContext(counts, teacher=lambda batch, head=head: TeacherOutput(teacher(batch).hidden, head))
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
