import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from etl.errors import DataError
from tests.training.losses.toy_steps import (
    ANALYSIS,
    CPU,
    FINAL,
    PACK_TOKENS,
    VOCAB,
    identity_head,
    pack_of,
    pair_pack,
    run,
    states,
    states_giving,
)
from tests.training.packs import toy_pack
from training.losses.dpo import Dpo
from training.losses.spans import StepContext

LN2 = math.log(2)
FLOAT32 = {"rel": 1e-6, "abs": 1e-6}
"""The reference's ln p come as float32."""
PROBABILITIES = [0.5, 0.5, 0.5, 0.5, 0.125, 0.5, 0.5]
"""Documents' ln p: -2 ln 2 and -2 ln 2 of pair 0, -3 ln 2 and -2 ln 2 of pair 1."""


def two_pairs():
    """S - R is ln 2 and -ln 2 for the sides of pair 0, and 0 and 2 ln 2 for those of pair 1."""
    return toy_pack(
        [2, 2, 1, 2],
        7,
        {0: ANALYSIS, 1: FINAL, 2: FINAL, 3: FINAL, 4: FINAL, 5: ANALYSIS, 6: FINAL},
        pair=np.array([0, 0, 1, 1], np.int32),
        side=np.array([0, 1, 0, 1], np.int8),
        reference_logp=np.array([-3 * LN2, -LN2, -3 * LN2, -4 * LN2], np.float32),
    )


def test_two_pairs_by_hand():
    """At beta 1/2 the margins are ln 2 and -ln 2, whose sigmoids are 2/3 and 1/3."""
    found = run(Dpo(beta=0.5), [two_pairs()], [states_giving(PROBABILITIES)])
    assert found.total == pytest.approx((math.log(3 / 2) + math.log(3)) / 2, **FLOAT32)
    report = found.report
    assert report["loss"] == pytest.approx(found.total, rel=1e-12)
    assert (report["pairs"], report["accuracy"], report["ties"]) == (2, 0.5, 0.0)
    assert report["margin"] == pytest.approx(0.0, **FLOAT32)
    assert report["reward_chosen"] == pytest.approx(LN2 / 4, **FLOAT32)
    assert report["reward_rejected"] == pytest.approx((-LN2 / 2 + LN2) / 2, **FLOAT32)
    assert report["span_loss"] == pytest.approx({"analysis": LN2, "final": 2 * LN2})
    assert report["span_tokens"] == {"analysis": 2, "commentary": 0, "final": 5, "text": 0}


def test_label_smoothing_by_hand():
    found = run(Dpo(beta=0.5, label_smoothing=0.25), [two_pairs()], [states_giving(PROBABILITIES)])
    losses = 0.75 * math.log(3 / 2) + 0.25 * math.log(3), 0.75 * math.log(3) + 0.25 * math.log(3 / 2)
    assert found.total == pytest.approx(sum(losses) / 2, **FLOAT32)


def test_each_token_pulls_by_how_wrong_its_pair_is():
    """d L / d ln p = -beta * sigmoid(-margin) / pairs of a chosen token, and the opposite of a rejected one."""
    objective, pack, hidden = Dpo(beta=0.5), two_pairs(), states_giving(PROBABILITIES).requires_grad_()
    step = StepContext(torch.from_numpy(objective.counts(pack)))
    objective.loss(identity_head(2), hidden, pack.tensors(CPU), step).total.backward()
    pull = torch.tensor([-1 / 3, -1 / 3, 1 / 3, 1 / 3, -2 / 3, 2 / 3, 2 / 3], dtype=torch.float64) * 0.5 / 2
    expected = pull * (1 - torch.tensor(PROBABILITIES, dtype=torch.float64))
    torch.testing.assert_close(hidden.grad, torch.stack([expected, -expected], 1), rtol=1e-6, atol=0)


def test_a_student_that_is_its_reference_has_the_loss_ln_2():
    same = toy_pack(
        [1, 1],
        2,
        {0: FINAL, 1: FINAL},
        pair=np.array([0, 0], np.int32),
        side=np.array([1, 0], np.int8),
        reference_logp=np.array([-LN2, -LN2]),
    )
    report = run(Dpo(beta=3.0), [same], [states_giving([0.5, 0.5])]).report
    assert report["loss"] == pytest.approx(LN2, rel=1e-12)
    assert (report["accuracy"], report["ties"]) == (0.0, 1.0)
    assert (report["margin"], report["reward_chosen"]) == pytest.approx((0.0, 0.0), abs=1e-15)


def test_counts_are_pairs_tokens_and_chosen_tokens():
    assert Dpo().counts(two_pairs()).tolist() == [2, 2, 0, 5, 0, 1, 0, 2, 0]
    assert Dpo().counts(toy_pack([], PACK_TOKENS, {})).tolist() == [0] * 9


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_preference_pairs_equal_their_definition(smoothing):
    packs, hidden = [pair_pack(1), pair_pack(2)], [states(1), states(2)]
    report, total, gradient = run(Dpo(beta=0.7, label_smoothing=smoothing), packs, hidden)
    weight = torch.eye(VOCAB, dtype=torch.float64, requires_grad=True)
    margins = []
    for pack, own_states in zip(packs, hidden, strict=True):
        logp = -cross_entropy(own_states @ weight.T, torch.from_numpy(pack.targets), reduction="none")
        of_document = [logp[(pack.document == number) & (pack.target_kind >= 0)].sum() for number in range(4)]
        ratio = [own - float(reference) for own, reference in zip(of_document, pack.reference_logp, strict=True)]
        margins += [0.7 * (ratio[0] - ratio[3]), 0.7 * (ratio[2] - ratio[1])]
    margins = torch.stack(margins)
    losses = -(1 - smoothing) * margins.sigmoid().log() - smoothing * (-margins).sigmoid().log()
    losses.mean().backward()
    assert total == pytest.approx(float(losses.mean().detach()), rel=1e-12)
    torch.testing.assert_close(gradient, weight.grad)
    assert report["pairs"] == 4
    assert report["accuracy"] == float((margins > 0).double().mean())
    assert report["margin"] == pytest.approx(float(margins.mean().detach()))
    assert report["reward_chosen"] - report["reward_rejected"] == pytest.approx(report["margin"])


def test_preferences_need_both_sides_and_a_reference():
    with pytest.raises(DataError, match="documents without pairs"):
        Dpo().counts(pack_of(1))
    with pytest.raises(DataError, match=r"2 documents of a pack are not one of the two sides of a pair"):
        Dpo().counts(pair_pack(1, pair=np.array([0, -1, 1, 0], np.int32)))
    with pytest.raises(DataError, match="4 documents of a pack are not"):
        Dpo().counts(pair_pack(1, side=np.array([0, 1, 1, 0], np.int8), pair=np.array([0, 0, 1, 0], np.int32)))
    with pytest.raises(DataError, match="1 documents of preference pairs have no reference logp"):
        Dpo().counts(pair_pack(1, reference_logp=np.array([-1, np.nan, -1, -1], np.float32)))
    with pytest.raises(DataError, match="4 documents of preference pairs have no reference logp"):
        Dpo().counts(pair_pack(1, reference_logp=None))
