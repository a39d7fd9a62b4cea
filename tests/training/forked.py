"""Processes that begin with the trainer loaded, for tests that need ranks or kill a run.

They are forked from a process that has imported it (multiprocessing's forkserver), so that each begins in tenths of a
second: torch, DeepSpeed and a family of transformers take seconds to import, and a test of two ranks would pay twice.
Every process computes in one thread, as a rank does that `stillhouse train --nproc` starts.
"""

import gc
import multiprocessing
import os
import sys
import warnings

from tests.services.process import free_ports

PRELOADED = [
    "training.train",
    "training.engine.engine",
    "training.models.gpt_oss",
    "peft",
    "transformers.models.gpt_oss.modeling_gpt_oss",
]

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TORCHDYNAMO_DISABLE": "1"}
"""Of processes that train. The first engine makes DeepSpeed compile an optimizer that no test uses, which without the
last variable loads torch's compiler for two seconds."""


def begin(function, *arguments, environment=None, said=None):
    """A process that has begun to call the function; its output goes to the file `said`.

    Its exit code is what the function returns (None is 0), as with a script's main().
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_call, args=(function, arguments, environment or {}, said))
    process.start()
    return process


def run_ranks(function, *arguments, world_size, folder):
    """Exit code and output of each rank of a process group on this machine; every rank calls the function."""
    (port,) = free_ports(1)
    group = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    logs = [folder / f"rank-{rank}.log" for rank in range(world_size)]
    ranks = [
        begin(function, *arguments, environment={**group, "RANK": str(rank), "LOCAL_RANK": str(rank)}, said=log)
        for rank, log in enumerate(logs)
    ]
    for rank in ranks:
        rank.join()
    return [(rank.exitcode, log.read_text()) for rank, log in zip(ranks, logs, strict=True)]


def _call(function, arguments, environment, said):
    import torch

    gc.freeze()
    os.environ.update({**ENVIRONMENT, **environment})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if said is not None:
        file = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(file, descriptor)
    sys.exit(function(*arguments))
