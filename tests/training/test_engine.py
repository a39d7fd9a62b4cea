import json

import pytest
import torch

from etl import conf
from etl.errors import ConfigError
from training.engine import OptimizerConfig, parameter_groups, read_deepspeed_json, zero_stage
from training.models.factory import ModelConfig, build_student
from training.train import TrainConfig


def written(tmp_path, **content):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_bf16_at_stage_0_is_refused_naming_stage_1(tmp_path):
    with pytest.raises(ConfigError, match=r"set zero_optimization\.stage to 1"):
        read_deepspeed_json(written(tmp_path, bf16={"enabled": True}))
    found = read_deepspeed_json(written(tmp_path, bf16={"enabled": True}, zero_optimization={"stage": 1}))
    assert zero_stage(found) == 1


def test_fp16_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="use bf16 with ZeRO stage 1"):
        read_deepspeed_json(written(tmp_path, fp16={"enabled": True}, zero_optimization={"stage": 1}))


@pytest.mark.parametrize("key", ["train_batch_size", "gradient_accumulation_steps", "gradient_clipping", "optimizer"])
def test_what_the_training_configuration_decides_is_refused_in_the_json(tmp_path, key):
    with pytest.raises(ConfigError, match=f"sets '{key}'; remove it"):
        read_deepspeed_json(written(tmp_path, **{key: 1}))


@pytest.mark.parametrize("name", ["zero1_fp32", "zero1_bf16"])
def test_the_shipped_jsons_are_accepted(name):
    assert zero_stage(read_deepspeed_json(f"conf/deepspeed/{name}.json")) == 1


@pytest.mark.parametrize("name", conf.shipped("training"))
def test_the_shipped_configurations_load_and_build(name):
    config = conf.load(TrainConfig, name, "training", ["model.params.vocab=50", "model.params.layers=2"])
    read_deepspeed_json(config.deepspeed)


def test_a_misspelt_key_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"pack_token.*did you mean 'pack_tokens'"):
        conf.load(TrainConfig, "demo", "training", ["data.pack_token=5"])


def test_learning_rate_warms_up_then_falls_to_its_fraction():
    config = OptimizerConfig(lr=1.0, warmup_steps=4, final_lr_fraction=0.1)
    assert [config.learning_rate(step, 24) for step in (0, 1, 3, 4)] == [0.25, 0.5, 1.0, 1.0]
    assert config.learning_rate(14, 24) == pytest.approx(0.55)
    assert config.learning_rate(24, 24) == config.learning_rate(99, 24) == pytest.approx(0.1)


def test_norms_biases_sinks_and_routers_have_no_weight_decay():
    params = {
        "layers": 1, "hidden": 8, "heads": 2, "kv_heads": 1, "head_dim": 4, "intermediate": 4, "experts": 2,
        "experts_per_token": 1, "vocab": 11,
    }  # fmt: skip
    student = build_student(ModelConfig(factory="training.models.gpt_oss:build", params=params), 0)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    decayed, plain = (
        {names[id(parameter)].removeprefix("model.layers.0.") for parameter in group["params"]}
        for group in parameter_groups(student, 0.1)
    )
    assert decayed == {
        "model.embed_tokens.weight", "lm_head.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight",
        "self_attn.v_proj.weight", "self_attn.o_proj.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj",
    }  # fmt: skip
    assert {"self_attn.sinks", "mlp.router.weight", "mlp.experts.gate_up_proj_bias", "model.norm.weight"} < plain
    assert isinstance(student.lm_head.weight, torch.nn.Parameter)
