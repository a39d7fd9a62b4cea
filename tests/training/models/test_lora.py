import pytest
import torch

from etl.errors import ConfigError
from tests.training.models.toys import logits_of, losses, oracle_logits, student_of
from training.models.config import LoraConfig
from training.models.factory import export_model, export_names, export_state

# peft imports deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def adapted(name="qwen3", **keys):
    return student_of(name, lora=LoraConfig(**{"r": 4, "alpha": 8, **keys}))


def trained(student):
    return {name for name, parameter in student.named_parameters() if parameter.requires_grad}


def test_a_fresh_adapter_changes_nothing_and_is_all_that_is_trained():
    student = adapted(targets=["q_proj", "down_proj"])
    assert torch.equal(logits_of(student), logits_of(student_of("qwen3")))
    layers = [f"network.model.layers.{layer}" for layer in range(2)]
    adapters = [f"{layer}.{part}" for layer in layers for part in ("self_attn.q_proj", "mlp.down_proj")]
    assert trained(student) == {f"{name}.lora_{side}.default.weight" for name in adapters for side in "AB"}
    losses(logits_of(student)).sum().backward()
    assert all(p.grad is None or "lora" in name for name, p in student.named_parameters())


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mixtral", "qwen3_moe", "gpt_oss"])
def test_each_family_takes_adapters(name):
    student = adapted(name)
    assert torch.allclose(logits_of(student), logits_of(student_of(name)), atol=1e-5)
    assert len(trained(student)) == 2 * 4 * 2
    assert all(".self_attn." in name and ".lora_" in name for name in trained(student))


def test_named_weights_are_trained_in_full_beside_the_adapters():
    student = adapted("gpt_oss", train=["*.sinks", "lm_head.weight"])
    full = {name for name in trained(student) if "lora" not in name}
    assert full == {"network.lm_head.weight", *(f"network.model.layers.{layer}.self_attn.sinks" for layer in range(2))}


def test_the_exported_model_is_the_base_with_its_adapters_added():
    student = adapted()
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.3)
    names = export_names(student)
    plain = student_of("qwen3")
    assert set(names.values()) == {name.removeprefix("network.") for name, _ in plain.named_parameters()}
    ours = logits_of(student)
    assert not torch.allclose(ours, logits_of(plain), atol=0.1)
    model = student.hf_class._from_config(student.hf_config, attn_implementation="eager")
    model.load_state_dict(export_state(student, student.state_dict()))
    torch.testing.assert_close(losses(ours), losses(oracle_logits(model)), rtol=1e-4, atol=1e-4)
    assert not [name for name in export_model(student, student.state_dict()).state_dict() if "lora" in name]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"targets": ["qproj"]}, r"no linear layer is named 'qproj'; the layers are \['down_proj'"),
        ({"targets": ["lm_head"]}, r"head cannot have an adapter; list 'lm_head\.weight' in model\.lora\.train"),
        ({"train": ["*.sink"]}, r"no weight matches '\*\.sink'"),
    ],
)
def test_what_is_not_there_is_named(keys, message):
    with pytest.raises(ConfigError, match=message):
        adapted(**keys)
