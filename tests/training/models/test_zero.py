"""Students under DeepSpeed on two processes: a shared head, adapters and checkpointed layers at ZeRO stage 3."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]

SCRIPT = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import deepspeed, deepspeed.ops, torch
from tests.training.models.toys import losses, pack, student_of
from training.models.lora import LoraConfig

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed("gloo", verbose=False)

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

CASES = {
    "tied": ("llama", {}),
    "untied": ("qwen3", {"gradient_checkpointing": True}),
    "routed": ("gpt_oss", {"gradient_checkpointing": True}),
    "adapters": ("qwen3", {"lora": LoraConfig(r=4)}),
}
found = {}
for name, (family, more) in CASES.items():
    for stage in (0, 3):
        module = Module(student_of(family, **more))
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, dist_init_required=False, config={
            "train_micro_batch_size_per_gpu": 1, "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}})
        ids, positions, cu_seqlens = pack()
        ids = ids.roll(torch.distributed.get_rank(), 1)
        steps = []
        for _ in range(4):
            loss = engine(ids, positions, cu_seqlens)
            engine.backward(loss)
            engine.step()
            steps.append(loss.item())
        found.setdefault(name, {})[stage] = steps
        engine.destroy()
with open(f"{sys.argv[1]}/{os.environ['RANK']}.json", "w") as file:
    json.dump(found, file)
torch.distributed.barrier()
deepspeed.comm.destroy_process_group()
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow  # two processes, eight engines
def test_stage_3_trains_every_kind_of_student_as_stage_0_does(tmp_path):
    launcher = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            cwd=PROJECT,
            env={**os.environ, **launcher, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(PROJECT)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=240) for process in ranks] == [0, 0]
    for rank in range(2):
        for name, by_stage in json.loads((tmp_path / f"{rank}.json").read_text()).items():
            assert by_stage["3"] == pytest.approx(by_stage["0"], rel=1e-4), name
            assert by_stage["0"][-1] < by_stage["0"][0] - 0.1, name
