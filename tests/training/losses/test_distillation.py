"""Divergences with cross-entropy mixed in, in value and gradient, against autograd over whole logits in float64."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from etl.errors import DataError
from tests.training.losses.toy_steps import FINAL, VOCAB, pack_of, run, states
from training.losses.chunked_head import LmHead
from training.losses.distillation import Anchor
from training.losses.divergences import Divergence, DivergenceRows
from training.losses.objective import CrossEntropy, TopKDivergence
from training.losses.topk_kl import TopKRows

ROWS, HIDDEN = 7, 6


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def student():
    return drawn(1, ROWS, HIDDEN).requires_grad_(), nn.Parameter(drawn(2, VOCAB, HIDDEN))


def targets(compared):
    return torch.arange(ROWS) * 5 % compared


def anchor_of(alpha, compared=VOCAB):
    return None if alpha == 1 else Anchor(targets(compared), alpha, torch.zeros(2, ROWS, dtype=torch.float64))


def generalised(log_s, log_t, beta):
    if beta in (0, 1):
        p, q = (log_t, log_s) if beta == 0 else (log_s, log_t)
        return (p.exp() * (p - q)).sum(1)
    mixture = ((1 - beta) * log_s.exp() + beta * log_t.exp()).log()
    sides = [(log.exp() * (log - mixture)).sum(1) for log in (log_t, log_s)]
    return beta * sides[0] + (1 - beta) * sides[1]


def same(ours, theirs, models):
    """The totals of two losses of the same models, and their gradients."""
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    found, naive = (torch.autograd.grad(total, models) for total in (ours, theirs))
    for mine, other in zip(found, naive, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("compared", [VOCAB, VOCAB - 2])
@pytest.mark.parametrize(("temperature", "factor"), [(1.0, 1.0), (2.5, 6.25), (0.7, 1.0)])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_mixture_with_a_teachers_distribution(monkeypatch, beta, temperature, factor, compared, alpha):
    """The factor is only the divergence's; cross-entropy is at temperature 1 and over the student's whole head."""
    monkeypatch.setattr("training.losses.distillation.COLUMNS", 5)
    hidden, weight = student()
    teacher, head = drawn(3, ROWS, 4), drawn(4, VOCAB + 2, 4)
    counted = torch.linspace(0.1, 1.0, ROWS, dtype=torch.float64)
    anchor = anchor_of(alpha, compared)
    row_loss = DivergenceRows(teacher, head, counted, beta, temperature, compared, factor, anchor)
    total, values = LmHead(weight, logits_bytes=6 * VOCAB * 8)(hidden, row_loss)
    logits = hidden @ weight.T
    log_s, log_t = ((of[:, :compared] / temperature).log_softmax(1) for of in (logits, teacher @ head.T))
    divergence, nll = generalised(log_s, log_t, beta), cross_entropy(logits, targets(compared), reduction="none")
    expected = alpha * factor * divergence + (1 - alpha) * nll
    torch.testing.assert_close(values, expected.detach())
    same(total, (counted * expected).sum(), (hidden, weight))
    if anchor is not None:
        torch.testing.assert_close(anchor.parts, torch.stack([divergence, nll]).detach())


@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("temperature", [1.0, 2.5, 0.7])
def test_a_mixture_with_stored_top_k(monkeypatch, temperature, k, alpha):
    """The first row has one entry fewer than the others."""
    monkeypatch.setattr("training.losses.distillation.COLUMNS", 5)
    hidden, weight = student()
    logp, ids = drawn(5, ROWS, VOCAB).log_softmax(1).topk(k)
    if k > 1:
        ids[0, -1], logp[0, -1] = -1, torch.nan
    counted = torch.linspace(0.1, 1.0, ROWS, dtype=torch.float64)
    anchor = anchor_of(alpha)
    row_loss = TopKRows(ids, logp, counted, temperature, anchor)
    total, _ = LmHead(weight, logits_bytes=3 * VOCAB * 8)(hidden, row_loss)
    logits = hidden @ weight.T
    log_s = (logits / temperature).log_softmax(1)
    divergence = []
    for row in range(ROWS):
        stored = ids[row] >= 0
        best, teacher = ids[row][stored], logp[row][stored].exp()
        tails = 1 - teacher.sum(), 1 - log_s[row][best].exp().sum()
        inside = (teacher * (logp[row][stored] - log_s[row][best])).sum()
        divergence.append(inside + tails[0] * (tails[0].log() - tails[1].log()))
    nll = cross_entropy(logits, targets(VOCAB), reduction="none")
    expected = alpha * torch.stack(divergence) + (1 - alpha) * nll
    same(total, (counted * expected).sum(), (hidden, weight))
    torch.testing.assert_close(anchor.parts, torch.stack([torch.stack(divergence), nll]).detach())


@pytest.mark.parametrize("kind", [Divergence, TopKDivergence])
def test_what_is_mixed_is_logged_beside_the_mixture(kind):
    packs, hidden = [pack_of(seed) for seed in (1, 2)], [states(3), states(4)]
    mixed, alone, plain = (run(one, packs, hidden) for one in (kind(alpha=0.25), kind(), CrossEntropy()))
    assert mixed.total == pytest.approx(0.25 * alone.total + 0.75 * plain.total, rel=1e-12)
    for name, of in (("kl", alone), ("ce", plain)):
        assert mixed.report[name] == pytest.approx(of.report["loss"], rel=1e-12)
        assert mixed.report[f"span_{name}"] == pytest.approx(of.report["span_loss"], rel=1e-12)
    assert mixed.report["loss"] == pytest.approx(0.25 * mixed.report["kl"] + 0.75 * mixed.report["ce"])
    assert "ce" not in alone.report


def test_targets_that_a_divergence_does_not_compare_stop_the_step():
    pack = pack_of(1, kind_at={1: FINAL, 4: FINAL, 9: FINAL})
    pack.targets[[1, 4, 9]] = 3, 12, 11
    with pytest.raises(DataError, match=r"2 supervised tokens of 2 documents are ids up to 12, .* first 11; set"):
        Divergence(vocab_size=11).counts(pack)
    assert Divergence(vocab_size=13).counts(pack).tolist() == Divergence().counts(pack).tolist()
