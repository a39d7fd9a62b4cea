"""The process group of a run: joined through DeepSpeed, left after a barrier; one process if no launcher is used.

Where all ranks are on one machine, the store by which they meet listens on the loopback address alone: it asks nobody
who he is, and ranks exchange pickles over what is agreed there. Several machines need a network of their own.

The shared-memory collective is left out: DeepSpeed would compile it at first use (106 s, together with its own AdamW).
"""

import contextlib
import datetime
import ipaddress
import os
import socket
from collections.abc import Iterator
from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.distributed
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import logger as deepspeed_logger

from training.launch.world import World


@contextlib.contextmanager
def world(timeout_s: float = 1800.0) -> Iterator[World]:
    """The process group that the launcher's environment describes, or one of a single process.

    A collective that waits longer than `timeout_s` for another rank raises. The group is left behind a barrier:
    without it a rank may abort while another still tears down.
    """
    # Its own handler writes to standard output, which belongs to the run; without it, its errors go to standard error.
    deepspeed_logger.handlers.clear()
    deepspeed_logger.propagate = True
    # DeepSpeed fills the table when it is first read, with a C compiler that tries each op; its only reader asks this.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    accelerator = get_accelerator()
    with _single_process_environment():
        if accelerator.device_name() != "cpu":
            accelerator.set_device(int(os.environ["LOCAL_RANK"]))
        backend, timeout = accelerator.communication_backend_name(), datetime.timedelta(seconds=timeout_s)
        if _meet_on_loopback():
            rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            store = _loopback_store(rank, size, timeout)
            torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        # Takes the group that is there, or makes the one that the environment describes.
        deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)
        try:
            device = torch.device(accelerator.current_device_name())
            yield World(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
            torch.distributed.barrier()
        finally:
            # DeepSpeed's own call also forgets the groups that it has cached, so that a process can train again.
            deepspeed.comm.destroy_process_group()


def _meet_on_loopback() -> bool:
    """Whether the ranks meet at a loopback address and no launcher (torchrun) holds the store for them."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return False
    host = os.environ["MASTER_ADDR"]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _loopback_store(rank: int, size: int, timeout: datetime.timedelta) -> Any:
    """The store at MASTER_ADDR and MASTER_PORT; torch's own would listen on every interface of the machine."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store: Any = torch.distributed.TCPStore  # type: ignore[attr-defined]  # torch lists it for no checker
    if rank != 0:
        return store(host, port, size, is_master=False, timeout=timeout)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family)
    port = listening.getsockname()[1]
    return store(host, port, size, is_master=True, timeout=timeout, master_listen_fd=listening.detach())


@contextlib.contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Whether torch may use only kernels that give the same bits each time, for as long as this is entered.

    cuBLAS reads its workspace's size when it is first used in the process, so enter this before.
    """
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def _single_process_environment() -> Iterator[None]:
    """Set RANK and its companions for one process where no launcher has set them; taken away again at the end."""
    if "RANK" in os.environ:
        yield
        return
    # Port 0: the store takes a free one when it listens, so that no other process can be faster.
    values = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name)
        os.environ.update({name: before[name] for name in values if name in before})
