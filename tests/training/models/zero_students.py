"""One rank of two: students of each kind trained at ZeRO stages 0 and 3; each rank prints its losses as JSON."""

import json
import sys

import deepspeed
import torch

from tests.training.models.toys import losses, pack, student_of
from training.launch.process_group import world
from training.models.config import LoraConfig

STEPS = 4
CASES = {
    "tied": ("llama", {}),
    "untied": ("qwen3", {"gradient_checkpointing": True}),
    "routed": ("gpt_oss", {"gradient_checkpointing": True}),
    "adapters": ("qwen3", {"lora": LoraConfig(r=4)}),
}
"""Family and more of the model's configuration."""


class Head(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, hidden):
        return losses(hidden @ self.weight.T).mean()


class Module(torch.nn.Module):
    def __init__(self, student):
        super().__init__()
        student.lm_head = Head(student.lm_head.weight)
        self.student = student

    def forward(self, *tensors):
        hidden, router_logits = self.student(*tensors)
        return self.student.lm_head(hidden) + sum(logits.square().mean() for logits in router_logits)


def losses_of(family, more, stage):
    module = Module(student_of(family, **more))
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
    ids, positions, cu_seqlens = pack()
    ids = ids.roll(torch.distributed.get_rank(), 1)
    found = []
    for _ in range(STEPS):
        loss = engine(ids, positions, cu_seqlens)
        engine.backward(loss)
        engine.step()
        found.append(loss.item())
    engine.destroy()
    return found


def main():
    with world():
        found = {name: {stage: losses_of(*case, stage) for stage in (0, 3)} for name, case in CASES.items()}
    sys.stdout.write(json.dumps(found) + "\n")
