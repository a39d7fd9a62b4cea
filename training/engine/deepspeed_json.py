"""The DeepSpeed JSON: what users may set in it, and the exact JSON that a run uses.

A JSON says ZeRO stage, precision, communication and offloading. Batch sizes, clipping, the optimizer and its schedule
belong to the training configuration and are refused here. bf16 always accumulates and reduces gradients in float32.
"""

from typing import Any

from etl import conf
from etl.errors import ConfigError
from training.engine.optimizer import OptimizerConfig

OWNED_KEYS = {
    "train_batch_size": "data.global_batch_packs",
    "train_micro_batch_size_per_gpu": "data.global_batch_packs",
    "gradient_accumulation_steps": "data.global_batch_packs",
    "gradient_clipping": "optimizer.clip_norm",
    "optimizer": "optimizer",
    "scheduler": "optimizer.schedule",
    "zero_allow_untested_optimizer": "optimizer",
    "zero_force_ds_cpu_optimizer": "optimizer",
}
"""What a DeepSpeed JSON must leave to the training configuration."""


def read_deepspeed_json(name_or_path: str) -> dict[str, Any]:
    """The DeepSpeed configuration, checked for what this trainer cannot or must not take from it.

    Raises:
        ConfigError: it sets a key of the training configuration, asks for fp16, for bf16 with ZeRO stage 0, or for
            gradients that are summed in less than float32.
    """
    found = conf.parse_yaml(conf.find(name_or_path, "deepspeed"), name_or_path)
    if not isinstance(found, dict):
        raise ConfigError(f"{name_or_path} must be a JSON object, not {type(found).__name__}")
    for key, owner in OWNED_KEYS.items():
        if key in found:
            raise ConfigError(
                f"{name_or_path} sets '{key}'; remove it, as `{owner}` of the training configuration decides that"
            )
    found_zero_stage = zero_stage(found)
    if found_zero_stage not in range(4):
        raise ConfigError(f"{name_or_path} has zero_optimization.stage {found_zero_stage}; it must be 0, 1, 2 or 3")
    if _enabled(found, "fp16"):
        raise ConfigError(f"{name_or_path} enables fp16, which is not supported; use bf16 with ZeRO stage 1")
    if is_bf16(found):
        _check_bf16(found, name_or_path)
    return found


def _check_bf16(found: dict[str, Any], origin: str) -> None:
    if zero_stage(found) == 0:
        raise ConfigError(
            f"{origin} has bf16 with zero_optimization.stage 0, where AdamW would step on bf16 parameters and lose "
            "small updates; set zero_optimization.stage to 1, which keeps float32 masters"
        )
    summed = {
        "data_types.grad_accum_dtype": found.get("data_types", {}).get("grad_accum_dtype", "fp32"),
        "communication_data_type": found.get("communication_data_type", "fp32"),
    }
    for key, value in summed.items():
        if value != "fp32":
            raise ConfigError(f"{origin} has {key} '{value}'; bf16 gradients are summed in fp32, set it to fp32")


def _enabled(deepspeed_json: dict[str, Any], section: str) -> bool:
    return bool(deepspeed_json.get(section, {}).get("enabled", False))


def is_bf16(deepspeed_json: dict[str, Any]) -> bool:
    """Whether parameters and activations are bf16; float32 otherwise."""
    return _enabled(deepspeed_json, "bf16")


def zero_stage(deepspeed_json: dict[str, Any]) -> int:
    """The ZeRO stage, 0 where none is set."""
    return int(deepspeed_json.get("zero_optimization", {}).get("stage", 0))


def deepspeed_config(deepspeed_json: dict[str, Any], optimizer: OptimizerConfig, micro_steps: int) -> dict[str, Any]:
    """The JSON that DeepSpeed is initialised with: the user's, and what the training configuration decides.

    `micro_steps` is the number of packs that a rank takes in an optimizer step. At ZeRO stage 0 gradient_clipping is
    off (left out it is 1): DeepSpeed's own would clip there without telling the norm and step on gradients that are
    not finite, so the engine clips.
    """
    config: dict[str, Any] = {
        **deepspeed_json,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": optimizer.clip_norm if zero_stage(deepspeed_json) > 0 else 0.0,
        "zero_allow_untested_optimizer": True,
    }
    if is_bf16(deepspeed_json):
        # Without them ZeRO 2 and 3 of DeepSpeed 0.19 accumulate and reduce in bf16, and an unfit gradient could pass.
        config["data_types"] = {**deepspeed_json.get("data_types", {}), "grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
        config["bf16"] = {**deepspeed_json["bf16"], "check_grad_overflow": True}
    if "offload_optimizer" in deepspeed_json.get("zero_optimization", {}):
        # torch's fused AdamW runs on offloaded states; DeepSpeed's own CPU kernel would be compiled at first use.
        config["zero_force_ds_cpu_optimizer"] = False
    return config
