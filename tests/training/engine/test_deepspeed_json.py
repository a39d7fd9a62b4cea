import json
from pathlib import Path

import pytest

from etl.errors import ConfigError
from training.engine.deepspeed_json import deepspeed_config, read_deepspeed_json, zero_stage
from training.engine.optimizer import OptimizerConfig

CONF = Path(__file__).resolve().parents[3] / "conf" / "deepspeed"
OPTIMIZER = OptimizerConfig(lr=0.01)


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


@pytest.mark.parametrize("more", [{"data_types": {"grad_accum_dtype": "bf16"}}, {"communication_data_type": "bf16"}])
def test_bf16_gradients_that_are_not_summed_in_fp32_are_refused(tmp_path, more):
    with pytest.raises(ConfigError, match="'bf16'; bf16 gradients are summed in fp32"):
        read_deepspeed_json(written(tmp_path, bf16={"enabled": True}, zero_optimization={"stage": 2}, **more))


def test_a_stage_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="stage 4; it must be 0, 1, 2 or 3"):
        read_deepspeed_json(written(tmp_path, zero_optimization={"stage": 4}))


@pytest.mark.parametrize("key", ["train_batch_size", "gradient_accumulation_steps", "gradient_clipping", "optimizer"])
def test_what_the_training_configuration_decides_is_refused_in_the_json(tmp_path, key):
    with pytest.raises(ConfigError, match=f"sets '{key}'; remove it"):
        read_deepspeed_json(written(tmp_path, **{key: 1}))


def test_the_shipped_jsons_are_what_their_names_say():
    paths = list(CONF.glob("*.json"))
    assert len(paths) >= 1
    for path in paths:
        found = read_deepspeed_json(f"conf/deepspeed/{path.name}")
        assert path.stem == f"zero{zero_stage(found)}_{'bf16' if found['bf16']['enabled'] else 'fp32'}"
        assert all(deepspeed_config(found, OPTIMIZER, 1)[key] == value for key, value in found.items() if key != "bf16")


def test_the_exact_json_of_a_run():
    optimizer = OptimizerConfig(lr=1.0, clip_norm=0.5)
    assert deepspeed_config({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}, optimizer, 8) == {
        "zero_optimization": {"stage": 2},
        "bf16": {"enabled": True, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 8,
        "gradient_clipping": 0.5,
        "zero_allow_untested_optimizer": True,
    }
    assert deepspeed_config({}, optimizer, 8)["gradient_clipping"] == 0.0
    offload = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    assert deepspeed_config(offload, optimizer, 8)["zero_force_ds_cpu_optimizer"] is False
