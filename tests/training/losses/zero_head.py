"""One rank of two: a step of plain SGD through the chunked head under DeepSpeed, against the naive head on all rows.

Each rank prints, as JSON, the largest difference of any parameter for each of ZeRO 0 and 3, tied and untied,
cross-entropy (gradients made in the forward pass) and preference pairs (logits made again in the backward pass; rank 1
has a pack without documents).
"""

import itertools
import json
import sys

import deepspeed
import numpy as np
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import nn
from torch.nn.functional import cross_entropy, logsigmoid

from tests.training.packs import toy_pack
from training.launch.process_group import world
from training.losses.chunked_head import LmHead
from training.losses.objective import CrossEntropy, Dpo, StepContext

VOCAB, HIDDEN, PACK_TOKENS = 29, 8, 12
OBJECTIVES = {"ce": CrossEntropy(), "dpo": Dpo(beta=0.5)}


class Tiny(nn.Module):
    """An embedding, a layer, the head."""

    def __init__(self, tied):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCAB, HIDDEN)
        self.layer = nn.Linear(HIDDEN, HIDDEN)
        self.head = LmHead(self.embedding.weight if tied else nn.Parameter(torch.randn(VOCAB, HIDDEN)), 3 * VOCAB * 4)

    def states(self, ids):
        return self.layer(self.embedding(ids)).tanh()

    def forward(self, batch, objective, step):
        return objective.loss(self.head, self.states(batch.input_ids[0]), batch, step).total


def pack_of(rank, kind):
    """Documents of other lengths on each rank; the pair is on rank 0."""
    generator = np.random.default_rng(rank)
    more = {key: generator.integers(0, VOCAB, PACK_TOKENS) for key in ("input_ids", "targets")}
    if kind == "dpo":
        if rank == 1:
            return toy_pack([], PACK_TOKENS, {}, **more)
        more |= {"pair": np.array([0, 0], np.int32), "side": np.array([1, 0], np.int8)}
        more["reference_logp"] = np.array([-20.0, -18.0], np.float32)
    return toy_pack([6, 4 - rank], PACK_TOKENS, {1: 0, 2: 0, 4: 2, 7: 2} | ({8: 3} if rank == 0 else {}), **more)


def naive_loss(model, kind, packs):
    losses, sums = [[] for _ in range(4)], torch.zeros(2)
    for pack in packs:
        logits = model.states(torch.from_numpy(pack.input_ids)) @ model.head.weight.T
        nll = cross_entropy(logits, torch.from_numpy(pack.targets), reduction="none")
        for row in np.flatnonzero(pack.target_kind >= 0):
            losses[pack.target_kind[row]].append(nll[row])
            if kind == "dpo":
                sums[pack.side[pack.document[row]]] -= nll[row]
    if kind == "ce":
        return sum(torch.stack(found).mean() for found in losses if found)
    reference = torch.from_numpy(packs[0].reference_logp)
    return -logsigmoid(OBJECTIVES[kind].beta * ((sums[0] - reference[1]) - (sums[1] - reference[0])))


def difference(here, stage, tied, kind):
    objective = OBJECTIVES[kind]
    packs = [pack_of(rank, kind) for rank in range(here.size)]
    expected = Tiny(tied)
    naive_loss(expected, kind, packs).backward()
    model = Tiny(tied)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {}),
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), config=settings, dist_init_required=False
    )
    counts = here.sum(torch.from_numpy(objective.counts(packs[here.rank])))
    loss = engine(packs[here.rank].tensors(here.device), objective, StepContext(counts))
    engine.backward(loss * here.size, scale_wrt_gas=False)
    engine.step()
    worst = 0.0
    for name, parameter in expected.named_parameters():
        stepped = safe_get_full_fp32_param(engine.module.get_parameter(name)) if stage else model.get_parameter(name)
        worst = max(worst, float((stepped.detach() - (parameter - parameter.grad).detach()).abs().max()))
    engine.destroy()
    return worst


def main():
    with world() as here:
        cases = itertools.product((0, 3), (True, False), OBJECTIVES)
        found = {f"zero {stage} tied {tied} {kind}": difference(here, stage, tied, kind) for stage, tied, kind in cases}
    sys.stdout.write(json.dumps(found) + "\n")
