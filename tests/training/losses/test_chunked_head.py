import pytest
import torch
from torch.nn.functional import cross_entropy

from training.losses.chunked_head import LmHead, weighted_nll


def problem(num_rows, dtype=torch.float64):
    generator = torch.Generator().manual_seed(num_rows)
    hidden = torch.randn(num_rows, 8, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(31, 8, generator=generator, dtype=dtype, requires_grad=True)
    targets = torch.randint(31, (num_rows,), generator=generator)
    coefficients = torch.rand(num_rows, generator=generator, dtype=torch.float64)
    return hidden, weight, targets, coefficients


@pytest.mark.parametrize("num_rows", [1, 5, 12])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
def test_equals_the_naive_head_in_values_and_gradients(num_rows, chunk_tokens):
    hidden, weight, targets, coefficients = problem(num_rows)
    naive = cross_entropy(hidden @ weight.T, targets, reduction="none")
    expected = torch.autograd.grad(3 * (naive * coefficients).sum(), [hidden, weight])
    total, nll = weighted_nll(hidden, weight, targets, coefficients, chunk_tokens)
    found = torch.autograd.grad(3 * total, [hidden, weight])
    torch.testing.assert_close(nll, naive.detach())
    torch.testing.assert_close(total, (naive * coefficients).sum())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_are_those_of_finite_differences():
    hidden, weight, targets, coefficients = problem(5)
    assert torch.autograd.gradcheck(lambda h, w: weighted_nll(h, w, targets, coefficients, 2)[0], (hidden, weight))


def test_no_row_gives_zero_and_zero_gradients():
    hidden, weight, targets, coefficients = problem(0)
    total, nll = weighted_nll(hidden, weight, targets, coefficients, 4)
    assert (float(total.detach()), len(nll)) == (0.0, 0)
    total.backward()
    assert weight.grad.abs().max() == 0


def test_bf16_parameters_lose_nothing_but_their_own_rounding():
    hidden, weight, targets, coefficients = problem(12, torch.bfloat16)
    total, nll = weighted_nll(hidden, weight, targets, coefficients, 5)
    exact = cross_entropy(hidden.double() @ weight.double().T, targets, reduction="none")
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll.double(), exact.detach(), rtol=1e-5, atol=1e-5)
    total.backward()
    assert weight.grad.dtype == torch.bfloat16


def test_logits_far_from_zero_do_not_overflow():
    hidden, weight, targets, coefficients = problem(4, torch.float32)
    total, _ = weighted_nll(hidden * 1e4, weight, targets, coefficients, 4)
    assert torch.isfinite(total)


def test_without_gradients_none_are_made():
    head = LmHead(torch.nn.Parameter(torch.randn(31, 8)))
    hidden, _, targets, coefficients = problem(5, torch.float32)
    with torch.no_grad():
        total, _ = head(hidden, targets, coefficients, 2)
    assert not total.requires_grad
