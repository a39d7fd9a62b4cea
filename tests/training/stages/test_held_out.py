import numpy as np
import pytest
import torch
from torch import nn

from etl.harmony.vocabulary import END, MESSAGE, NUM_TEXT_TOKENS
from etl.schema import SPAN_KINDS
from tests.training.packs import toy_pack
from training.losses.chunked_head import LmHead
from training.losses.objective import CrossEntropy, StepContext
from training.stages.held_out import FormatCrossEntropy

FINAL = SPAN_KINDS.index("final")
VOCAB = 201_088


def logits(*likely):
    """[rows, VOCAB]: of each row one token's logit, all others are 0."""
    rows = torch.zeros(len(likely), VOCAB)
    for row, (token, height) in enumerate(likely):
        rows[row, token] = height
    return rows


def test_format_is_the_share_of_control_tokens_that_are_likelier_than_all_else_together():
    # e^13 > 201,088: that token has more than half; with e^12 it has less.
    rows = logits((MESSAGE, 13.0), (END, 12.0), (5, 13.0), (MESSAGE, 13.0))
    targets = np.array([MESSAGE, END, 5, END])
    pack = toy_pack([4], 4, dict.fromkeys(range(4), FINAL), targets=targets)
    objective = FormatCrossEntropy()
    counts = torch.from_numpy(objective.counts(pack))
    head = LmHead(nn.Parameter(rows.T.contiguous()))
    output = objective.loss(head, torch.eye(4), pack.tensors(torch.device("cpu")), StepContext(counts))
    found = objective.report(counts, output.sums)
    assert found["format"] == pytest.approx(1 / 3)
    plain = CrossEntropy()
    expected = plain.loss(head, torch.eye(4), pack.tensors(torch.device("cpu")), StepContext(counts))
    assert found["loss"] == plain.report(counts, expected.sums)["loss"]


def test_without_control_tokens_there_is_no_format():
    pack = toy_pack([2], 2, {0: FINAL}, targets=np.array([NUM_TEXT_TOKENS - 1, 0]))
    objective = FormatCrossEntropy()
    counts = torch.from_numpy(objective.counts(pack))
    head = LmHead(nn.Parameter(torch.zeros(NUM_TEXT_TOKENS, 2)))
    output = objective.loss(head, torch.zeros(2, 2), pack.tensors(torch.device("cpu")), StepContext(counts))
    assert objective.report(counts, output.sums)["format"] is None
