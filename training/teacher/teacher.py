"""Teachers: log-probabilities of given tokens after given prompts, from a local model or a server.

The request and the answer of every teacher, and the configuration of a local one. No torch here: a run that drives
other processes, or asks a server, needs none. The two teachers are local.py and server.py beside this file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from etl.arrays import F32, I32
from etl.config import Config


@dataclass(frozen=True)
class Request:
    """A row and the tokens of it that are to be scored."""

    input_ids: I32
    """[n]"""
    positions: npt.NDArray[np.int64]
    """[m], ascending, in [1, n): the scored token at p is predicted from input_ids[:p]."""


@dataclass(frozen=True)
class Scores:
    """A teacher's answer for one row."""

    logp: F32
    """[m]: ln p of the token at each position."""
    topk_ids: I32
    """[m, k]: the most likely tokens, the most likely first; k may be 0."""
    topk_logp: F32
    """[m, k]"""


class Teacher(Protocol):
    """Scores rows. Created by `open_teacher` in rescore.py, once per process; its resources are released with it."""

    max_tokens: int
    """The longest row that it takes."""
    batch_tokens: int
    """Tokens of rows that are best given to it at a time."""

    def score(self, requests: Sequence[Request]) -> list[Scores]:
        """The scores of some rows, none longer than `max_tokens`, in their order.

        Raises:
            StillhouseError: the teacher cannot be reached, or does not answer what was asked.
        """
        ...


class LocalTeacherConfig(Config):
    """A transformers causal LM in a local folder; its tokenizer.json must be the corpus's."""

    kind: Literal["local"] = "local"
    model: str
    """The folder: config.json, *.safetensors and tokenizer.json."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and activations; logits are computed in float32."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Tokens of one forward pass; a longer row gets a pass of its own."""
    chunk_tokens: int = Field(default=128, ge=1)
    """Number of positions whose logits are in memory at a time."""


def local_folder(config: LocalTeacherConfig) -> Path:
    """The folder of a local teacher."""
    return Path(config.model).expanduser()
