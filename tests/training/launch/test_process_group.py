import contextlib
import os
from pathlib import Path

import pytest
import torch

from training.launch.process_group import deterministic_kernels, world

# DeepSpeed and what it imports late use deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")


def test_a_process_without_a_launcher_is_a_world_of_its_own_and_can_be_one_again(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    for _ in range(2):
        with world(timeout_s=60) as here:
            assert (here.rank, here.size, os.environ["RANK"]) == (0, 1, "0")
            assert here.sum(torch.tensor([2.5])).tolist() == [2.5]
        assert not torch.distributed.is_initialized()
        assert "RANK" not in os.environ
        assert os.environ["MASTER_PORT"] == "1"


def test_a_run_that_fails_leaves_the_group_too(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match="toy"), world(timeout_s=60):
        raise RuntimeError("toy")
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("wanted", [True, False])
def test_deterministic_kernels_are_asked_for_inside_only(monkeypatch, wanted):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with deterministic_kernels(wanted):
        assert torch.are_deterministic_algorithms_enabled() == wanted
    assert not torch.are_deterministic_algorithms_enabled()


def listening():
    """Addresses at which this process listens, as the kernel writes them."""
    links = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(link.readlink()))
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/self/net/{name}").read_text().splitlines()
    ]
    return [words[1].partition(":")[0] for words in lines if words[3] == "0A" and f"socket:[{words[9]}]" in links]


def test_ranks_of_one_machine_meet_on_loopback_alone(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with world(timeout_s=60):
        assert set(listening()) == {"0100007F"}
