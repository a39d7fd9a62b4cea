"""What only a CUDA device can show; `make test-gpu` runs these, and they are skipped where there is none."""

import pytest
import torch

from tests.training.models.toys import FAMILIES, SIZES, losses, pack
from training.models.config import ModelConfig
from training.models.factory import build_student

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # The compiler uses deprecated parts of torch.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

BOUNDS = [0, 1, 38, 200, 512, 512]
OTHER_BOUNDS = ([0, 512], [0, 100, 101, 200, 300, 512], [0, 60, 512, 512, 512, 512, 512])
FAMILY_NAMES = ["llama", "qwen2_window", "gpt_oss", "qwen3_moe"]


def student_of(name, **more):
    """Heads of 32, which a kernel takes; a window that is no multiple of a block."""
    keys = {
        "model_type": name,
        **SIZES,
        **FAMILIES[name],
        "hidden_size": 128,
        "head_dim": 32,
        "max_position_embeddings": 1024,
    }
    if "sliding_window" in keys:
        keys["sliding_window"] = 100
    return build_student(ModelConfig(factory="training.models.causal_lm:build", params={"config": keys}, **more), 3)


def total(student, device, bounds=BOUNDS):
    """Losses on the CPU, and a scalar to go back from."""
    hidden, router_logits = student(*(tensor.to(device) for tensor in pack(bounds)))
    found = losses((hidden @ student.lm_head.weight.T).float().cpu(), bounds)
    return found, found.sum() + sum(logits.float().square().mean().cpu() for logits in router_logits)


@pytest.fixture(autouse=True)
def exact_float32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_losses_and_gradients_equal_the_cpus(name):
    reference, student = student_of(name), student_of(name).cuda()
    theirs, their_total = total(reference, "cpu")
    ours, our_total = total(student, "cuda")
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    their_total.backward()
    our_total.backward()
    gradients = dict(reference.named_parameters())
    for key, parameter in student.named_parameters():
        torch.testing.assert_close(parameter.grad.cpu(), gradients[key].grad, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_bfloat16_losses_are_near_those_of_float32(name):
    student = student_of(name).cuda()
    with torch.no_grad():
        wide, _ = total(student, "cuda")
        narrow, _ = total(student.bfloat16(), "cuda")
    assert (wide - narrow).abs().mean() < 2e-2


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_nothing_recompiles_after_the_first_pack(name, compiled, checkpointing):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    student = student_of(name, compile=compiled, gradient_checkpointing=checkpointing).cuda()
    total(student, "cuda")[1].backward()
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    for bounds in OTHER_BOUNDS:
        total(student, "cuda", bounds)[1].backward()
    assert counters["stats"]["unique_graphs"] == graphs
