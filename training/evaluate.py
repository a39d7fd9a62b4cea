"""Held-out loss: the same packs of the validation split each time, kept in memory on the rank that evaluates them."""

import numpy as np
import torch
from pydantic import Field

from etl.config import Config
from etl.errors import ConfigError
from training.data.collate import Pack, collate
from training.data.plan import LanePlan, StreamConfig
from training.data.reader import CorpusReader
from training.engine import Engine, World


class EvalConfig(Config):
    """How often and how much; the start and the end of training are always evaluated."""

    every_steps: int = Field(default=100, ge=1)
    max_packs: int = Field(default=16, ge=1)
    """Packs drawn once, seeded, from the validation split."""


class HeldOut:
    """The validation packs of one rank: every world-th, made equal in number with empty ones."""

    def __init__(self, data: StreamConfig, config: EvalConfig, seed: int, world: World) -> None:
        reader = CorpusReader(data.corpus, "validation")
        index = reader.read_index(reader.whole, seed)
        once = data.model_copy(update={"on_exhausted": "stop", "clusters": None})
        packs = LanePlan(index, once, seed).segment(0, config.max_packs).packs
        if not packs:
            raise ConfigError(
                f"no document of the validation split fits data.pack_tokens = {data.pack_tokens}; raise it, or leave "
                "`evaluate` out"
            )
        own = list(packs[world.rank :: world.size])
        own += [np.empty(0, np.int64)] * (-(-len(packs) // world.size) - len(own))
        self._packs: list[Pack] = [collate(reader.gather(index, numbers), data.pack_tokens) for numbers in own]
        self._world = world
        self._counts = world.sum(torch.from_numpy(sum(pack.span_counts() for pack in self._packs)).double())

    def losses(self, engine: Engine) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums and counts over all ranks: float64 [kinds] each. Every rank must call it."""
        found = engine.evaluate([pack.tensors(self._world.device) for pack in self._packs])
        return self._world.sum(found.nll), self._counts
