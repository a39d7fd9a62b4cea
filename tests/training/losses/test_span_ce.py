import json

import pytest
import torch

from etl.schema import SPAN_KINDS
from training.losses import span_ce
from training.losses.chunked_head import weighted_nll

ANALYSIS, FINAL = SPAN_KINDS.index("analysis"), SPAN_KINDS.index("final")


@pytest.fixture(scope="module")
def reference(shared_data):
    return json.loads((shared_data.parent / "research" / "loss_reference.json").read_text())


def supervised_rows(inputs):
    """(row, target, kind) of each supervised token; a span covers tokens, predicted one row earlier."""
    return [
        (position - 1, inputs["token_ids"][position], kind)
        for kind, spans in ((ANALYSIS, inputs["analysis_spans"]), (FINAL, inputs["final_spans"]))
        for start, end in spans
        for position in range(start, end)
    ]


@pytest.mark.parametrize(
    ("weights", "key"),
    [(span_ce.SpanWeights(), "loss_w1_1"), (span_ce.SpanWeights(analysis=0.8, final=1.2), "loss_w0.8_1.2")],
)
def test_equals_the_reference_to_the_last_digits(reference, weights, key):
    rows, targets, kinds = (torch.tensor(column) for column in zip(*supervised_rows(reference["inputs"]), strict=True))
    logits = torch.tensor(reference["inputs"]["student_logits"], dtype=torch.float64, requires_grad=True)
    counts = torch.bincount(kinds, minlength=len(SPAN_KINDS)).double()
    coefficients = span_ce.coefficients(weights.tensor(), counts)
    # A head that is the identity makes the hidden states the logits.
    head = torch.eye(16, dtype=torch.float64)
    total, nll = weighted_nll(logits[rows], head, targets, coefficients[kinds], 4)
    sums = span_ce.sums(nll, kinds)
    expected = reference["expected"]["span_ce"]
    assert float(total.detach()) == pytest.approx(expected[key], rel=1e-14)
    assert span_ce.span_ce(weights.tensor(), sums, counts) == pytest.approx(expected[key], rel=1e-14)
    means = span_ce.means(sums, counts)
    assert means == pytest.approx({"analysis": expected["ce_reasoning"], "final": expected["ce_final"]}, rel=1e-14)


def test_gradient_equals_the_reference(reference):
    rows, targets, kinds = (torch.tensor(column) for column in zip(*supervised_rows(reference["inputs"]), strict=True))
    logits = torch.tensor(reference["inputs"]["student_logits"], dtype=torch.float64, requires_grad=True)
    counts = torch.bincount(kinds, minlength=len(SPAN_KINDS)).double()
    coefficients = span_ce.coefficients(span_ce.SpanWeights().tensor(), counts)
    total, _ = weighted_nll(logits[rows], torch.eye(16, dtype=torch.float64), targets, coefficients[kinds], 3)
    total.backward()
    expected = torch.tensor(reference["expected"]["grad_span_ce_w1_1"], dtype=torch.float64)
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-14)


def test_an_empty_span_adds_nothing(reference):
    expected = reference["expected"]["empty_final_span"]
    nll = -torch.tensor([reference["expected"]["logp_student"][str(t)] for t in (2, 3, 4, 9, 10)], dtype=torch.float64)
    counts = torch.tensor([5.0, 0, 0, 0], dtype=torch.float64)
    sums = span_ce.sums(nll, torch.full((5,), ANALYSIS))
    assert span_ce.span_ce(span_ce.SpanWeights().tensor(), sums, counts) == pytest.approx(expected["loss_w1_1"])
    assert span_ce.means(sums, counts) == pytest.approx({"analysis": expected["ce_reasoning"]})


def test_ranks_of_unequal_counts_sum_to_the_global_loss():
    generator = torch.Generator().manual_seed(0)
    weights = span_ce.SpanWeights(analysis=0.7, text=2.0).tensor()
    ranks = [
        (torch.rand(size, generator=generator, dtype=torch.float64), torch.randint(4, (size,), generator=generator))
        for size in (3, 50, 0, 17)
    ]
    counts = sum(torch.bincount(kinds, minlength=4) for _, kinds in ranks).double()
    coefficients = span_ce.coefficients(weights, counts)
    over_ranks = sum(float((nll * coefficients[kinds]).sum()) for nll, kinds in ranks)
    total = sum(span_ce.sums(nll, kinds) for nll, kinds in ranks)
    assert over_ranks == pytest.approx(span_ce.span_ce(weights, total, counts), rel=1e-14)
