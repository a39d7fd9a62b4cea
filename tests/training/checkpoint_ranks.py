"""One rank of the checkpoint tests: a toy with everything awkward, saved and loaded as a plan says.

The plan is a list of actions, each done with an engine of its own in one process group; rank 0 prints a line of JSON
for each. The toy has a tied weight, a frozen parameter, a buffer, odd shapes and a group of two elements, so
that a rank of two may own nothing of it. Every rank sees the same batch.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import nn

from etl.errors import StillhouseError
from etl.storage.location import Location
from tests.training.forked import run_ranks
from training.checkpoint.checkpoints import Checkpoints
from training.checkpoint.config import CheckpointConfig
from training.checkpoint.store import Commit
from training.launch.process_group import world

LR = 0.01


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.embed = nn.Embedding(11, 7)
        self.middle = nn.Linear(7, 7)
        self.norm = nn.LayerNorm(7)
        self.gain = nn.Parameter(torch.ones(1))
        self.pair = nn.Parameter(torch.tensor([0.5, 2.0]))
        self.head = nn.Linear(7, 11, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.randn(5, 3), requires_grad=False)
        self.register_buffer("offset", torch.zeros(3))

    def forward(self, ids):
        hidden = self.norm(self.middle(self.embed(ids)) * self.gain) * self.pair[0] + self.pair[1]
        shift = (self.frozen.sum(0) + self.offset).sum()
        return nn.functional.cross_entropy((self.head(hidden) + shift * hidden.sum(-1, True)).float(), ids.roll(-1))


def optimizer_of(toy, name):
    groups = [
        {"params": [p for n, p in toy.named_parameters() if p.requires_grad and n != "pair"], "weight_decay": 0.1},
        {"params": [toy.pair], "weight_decay": 0.0},
    ]
    if name == "SGD":
        return torch.optim.SGD(groups, lr=LR, momentum=0.9)
    return torch.optim.AdamW(groups, lr=LR, fused=True)


def make_engine(action):
    """A DeepSpeed engine: `stage`, `bf16`, and perhaps `optimizer` and `zero` (more of zero_optimization)."""
    toy = Toy()
    bf16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}} if action["bf16"] else {}
    engine, *_ = deepspeed.initialize(
        model=toy,
        optimizer=optimizer_of(toy, action.get("optimizer", "AdamW")),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": action["stage"], **action.get("zero", {})},
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": 1.0,
            **bf16,
        },
        dist_init_required=False,
    )
    return engine


def step(engine, number):
    ids = torch.randint(0, 11, (16,), generator=torch.Generator().manual_seed(number))
    loss = engine(ids)
    engine.backward(loss * 1.0)
    engine.step()
    return float(loss.detach())


def digests(engine):
    """Of master, both moments and AdamW's step of each trained parameter; of all else as it is."""
    found = {}
    if engine.zero_optimization_stage() in (1, 2):
        # DeepSpeed 0.19.8 links the moments after the step of the first group, when those of the second are not there.
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                tensors = [parameter.detach().float()]
        elif engine.zero_optimization_stage() == 0:
            state = engine.optimizer.state[parameter]
            tensors = [parameter.detach(), state["exp_avg"], state["exp_avg_sq"]]
        else:
            moments = [safe_get_full_optimizer_state(parameter, key) for key in ("exp_avg", "exp_avg_sq")]
            tensors = [safe_get_full_fp32_param(parameter), *moments]
        found[name] = [hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:12] for tensor in tensors]
    found["offset"] = [float(value) for value in engine.module.offset]
    return found


def decays(engine):
    return [group["weight_decay"] for group in engine.optimizer.param_groups]


def act(here, action):
    engine = make_engine(action)
    checkpoints = Checkpoints(
        Location.of(action["root"], action.get("options")),
        Path(action["scratch"].format(rank=here.rank)),
        CheckpointConfig(**action.get("config", {})),
        here,
        action.get("identity", {}),
    )
    if action.get("broken_rank") == here.rank:
        checkpoints.root = Location.of("/dev/null/no-folder")
    if action["do"] == "save":
        with torch.no_grad():
            engine.module.offset += 0.25
        for number in range(1, action["steps"] + 1):
            step(engine, number)
            if number == action.get("also_at"):
                checkpoints.save(engine_of(engine), {"step": number})
                checkpoints.wait()
        if action.get("dies"):
            Commit.run = lambda commit, root, tag: os.kill(os.getpid(), signal.SIGKILL)
        drawn = float(torch.rand(()))
        checkpoints.save(engine_of(engine), {"step": action["steps"], "drawn": drawn})
        checkpoints.wait()
        found = checkpoints.newest()
    else:
        found = checkpoints.newest()
        checkpoints.load(engine_of(engine), found, seed=3)
    state = digests(engine)
    draw = float(torch.rand(()))
    return {
        "state": state,
        "loss": [step(engine, 100 + number) for number in range(2)],
        "decays": decays(engine),
        "draw": draw,
        "payload": found.payload,
        "world": found.world,
        "zero_stage": found.zero_stage,
        "tag": found.tag,
        "failures": checkpoints.failures,
    }


def engine_of(engine):
    return SimpleNamespace(deepspeed=engine, stage=int(engine.zero_optimization_stage()))


def launch(plan, world_size, folder):
    """Run a plan with some ranks; what each action found, or the exit codes when a rank has failed."""
    ranks = run_ranks(carry_out, plan, world_size=world_size, folder=folder)
    codes = [code for code, _ in ranks]
    if any(codes):
        return codes
    _, said = ranks[0]
    results = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert len(results) == len(plan), said
    return results


def carry_out(plan):
    with world() as here:
        for action in plan:
            try:
                result = act(here, action)
            except StillhouseError as error:
                result = {"error": error.to_text()}
            if here.rank == 0:
                sys.stdout.write(json.dumps(result) + "\n")
                sys.stdout.flush()
