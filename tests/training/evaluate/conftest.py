"""A corpus of two held-out cells, a model, and another one as its teacher; one of each for the tests of a process."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from etl.harmony.step import HarmonyStep
from tests.datasets import write_dataset
from tests.training.teachers import documents, save_teacher
from training.evaluate.models import Models
from training.export.harmony_tokenizer import generation_config, tokenizer_files


@pytest.fixture(scope="session")
def tables():
    """Of two validation cells."""
    return {"B1/C1": documents(10, 1).slice(6), "B2/C1": documents(6, 2)}


@pytest.fixture(scope="session")
def corpus(tables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    stored = {}
    for cell, table in tables.items():
        skill, ctx = cell.split("/")
        weighted = table.append_column("sampling_weight", pa.array(np.ones(len(table))))
        stored[f"split=validation/skill_bucket={skill}/ctx_bucket={ctx}"] = weighted
    write_dataset(str(folder), "layout", "CORPUS", stored)
    return str(folder)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A random GPT-OSS with the tokenizer of an export."""
    folder = save_teacher(tmp_path_factory.mktemp("model"))
    for name, data in tokenizer_files(HarmonyStep().preamble()).items():
        (folder / name).write_bytes(data)
    (folder / "generation_config.json").write_text(json.dumps(generation_config()))
    return str(folder)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """Another one."""
    from transformers import AutoModelForCausalLM

    folder = save_teacher(tmp_path_factory.mktemp("teacher"))
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        loaded.lm_head.weight.mul_(0.5)
    loaded.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def models():
    return Models("float32", "cpu")
