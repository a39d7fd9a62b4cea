"""A student that misbehaves where the environment variable FAULT says so: `kind,rank,call`.

    nan      from this training forward pass of the rank on, its hidden states are NaN; a fourth number: for how many
    hang     this training forward pass of the rank never ends

A variable and no parameter, because a checkpoint is of a student with its parameters.
"""

import os
import threading

import torch

from training.models import gpt_oss
from training.models.config import student_factory

FACTORY = "model.factory=tests.training.faulty:build"
FAULT = "STILLHOUSE_TEST_FAULT"


@student_factory
def build(params):
    """A GptOss network of these sizes."""
    network = gpt_oss.build(params)
    calls = 0
    kind, rank, first, *length = os.environ.get(FAULT, "none,-1,0").split(",")
    last = int(first) + int(length[0]) if length else float("inf")

    def misbehave(module, inputs, output):
        nonlocal calls
        calls += module.training
        if module.training and os.environ["RANK"] == rank and int(first) <= calls < last:
            if kind == "hang":
                threading.Event().wait()
            hidden, router_logits = output
            return hidden * torch.nan, router_logits
        return output

    network.register_forward_hook(misbehave)
    return network
