import numpy as np
import pytest
import torch

from etl.errors import DataError
from tests.training.losses.toy_steps import ANALYSIS, CPU, FINAL, PACK_TOKENS, TEXT
from tests.training.packs import toy_pack
from training.losses.on_policy import OnPolicy
from training.losses.spans import StepContext, token_means
from training.losses.teacher_signal import TeacherSignalObjective
from training.losses.weighted_ce import WeightedCrossEntropy


def hand_made():
    """Row 3 has a signal and no span, so it counts nowhere."""
    logp = np.array([-1.0, -2.5, np.nan, -64.0, -0.25, -4.0], np.float32)
    return toy_pack([3, 3], 6, {0: ANALYSIS, 1: ANALYSIS, 4: FINAL, 5: ANALYSIS}, teacher_logp=logp)


def test_counts_end_with_the_sums_of_the_teachers_logp():
    counts = TeacherSignalObjective().counts(hand_made())
    assert counts.tolist() == [3, 0, 1, 0, 2, 0, 1, 0, -7.5, 0, -0.25, 0]
    assert TeacherSignalObjective().counts(toy_pack([], 6, {})).tolist() == [0] * 12


def test_the_report_has_the_teachers_mean_by_kind():
    counts = torch.from_numpy(TeacherSignalObjective(normalise="example").counts(hand_made()))
    report = TeacherSignalObjective(normalise="example").report(counts, torch.tensor([6.0, 0.0, 5.0, 0.0]))
    assert report["span_teacher_logp"] == {"analysis": -2.5, "final": -0.25}
    assert report["span_loss"] == {"analysis": 2.0, "final": 5.0}


def test_signals_are_of_the_supervised_rows():
    objective, pack = TeacherSignalObjective(), hand_made()
    step = StepContext(torch.from_numpy(objective.counts(pack)))
    batch, filler = pack.tensors(CPU), toy_pack([], 6, {}).tensors(CPU)
    assert objective.teacher_logp(batch, objective.supervised(batch, step)).tolist() == [-1.0, -2.5, -0.25, -4.0]
    assert objective.teacher_logp(filler, objective.supervised(filler, step)).tolist() == []


def test_means_over_tokens_ignore_documents_and_leave_empty_kinds_out():
    counts = torch.tensor([4.0, 0.0, 2.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    assert token_means(counts, torch.tensor([2.0, 0.0, 3.0, 0.0])) == {"analysis": 0.5, "final": 1.5}


@pytest.mark.parametrize("objective", [WeightedCrossEntropy(), OnPolicy()], ids=lambda objective: objective.kind)
def test_tokens_without_a_teacher_signal_stop_the_step(objective):
    logp = np.full(PACK_TOKENS, -1.0, np.float32)
    logp[[0, 9]] = np.nan
    kinds = {1: ANALYSIS, 9: FINAL}
    with pytest.raises(DataError, match=r"1 supervised tokens of 1 documents have no teacher logp; .*data\.teacher"):
        objective.counts(toy_pack([6, 7], PACK_TOKENS, kinds, teacher_logp=logp))
    with pytest.raises(DataError, match="2 supervised tokens of 2 documents"):
        objective.counts(toy_pack([6, 7], PACK_TOKENS, kinds))


def test_an_infinite_signal_is_none():
    logp = np.array([-1.0, -np.inf, -np.inf, -1.0], np.float32)
    with pytest.raises(DataError, match="2 supervised tokens of 1 documents"):
        TeacherSignalObjective().counts(toy_pack([1, 3], 4, dict.fromkeys(range(4), TEXT), teacher_logp=logp))
