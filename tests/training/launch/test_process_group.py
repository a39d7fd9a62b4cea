import os

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
