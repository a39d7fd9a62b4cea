import pytest
import torch
import torch.distributed

from training.launch.world import World


@pytest.fixture
def here():
    """A world of one; only torch."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield World(0, 1, torch.device("cpu"))
    torch.distributed.destroy_process_group()


def test_the_collectives_of_a_world_of_one_give_back_what_they_get(here):
    values = torch.tensor([1.5, -2.0], dtype=torch.float64)
    assert torch.equal(here.sum(values), values)
    assert torch.equal(here.max(values), values)
    assert (here.any(True), here.any(False)) == (True, False)
    assert here.gather({"tokens": 3}) == [{"tokens": 3}]
    here.barrier()


def test_a_sum_is_a_copy_of_the_same_type(here):
    values = torch.tensor([3, 4])
    found = here.sum(values)
    found += 1
    assert (values.tolist(), found.tolist(), found.dtype) == ([3, 4], [4, 5], torch.int64)
