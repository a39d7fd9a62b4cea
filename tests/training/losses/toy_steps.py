"""Toy packs that carry every signal, and a step over them through a head that is the identity.

Hidden states are then the student's logits, so a test that knows the probabilities knows the loss.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from etl.schema import SPAN_KINDS
from tests.training.packs import toy_pack
from training.losses.chunked_head import LmHead
from training.losses.spans import StepContext, TeacherOutput

CPU = torch.device("cpu")
VOCAB, PACK_TOKENS = 13, 16
ANALYSIS, COMMENTARY, FINAL, TEXT = range(len(SPAN_KINDS))
TEACHER = nn.Parameter(torch.randn(VOCAB, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64))
TEACHER_MEAN = -1.0
"""m of weighted_ce in every step."""


class Step(NamedTuple):
    """What a step over some packs gives."""

    report: dict
    total: float
    gradient: torch.Tensor
    """Of the head's weight."""


def run(objective, packs, hidden):
    """A step over packs with these hidden states [T, V] each, as a step over their ranks would sum them."""
    head = identity_head(hidden[0].shape[1])
    counts = torch.from_numpy(sum(objective.counts(pack) for pack in packs))
    step = StepContext(counts, torch.tensor(TEACHER_MEAN, dtype=torch.float64), teacher)
    outputs = [objective.loss(head, own, pack.tensors(CPU), step) for pack, own in zip(packs, hidden, strict=True)]
    total = sum(output.total for output in outputs)
    total.backward()
    sums = sum(output.sums for output in outputs)
    return Step(objective.report(counts, sums), float(total.detach()), head.weight.grad)


def identity_head(vocab_size):
    """Makes the logits of at most eight rows at a time."""
    weight = nn.Parameter(torch.eye(vocab_size, dtype=torch.float64))
    return LmHead(weight, logits_bytes=8 * vocab_size * 8)


def teacher(batch):
    states = torch.sin(torch.arange(PACK_TOKENS * 3, dtype=torch.float64)).reshape(PACK_TOKENS, 3)
    return TeacherOutput(states + batch.targets[:, None], TEACHER)


def states(seed):
    return torch.randn(PACK_TOKENS, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def states_giving(probabilities):
    """Logits [T, 2] of two tokens, the first of which has these probabilities."""
    first = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([first, 1 - first], dim=1).log()


def signals(seed):
    generator = np.random.default_rng(seed)
    topk = np.sort(generator.dirichlet(np.ones(4), PACK_TOKENS)[:, :3])[:, ::-1]
    ids = np.stack([generator.permutation(VOCAB)[:3] for _ in range(PACK_TOKENS)])
    return {
        "targets": generator.integers(0, VOCAB, PACK_TOKENS),
        "teacher_logp": -generator.exponential(size=PACK_TOKENS).astype(np.float32),
        "topk_ids": ids.astype(np.int32),
        "topk_logp": np.log(topk).astype(np.float32),
    }


def pack_of(seed, lengths=(6, 7), kind_at=None):
    """A pack with every signal; by default two documents, the second of which lacks a kind of the first."""
    kinds = {1: ANALYSIS, 2: ANALYSIS, 4: FINAL, 8: FINAL, 9: FINAL, 11: FINAL} if kind_at is None else kind_at
    return toy_pack(list(lengths), PACK_TOKENS, kinds, **signals(seed))


def pair_pack(seed, **more):
    """Two preference pairs in one pack."""
    pairs = {
        "pair": np.array([0, 1, 1, 0], np.int32),
        "side": np.array([0, 1, 0, 1], np.int8),
        "reference_logp": np.array([-3.0, -5.0, -4.0, -6.5], np.float32),
    }
    kinds = {1: ANALYSIS, 2: FINAL, 5: FINAL, 6: FINAL, 9: FINAL, 10: ANALYSIS, 12: ANALYSIS, 13: FINAL}
    return toy_pack([4, 4, 3, 4], PACK_TOKENS, kinds, **{**signals(seed), **pairs, **more})
