import pytest
import torch

from etl.errors import ConfigError
from tests.training.models.toys import family, logits_of, losses, oracle_logits, oracle_of, pack
from training.models.config import ModelConfig
from training.models.factory import build_student, export_model

# peft imports deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def parent_params(name, dtype="float32", **keys):
    return {"config": {**family(name), **keys}, "dtype": dtype}


def dense_of(params):
    return build_student(ModelConfig(factory="training.models.causal_lm:build", params=params), 3)


def upcycled(params, **more):
    params = {"parent": params, "experts": 4, "experts_per_token": 2, **more}
    return build_student(ModelConfig(factory="training.models.upcycle:build", params=params), 3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [None, 16])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_the_logits_at_step_0_are_the_parents_bit_for_bit(name, width, dtype):
    params = parent_params(name, dtype)
    student = upcycled(params, expert_intermediate=width)
    assert torch.equal(logits_of(student), logits_of(dense_of(params)))
    assert [logits.shape for logits in student(*pack())[1]] == [(64, 4), (64, 4)]


def test_a_parent_of_saved_weights_is_taken_over_and_what_is_exported_is_read_again(tmp_path):
    dense = dense_of(parent_params("qwen3"))
    export_model(dense, dense.state_dict()).save_pretrained(tmp_path / "dense")
    student = upcycled({"weights": str(tmp_path / "dense")})
    assert torch.equal(logits_of(student), logits_of(dense))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    export_model(student, student.state_dict()).save_pretrained(tmp_path / "routed")
    again = dense_of({"weights": str(tmp_path / "routed")})
    assert torch.equal(logits_of(again), logits_of(student))
    assert again.experts_per_token == 2
    torch.testing.assert_close(losses(logits_of(student)), losses(oracle_logits(oracle_of(student))))


@pytest.mark.parametrize("per_token", [1, 2])
def test_experts_and_routers_train_from_the_second_step_on(per_token):
    student = upcycled(parent_params("llama"), experts_per_token=per_token)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    routed = {name: p for name, p in student.named_parameters() if ".experts." in name or ".gate.weight" in name}
    assert len(routed) == 6
    for _ in range(2):
        optimizer.zero_grad()
        losses(logits_of(student)).mean().backward()
        reached = {name for name, parameter in routed.items() if parameter.grad.any()}
        optimizer.step()
    assert reached == set(routed)
    down = student.network.model.layers[0].mlp.experts.down_proj
    # Experts that began alike have parted, since each has seen other tokens.
    assert all(not torch.equal(down[0], down[other]) for other in range(1, 4))


def test_narrow_experts_are_slices_of_the_parents_mlp():
    params = parent_params("llama")
    gate = dense_of(params).network.model.layers[1].mlp.gate_proj.weight
    experts = upcycled(params, expert_intermediate=16).network.model.layers[1].mlp.experts.gate_up_proj
    for number, start in enumerate([0, 16, 32, 0]):
        assert torch.equal(experts[number, :16], gate[start : start + 16])


@pytest.mark.parametrize(
    ("name", "keys", "more", "message"),
    [
        ("mistral", {}, {}, "sliding windows cannot be upcycled"),
        ("qwen2_window", {}, {}, "sliding windows cannot be upcycled"),
        ("gemma3_text", {}, {}, "gemma3_text parent cannot be upcycled.*llama, mistral, qwen2, qwen3"),
        ("llama", {"mlp_bias": True}, {}, "attention_bias or mlp_bias"),
        ("llama", {}, {"expert_intermediate": 20}, "= 20 must divide the parent's MLP of 48"),
        ("llama", {}, {"experts_per_token": 5}, "experts_per_token = 5 exceeds experts = 4"),
        ("llama", {}, {"experts": 1}, "experts: must be 2 or more"),
    ],
)
def test_what_cannot_be_upcycled_is_refused(name, keys, more, message):
    with pytest.raises(ConfigError, match=message):
        upcycled(parent_params(name, **keys), **more)


def test_a_mistral_without_a_window_is_upcycled():
    params = parent_params("mistral", sliding_window=None)
    assert torch.equal(logits_of(upcycled(params)), logits_of(dense_of(params)))
