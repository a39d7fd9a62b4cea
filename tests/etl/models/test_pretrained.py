"""A model folder is data: neither its code nor its pickles run, and nothing else calls `from_pretrained`."""

import ast
import json
import pickle
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from etl.errors import ConfigError
from etl.models.causal_lm import CausalLM
from etl.models.embedder import SentenceEmbedder
from etl.models.pretrained import load_model, load_tokenizer
from tests.etl.models.tiny import save_tiny_llama
from training.evaluate.models import Models

ROOT = Path(__file__).parents[3]
OWNER = ROOT / "etl/models/pretrained.py"


class Touch:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def folder(tmp_path):
    """A model folder whose config.json and tokenizer name code of its own, which leaves the file `ran`."""
    save_tiny_llama(tmp_path, eos_token="</s>")
    (tmp_path / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
        "from transformers import LlamaConfig as C, LlamaForCausalLM as M, PreTrainedTokenizerFast as T\n"
    )
    maps = {
        "config.json": {
            "model_type": "evil",
            "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoModel": "evil.M"},
        },
        "tokenizer_config.json": {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}},
    }
    for name, keys in maps.items():
        path = tmp_path / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return tmp_path


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: CausalLM.load(str(folder)),
        lambda folder: SentenceEmbedder.load(str(folder), 16),
        lambda folder: Models("float32", "cpu").generator(str(folder)),
        load_tokenizer,
        lambda folder: load_model(AutoModelForCausalLM, "a causal LM", folder),
    ],
    ids=["scores", "embeddings", "evaluation", "tokenizer", "model"],
)
def test_code_of_a_model_folder_is_refused_without_a_question(folder, load, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ConfigError, match="without custom code"):
        load(folder)
    assert not (folder / "ran").exists()


def test_pickled_weights_are_not_read(tmp_path):
    save_tiny_llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with (tmp_path / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"weights": Touch(tmp_path / "ran")}, file)
    with pytest.raises(ConfigError, match="safetensors"):
        load_model(AutoModelForCausalLM, "a causal LM", tmp_path, dtype=torch.float32)
    assert not (tmp_path / "ran").exists()


def test_no_other_file_loads_models():
    files = [path for name in ("etl", "training", "jobs") for path in (ROOT / name).rglob("*.py") if path != OWNER]
    calls = {
        str(path.relative_to(ROOT))
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "from_pretrained"
    }
    assert len(files) > 100
    assert calls == set()


def test_damaged_weights_are_refused(tmp_path):
    save_tiny_llama(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ConfigError, match=r"the weights in .* are damaged \(SafetensorError: .*; copy them again"):
        load_model(AutoModelForCausalLM, "a causal LM", tmp_path)
