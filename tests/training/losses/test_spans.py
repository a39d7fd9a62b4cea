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


def supervised(normalise, counts, expected=None):
    objective = SpanObjective(normalise=normalise, span_weights=WEIGHTS)
    floor = None if expected is None else torch.tensor(expected, dtype=torch.float64)
    step = StepContext(torch.tensor(counts, dtype=torch.float64), expected=floor)
    return objective.supervised(hand_made().tensors(CPU), step)


def test_counts_are_tokens_and_then_documents_of_each_kind():
    assert span_counts(hand_made()).tolist() == [3, 0, 1, 1, 2, 0, 1, 1]
    assert SpanObjective().counts(hand_made()).tolist() == [3, 0, 1, 1, 2, 0, 1, 1]
    assert span_counts(toy_pack([], 8, {})).tolist() == [0] * 8


def test_a_row_counts_its_kinds_weight_over_the_tokens_of_the_global_batch():
    found = supervised("kind", [6, 5, 4, 1, 2, 1, 1, 1])
    assert found.rows.tolist() == [0, 1, 2, 3, 5]
    assert found.targets.tolist() == [10, 11, 12, 13, 15]
    assert found.kind.tolist() == list(KIND_AT.values())
    assert found.coefficients.tolist() == [0.5, 0.5, 0.5, 0.5, 0.5]


def test_a_row_shares_in_its_documents_mean():
    found = supervised("example", [6, 5, 4, 1, 3, 1, 4, 1])
    assert found.coefficients.tolist() == [0.5, 0.5, 0.5, 1, 0.5]


def test_a_row_counts_its_kinds_weight_over_the_weights_of_all_tokens():
    found = supervised("all", [6, 5, 4, 2, 2, 1, 1, 1])
    total = 3 * 6 + 7 * 5 + 2 * 4 + 0.5 * 2
    assert found.coefficients.tolist() == pytest.approx([3 / total, 3 / total, 2 / total, 3 / total, 0.5 / total])


def test_a_kind_counts_at_most_as_if_it_were_as_frequent_as_in_the_corpus():
    expected = [2.0, 9.0, 10.0, 0.25, 2.0, 9.0, 0.5, 8.0]
    assert supervised("kind", [6, 5, 4, 1, 3, 1, 4, 1], expected).coefficients.tolist() == [0.5, 0.5, 0.2, 0.5, 0.5]
    found = supervised("example", [6, 5, 4, 1, 3, 1, 4, 1], expected)
    assert found.coefficients.tolist() == [0.5, 0.5, 0.5, 1, 0.0625]
    free, floored = (supervised("all", [6, 5, 4, 1, 3, 1, 4, 1], floor) for floor in (None, expected))
    assert floored.coefficients.tolist() == free.coefficients.tolist()


def test_sums_are_by_kind_whatever_a_row_counts():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    for normalise in ("kind", "all", "example"):
        assert supervised(normalise, [3, 0, 1, 1, 2, 0, 1, 1]).sums(values).tolist() == [11, 0, 4, 16]


def test_the_older_word_is_read_as_kind():
    assert CrossEntropy(normalise="token") == CrossEntropy()
    assert CrossEntropy(normalise="token").model_dump()["normalise"] == "kind"
    with pytest.raises(ValidationError, match="'kind', 'all' or 'example'"):
        CrossEntropy(normalise="tokens")


@pytest.mark.parametrize("normalise", ["kind", "all", "example"])
def test_the_report_has_means_over_tokens_and_leaves_empty_kinds_out(normalise):
    objective = SpanObjective(normalise=normalise, span_weights=WEIGHTS)
    counts = torch.tensor([3, 0, 1, 2, 2, 0, 1, 2], dtype=torch.float64)
    report = objective.report(counts, torch.tensor([9.0, 0.0, 4.0, 16.0, 99.0], dtype=torch.float64))
    assert report == {
        "loss": (9 + 4 + 16) / 6,
        "span_loss": {"analysis": 3.0, "final": 4.0, "text": 8.0},
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
    normalise=st.sampled_from(["kind", "all", "example"]),
)
def test_the_objective_is_a_mean_of_means_and_the_loss_the_mean_over_tokens(kinds, lengths, normalise):
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
    groups, tokens = {}, []
    for number, pack in enumerate(packs):
        for row in np.flatnonzero(pack.target_kind >= 0):
            document = (number, pack.document[row]) if normalise == "example" else 0
            groups.setdefault(int(pack.target_kind[row]), {}).setdefault(document, []).append(nll[row])
            tokens.append((nll[row], int(pack.target_kind[row])))
    weights = list(objective.span_weights.model_dump().values())
    if normalise == "all":
        expected = np.average([value for value, _ in tokens], weights=[weights[k] for _, k in tokens]) if tokens else 0
    else:
        expected = sum(weights[kind] * np.mean([np.mean(own) for own in of.values()]) for kind, of in groups.items())
    counts = torch.from_numpy(sum(objective.counts(pack) for pack in packs))
    found = [objective.loss(LmHead(weight), hidden, pack.tensors(CPU), StepContext(counts)) for pack in packs]
    assert float(sum(output.total for output in found).detach()) == pytest.approx(float(expected), rel=1e-12, abs=1e-14)
    logged = objective.report(counts, sum(output.sums for output in found))["loss"]
    assert logged == pytest.approx(np.mean([value for value, _ in tokens]) if tokens else 0)


def test_one_rare_token_among_many_counts_as_often_as_the_corpus_has_its_kind():
    """Plain PyTorch: without the floor its gradient is 800 times that of a final token, with it as many as expected."""
    kind_at = dict.fromkeys(range(800), FINAL) | {800: COMMENTARY}
    pack = toy_pack([801], 801, kind_at, targets=np.zeros(801, np.int64))
    logits = torch.randn(801, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain = logits.clone().requires_grad_()
    nll = cross_entropy(plain, torch.zeros(801, dtype=torch.long), reduction="none")
    (naive,) = torch.autograd.grad(nll[:800].mean() + nll[800] / 20, plain)

    def gradient(expected):
        objective, hidden = CrossEntropy(), logits.clone().requires_grad_()
        step = StepContext(torch.from_numpy(objective.counts(pack)), expected=expected)
        head = LmHead(nn.Parameter(torch.eye(5, dtype=torch.float64)))
        objective.loss(head, hidden, pack.tensors(CPU), step).total.backward()
        return hidden.grad

    # Of a corpus in which one supervised token in 40 is commentary; the step has 801 tokens.
    floor = torch.tensor([0.0, 20.0, 780.0, 0.0] * 2, dtype=torch.float64)
    before, after = gradient(None), gradient(floor)
    torch.testing.assert_close(after, naive)
    torch.testing.assert_close(before[:800], after[:800])
    torch.testing.assert_close(before[800], 20 * after[800])
