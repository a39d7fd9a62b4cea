"""The model's section: what decides the model, what only how fast it runs, and that it is read without torch."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from tests.environment import PROJECT
from training.models.config import LoraConfig, ModelConfig


def config_of(**more):
    return ModelConfig(factory="toys:build", params={"hidden": 8}, **more)


def test_how_layers_are_run_is_no_part_of_the_models_identity():
    plain = config_of()
    assert plain.fingerprinted() == {"factory": "toys:build", "params": {"hidden": 8}}
    assert config_of(gradient_checkpointing=True, compile=True).fingerprinted() == plain.fingerprinted()


def test_adapters_are_part_of_it_with_default_values_too():
    assert config_of(lora=LoraConfig()).fingerprinted() == {**config_of().fingerprinted(), "lora": {}}
    assert config_of(lora={"r": 4}).fingerprinted()["lora"] == {"r": 4}


@pytest.mark.parametrize("lora", [{"r": 0}, {"alpha": 0}, {"dropout": 1}, {"dropout": -0.1}, {"rank": 4}])
def test_adapters_without_a_width_or_an_input_are_refused(lora):
    with pytest.raises(ValidationError):
        config_of(lora=lora)


def test_reading_it_loads_no_framework():
    code = "import training.models.config, sys; print({'torch', 'peft', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert done.stdout == "set()\n"
