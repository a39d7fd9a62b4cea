import json

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.benchmarks.bench_head import Case, measure
from tests.training.forked import run_ranks
from training.losses.chunked_head import LmHead
from training.losses.divergences import DivergenceRows
from training.losses.token_nll import TokenNll
from training.losses.topk_kl import TopKRows

VOCAB, HIDDEN = 31, 8
GIB = 2**30


def chunked_head(weight, num_rows, num_buffers=1):
    """A head that makes the logits of this many rows at a time."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return LmHead(weight, logits_bytes=num_rows * num_buffers * len(weight) * wide.itemsize)


def problem(num_rows, dtype=torch.float64):
    generator = torch.Generator().manual_seed(num_rows)
    hidden = torch.randn(num_rows, HIDDEN, generator=generator, dtype=dtype, requires_grad=True)
    weight = nn.Parameter(torch.randn(VOCAB, HIDDEN, generator=generator, dtype=dtype))
    targets = torch.randint(VOCAB, (num_rows,), generator=generator)
    coefficients = torch.rand(num_rows, generator=generator, dtype=torch.float64)
    return hidden, weight, targets, coefficients


def same_gradients(total, naive, inputs, **tolerance):
    expected = torch.autograd.grad(3 * naive, inputs)
    for ours, theirs in zip(torch.autograd.grad(3 * total, inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("num_rows", [1, 5, 12])
@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_equals_the_naive_head_in_values_and_gradients(num_rows, chunk_rows):
    hidden, weight, targets, coefficients = problem(num_rows)
    naive = cross_entropy(hidden @ weight.T, targets, reduction="none")
    total, nll = chunked_head(weight, chunk_rows)(hidden, TokenNll(targets, coefficients))
    torch.testing.assert_close(nll, naive.detach())
    torch.testing.assert_close(total, (naive * coefficients).sum())
    assert not nll.requires_grad
    same_gradients(total, (naive * coefficients).sum(), [hidden, weight])


@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_values_without_coefficients_are_differentiable_in_any_function(chunk_rows):
    hidden, weight, targets, _ = problem(12)
    total, nll = chunked_head(weight, chunk_rows)(hidden, TokenNll(targets, None))
    naive = cross_entropy(hidden @ weight.T, targets, reduction="none")
    torch.testing.assert_close(total, naive.sum())
    same_gradients((nll[:6].sum() * nll[6:].sum()).sqrt(), (naive[:6].sum() * naive[6:].sum()).sqrt(), [hidden, weight])


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradients_of_divergences_equal_autograd_through_their_definition(beta, temperature):
    hidden, weight, _, coefficients = problem(11)
    generator = torch.Generator().manual_seed(0)
    teacher_hidden = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    teacher_weight = torch.randn(VOCAB + 4, 5, generator=generator, dtype=torch.float64)
    used = VOCAB - 2
    log_s = (hidden @ weight[:used].T / temperature).log_softmax(-1)
    log_t = (teacher_hidden @ teacher_weight[:used].T / temperature).log_softmax(-1)
    mixture = ((1 - beta) * log_s.exp() + beta * log_t.exp()).log()
    to_teacher = (log_t.exp() * (log_t - (mixture if beta else log_s))).sum(-1)
    to_student = (log_s.exp() * (log_s - (mixture if beta < 1 else log_t))).sum(-1)
    naive = to_teacher if beta == 0 else to_student if beta == 1 else beta * to_teacher + (1 - beta) * to_student
    row_loss = DivergenceRows(teacher_hidden, teacher_weight, coefficients, beta, temperature, used)
    total, values = chunked_head(weight, 3, num_buffers=2)(hidden, row_loss)
    torch.testing.assert_close(values, naive.detach())
    same_gradients(total, (naive * coefficients).sum(), [hidden, weight])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient_of_top_k_equals_autograd_through_its_definition(temperature):
    hidden, weight, _, coefficients = problem(9)
    teacher = torch.randn(9, VOCAB, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logp, ids = (teacher / temperature).log_softmax(-1).topk(4)
    ids[2, 3], logp[2, 3] = -1, torch.nan
    ids[5, 1:], logp[5, 1:] = -1, torch.nan
    student = (hidden @ weight.T / temperature).softmax(-1)
    naive = []
    for row in range(9):
        own = ids[row] >= 0
        inside, stored = student[row, ids[row][own]], logp[row][own]
        tail = 1 - stored.exp().sum()
        outside = tail * (tail.log() - (1 - inside.sum()).log())
        naive.append((stored.exp() * (stored - inside.log())).sum() + outside)
    total, values = chunked_head(weight, 4)(hidden, TopKRows(ids, logp, coefficients, temperature))
    torch.testing.assert_close(values, torch.stack(naive).detach())
    same_gradients(total, (torch.stack(naive) * coefficients).sum(), [hidden, weight])


def test_a_tail_that_the_student_has_given_up_stays_finite():
    weight = nn.Parameter(torch.eye(4))
    hidden = torch.tensor([[300.0, 0, 0, 0]], requires_grad=True)
    row_loss = TopKRows(torch.tensor([[0]]), torch.tensor([[-0.1]]), torch.ones(1), 1.0)
    total, values = LmHead(weight)(hidden, row_loss)
    total.backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(hidden.grad).all()
    assert float(values) > 1


def test_a_head_tied_to_the_embedding_gets_both_gradients():
    _, weight, targets, coefficients = problem(6)
    ids = torch.tensor([3, 1, 4, 1, 5, 9])
    naive = cross_entropy(weight[ids].tanh() @ weight.T, targets, reduction="none")
    total, _ = chunked_head(weight, 4)(weight[ids].tanh(), TokenNll(targets, coefficients))
    same_gradients(total, (naive * coefficients).sum(), [weight])


def test_a_frozen_weight_costs_no_gradient_of_its_own():
    hidden, weight, targets, coefficients = problem(6)
    weight.requires_grad_(False)
    total, _ = chunked_head(weight, 4)(hidden, TokenNll(targets, coefficients))
    naive = cross_entropy(hidden @ weight.T, targets, reduction="none")
    same_gradients(total, (naive * coefficients).sum(), [hidden])


@pytest.mark.parametrize("coefficients", [torch.zeros(0), None])
def test_no_row_gives_zero_and_zero_gradients(coefficients):
    hidden, weight, targets, _ = problem(0)
    total, values = LmHead(weight)(hidden, TokenNll(targets, coefficients))
    assert (float(total.detach()), len(values)) == (0.0, 0)
    total.backward()
    assert weight.grad.abs().max() == 0


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_parameters_lose_nothing_but_their_own_rounding(monkeypatch, device):
    monkeypatch.setattr("training.losses.chunked_head.TILE_BYTES", 8 * HIDDEN * 4)
    hidden, weight, targets, coefficients = (part.detach().to(device) for part in problem(12, torch.bfloat16))
    hidden, weight = hidden.requires_grad_(), nn.Parameter(weight)
    total, nll = chunked_head(weight, 5)(hidden, TokenNll(targets, coefficients))
    exact = [hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()]
    naive = cross_entropy(exact[0] @ exact[1].T, targets, reduction="none")
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll.double(), naive.detach(), rtol=1e-5, atol=1e-5)
    total.backward()
    (naive * coefficients).sum().backward()
    assert (hidden.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.bfloat16)
    for ours, theirs in ((hidden.grad, exact[0].grad), (weight.grad, exact[1].grad)):
        # CUDA multiplies narrow operands, so there the gradient of the logits is rounded, too.
        torch.testing.assert_close(ours.double(), theirs, rtol=2**-8, atol=1e-5 if device == "cpu" else 0.02)


def test_logits_far_from_zero_do_not_overflow():
    hidden, weight, targets, coefficients = problem(4, torch.float32)
    total, _ = LmHead(weight)(hidden * 1e4, TokenNll(targets, coefficients))
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(weight.grad).all()


def test_without_gradients_none_are_made():
    hidden, weight, targets, coefficients = problem(5, torch.float32)
    with torch.no_grad():
        total, _ = chunked_head(weight, 2)(hidden, TokenNll(targets, coefficients))
    assert not total.requires_grad


def test_going_back_twice_is_refused_rather_than_wrong():
    hidden, weight, targets, coefficients = problem(5)
    total, _ = LmHead(weight)(hidden, TokenNll(targets, coefficients))
    total.backward(retain_graph=True)
    with pytest.raises(AttributeError, match="gradients"):
        total.backward()


def test_peak_memory_does_not_grow_with_the_tokens():
    peak = [measure(Case("ce", False, tokens, hidden=8, vocab=100_000)).peak_bytes for tokens in (1400, 2800)]
    assert max(peak) < 0.9 * GIB
    assert peak[1] - peak[0] < 0.02 * GIB


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("loss", ["ce", "preference", "kl", "jsd"])
def test_peak_memory_at_the_size_of_gpt_oss_vocabulary(loss):
    found = measure(Case(loss, False, tokens=8192, hidden=256))
    assert found.peak_bytes < 0.9 * GIB + 4 * 201_088 * 256
    assert found.peak_bytes < 1.2 * GIB


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_peak_memory_with_wide_states(loss):
    found = measure(Case(loss, False, tokens=1024, hidden=1024))
    assert found.peak_bytes < 0.9 * GIB + 4 * 201_088 * 1024


def test_two_ranks_at_zero_0_and_3_tied_and_untied_equal_the_naive_head(tmp_path):
    from tests.training.losses import zero_head  # loads DeepSpeed

    for code, said in run_ranks(zero_head.main, world_size=2, folder=tmp_path):
        assert code == 0, said
        found = json.loads(said.splitlines()[-1])
        assert len(found) == 8
        assert max(found.values()) < 2e-6, found
