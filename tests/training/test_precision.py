import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training import engine_ranks, precision
from tests.training.forked import ENVIRONMENT, run_ranks
from tests.training.precision import CPU, OBJECTIVE, OPTIMIZER, context, full_parameters
from training.engine.engine import Engine
from training.launch.process_group import world

# DeepSpeed and what it imports late use deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")

PROJECT = Path(__file__).resolve().parents[2]
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-3}
PARAMETER_TOLERANCE = {"fp32": 1e-5, "bf16": 2 * OPTIMIZER.lr}
"""In bf16 an element whose gradient is all rounding moves by up to the learning rate a step, either way."""
DATA = precision.batches(20, 4)


@pytest.fixture(scope="module")
def here():
    with world(timeout_s=60) as found:
        yield found


@pytest.fixture(scope="module")
def plain(here):
    return {kind: precision.reference(DATA, kind) for kind in TOLERANCE}


@pytest.mark.parametrize(("kind", "stage"), precision.CASES)
def test_20_steps_follow_a_plain_loop_with_float32_masters(here, plain, kind, stage):
    run = precision.trained(DATA, kind, stage, here)
    found = precision.distance(run, plain[kind])
    assert found.loss < TOLERANCE[kind]
    assert found.ratio < TOLERANCE[kind]
    assert found.parameter < PARAMETER_TOLERANCE[kind]
    assert found.norm < 50 * TOLERANCE[kind]
    assert plain[kind].losses[-1] < plain[kind].losses[0] - 0.4


@pytest.mark.parametrize("stage", [0, 2])
def test_16_micro_batches_of_1_equal_1_of_16(here, stage):
    packs = [precision.random_pack(seed, [23, 5 + seed, 36 - seed], 64) for seed in range(16)]
    lengths = [length for seed in range(16) for length in (23, 5 + seed, 36 - seed)]
    joined = precision.random_pack(0, lengths, 1024)
    joined.input_ids[:] = np.concatenate([pack.input_ids for pack in packs])
    joined.targets[:] = np.concatenate([pack.targets for pack in packs])
    joined.target_kind[:] = np.concatenate([pack.target_kind for pack in packs])
    json_ = precision.deepspeed_json("fp32", stage)
    many, one = (Engine(precision.module(engine_ranks.LINEAR), OPTIMIZER, json_, here, n) for n in (16, 1))
    for _ in range(3):
        ours = many.step([pack.tensors(CPU) for pack in packs], OBJECTIVE, context(packs), 1e-3)
        theirs = one.step([joined.tensors(CPU)], OBJECTIVE, context(packs), 1e-3)
        assert torch.allclose(ours.sums, theirs.sums, rtol=1e-6)
        assert many.gradient_norm() == pytest.approx(one.gradient_norm(), rel=1e-5)
    for name, value in full_parameters(many).items():
        assert torch.allclose(value, full_parameters(one)[name], atol=1e-5), name
    many.close()
    one.close()


def with_torchrun(num_ranks, out, stages):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_ranks),
        "-m", "tests.training.engine_ranks", str(out), *map(str, stages),
    ]  # fmt: skip
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def by_fork(num_ranks, out, stages):
    for code, said in run_ranks(engine_ranks.main, str(out), stages, world_size=num_ranks, folder=out.parent):
        assert code == 0, said


def check_ranks(here, launch, num_ranks, out, stages):
    launch(num_ranks, out, stages)
    found = json.loads(out.read_text())
    ranks = list(range(num_ranks))
    assert found["collectives"] == {
        "sum": [sum(ranks), num_ranks],
        "max": [num_ranks - 1, 1],
        "any": [True, False],
        "gather": [{"rank": rank} for rank in ranks],
    }
    for stage in stages:
        alone = precision.trained(engine_ranks.global_batches(), "fp32", stage, here, engine_ranks.LINEAR)
        assert found[str(stage)]["losses"] == pytest.approx(alone.losses, abs=1e-5)
        assert found[str(stage)]["norms"] == pytest.approx(alone.norms, abs=1e-4)
        assert found[str(stage)]["ratios"] == pytest.approx(alone.ratios, rel=1e-4)
        fault = {"fault": "the loss of rank 1 is nan in its micro-batch 0", "unchanged": True}
        assert found[f"fault {stage}"] == fault


def test_2_ranks_equal_1_and_a_fault_on_one_of_them_stops_all(here, tmp_path):
    check_ranks(here, by_fork, 2, tmp_path / "found.json", [2])


@pytest.mark.slow
@pytest.mark.parametrize(("launch", "num_ranks"), [(with_torchrun, 2), (by_fork, 3)])
def test_every_stage_is_the_same_on_2_and_3_ranks(here, tmp_path, launch, num_ranks):
    check_ranks(here, launch, num_ranks, tmp_path / "found.json", [0, 1, 2, 3])
