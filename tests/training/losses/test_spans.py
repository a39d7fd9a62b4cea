import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import cross_entropy

from tests.training.losses.toy_steps import ANALYSIS, COMMENTARY, CPU, FINAL, TEXT
from tests.training.packs import toy_pack
from training.losses.chunked_head import LmHead
from training.losses.span_ce import CrossEntropy
from training.losses.spans import SpanObjective, SpanWeights, StepContext, span_counts

KIND_AT = {0: ANALYSIS, 1: ANALYSIS, 2: FINAL, 3: ANALYSIS, 5: TEXT}
WEIGHTS = {"analysis": 3.0, "commentary": 7.0, "final": 2.0, "text": 0.5}


def hand_made():
    """Two documents of three tokens and two tokens of room; row 4 is unsupervised."""
    return toy_pack([3, 3], 8, KIND_AT, targets=np.arange(10, 18))


def supervised(normalise, counts):
    objective = SpanObjective(normalise=normalise, span_weights=WEIGHTS)
    return objective.supervised(hand_made().tensors(CPU), StepContext(torch.tensor(counts, dtype=torch.float64)))


def test_counts_are_tokens_and_then_documents_of_each_kind():
    assert span_counts(hand_made()).tolist() == [3, 0, 1, 1, 2, 0, 1, 1]
    assert SpanObjective().counts(hand_made()).tolist() == [3, 0, 1, 1, 2, 0, 1, 1]
    assert span_counts(toy_pack([], 8, {})).tolist() == [0] * 8


def test_a_row_counts_its_kinds_weight_over_the_tokens_of_the_global_batch():
    found = supervised("token", [6, 5, 4, 1, 2, 1, 1, 1])
    assert found.rows.tolist() == [0, 1, 2, 3, 5]
    assert found.targets.tolist() == [10, 11, 12, 13, 15]
    assert found.kind.tolist() == list(KIND_AT.values())
    assert found.share.tolist() == [1, 1, 1, 1, 1]
    assert found.coefficients.tolist() == [0.5, 0.5, 0.5, 0.5, 0.5]


def test_a_row_shares_in_its_documents_mean():
    found = supervised("example", [6, 5, 4, 1, 3, 1, 4, 1])
    assert found.share.tolist() == [0.5, 0.5, 1, 1, 1]
    assert found.coefficients.tolist() == [0.5, 0.5, 0.5, 1, 0.5]


def test_sums_are_by_kind_and_of_shares():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    assert supervised("token", [3, 0, 1, 1, 2, 0, 1, 1]).sums(values).tolist() == [11, 0, 4, 16]
    assert supervised("example", [3, 0, 1, 1, 2, 0, 1, 1]).sums(values).tolist() == [9.5, 0, 4, 16]


@pytest.mark.parametrize(("normalise", "analysis"), [("token", 3.0), ("example", 4.5)])
def test_the_report_divides_sums_by_counts_and_leaves_empty_kinds_out(normalise, analysis):
    objective = SpanObjective(normalise=normalise, span_weights=WEIGHTS)
    counts = torch.tensor([3, 0, 1, 2, 2, 0, 1, 2], dtype=torch.float64)
    report = objective.report(counts, torch.tensor([9.0, 0.0, 4.0, 16.0, 99.0], dtype=torch.float64))
    assert report == {
        "loss": 3 * analysis + 2 * 4 + 0.5 * 8,
        "span_loss": {"analysis": analysis, "final": 4.0, "text": 8.0},
        "span_tokens": {"analysis": 3, "commentary": 0, "final": 1, "text": 2},
    }


def test_weights_are_in_the_order_of_the_kinds_and_never_negative():
    weights = SpanWeights(commentary=0.25, text=4).tensor()
    assert (weights.dtype, weights.tolist()) == (torch.float64, [1, 0.25, 1, 4])
    assert weights[COMMENTARY] == 0.25
    with pytest.raises(ValidationError, match=r"final\n.*greater than or equal to 0"):
        SpanWeights(final=-1)


@given(
    kinds=st.lists(st.lists(st.integers(-1, 3), min_size=8, max_size=8), min_size=1, max_size=3),
    lengths=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    normalise=st.sampled_from(["token", "example"]),
)
def test_span_normalised_loss_is_the_mean_of_means(kinds, lengths, normalise):
    """Against lists of tokens by kind and document, over packs of any composition, empty kinds included."""
    used = sum(lengths)
    packs = [
        toy_pack(
            list(lengths), 8, {row: kind for row, kind in enumerate(rows[:used]) if kind >= 0}, targets=np.arange(8)
        )
        for rows in kinds
    ]
    objective = CrossEntropy(normalise=normalise, span_weights={"analysis": 0.5, "text": 2.0})
    weight = nn.Parameter(torch.eye(8, dtype=torch.float64))
    hidden = torch.cos(torch.arange(64, dtype=torch.float64)).reshape(8, 8)
    nll = cross_entropy(hidden, torch.arange(8), reduction="none").tolist()
    groups = {}
    for number, pack in enumerate(packs):
        for row in np.flatnonzero(pack.target_kind >= 0):
            document = 0 if normalise == "token" else (number, pack.document[row])
            groups.setdefault(int(pack.target_kind[row]), {}).setdefault(document, []).append(nll[row])
    weights = list(objective.span_weights.model_dump().values())
    expected = sum(weights[kind] * np.mean([np.mean(own) for own in of.values()]) for kind, of in groups.items())
    counts = torch.from_numpy(sum(objective.counts(pack) for pack in packs))
    found = [objective.loss(LmHead(weight), hidden, pack.tensors(CPU), StepContext(counts)) for pack in packs]
    assert float(sum(output.total for output in found).detach()) == pytest.approx(float(expected), rel=1e-12, abs=1e-14)
    assert objective.report(counts, sum(output.sums for output in found))["loss"] == pytest.approx(float(expected))
