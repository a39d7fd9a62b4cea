"""Held-out loss per cell, on the same packs of the validation split each time; each rank keeps its packs in memory.

Each cell (skill x context bucket) has packs of its own, so its loss costs nothing extra; further named sets, such as
canaries, are corpora beside it. The loss is always span-normalised cross-entropy, whatever the stage trains on, so the
stages of a run can be compared.

Beside it stands `format`: of the targets that are Harmony's control tokens (<|channel|>, <|message|>, <|end|> and so
on), the share that has more than half of the probability, so that greedy decoding would write it there.
"""

import math
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field

from etl.config import Config
from etl.errors import ConfigError
from etl.harmony.vocabulary import NUM_TEXT_TOKENS
from training.data.cell_packs import packs_by_cell
from training.data.collate import Pack, collate
from training.data.reader import CorpusReader
from training.data.stream.plan import StreamConfig
from training.launch.world import World
from training.losses.objective import CrossEntropy
from training.losses.spans import Supervised

if TYPE_CHECKING:
    # It loads DeepSpeed, which HeldOutConfig must not.
    from training.engine.engine import Engine


class HeldOutSet(Config):
    """A further set to evaluate, e.g. canaries."""

    corpus: str
    """Folder or URL of a committed corpus."""
    split: str = "validation"
    """Split of the corpus to use."""


class HeldOutConfig(Config):
    """How often to evaluate, and on how much. The start and the end of a run are always evaluated."""

    every_tokens: int = Field(default=10_000_000, ge=1)
    """Trained tokens between two evaluations."""
    max_packs: int = Field(default=8, ge=1)
    """Packs a cell, drawn once, seeded."""
    sets: dict[str, HeldOutSet] = {}
    """Sets of held-out documents, by name."""


class FormatCrossEntropy(CrossEntropy):
    """Cross-entropy that also counts the control tokens among the targets, and those that are the likeliest token."""

    def sums(self, here: Supervised, nll: torch.Tensor) -> torch.Tensor:
        """S_k [kinds], right control tokens, control tokens."""
        of_control = nll[here.targets >= NUM_TEXT_TOKENS]
        found = torch.stack([(of_control < math.log(2)).sum(), torch.tensor(len(of_control), device=nll.device)])
        return torch.cat([super().sums(here, nll), found.double()])

    def report(self, counts: torch.Tensor, sums: torch.Tensor) -> dict[str, Any]:
        """Adds `format`, None where no target is a control token."""
        right, total = sums[-2:].tolist()
        return {**super().report(counts, sums), "format": right / total if total else None}


class HeldOut:
    """The validation packs of one rank: every world-th of each cell, made equal in number with empty ones."""

    def __init__(
        self, data: StreamConfig, config: HeldOutConfig, seed: int, world: World, vocab_sizes: Mapping[str, int]
    ) -> None:
        """Reads them, for models with these vocabularies.

        Raises:
            ConfigError: no document of the validation split fits in a pack, or a token id is beyond a vocabulary.
        """
        self._world = world
        self._vocab_sizes = vocab_sizes
        self._objective = FormatCrossEntropy()
        self._packs: dict[str, list[Pack]] = {}
        sets = {"": HeldOutSet(corpus=data.corpus), **config.sets}
        for name, held_out in sets.items():
            self._add(name, held_out, data, config.max_packs, seed)
        if not any(map(_is_own, self._packs)):
            raise ConfigError(
                f"no document of the validation split of {data.corpus} fits data.pack_tokens = {data.pack_tokens}; "
                "raise it, or remove `evaluate`"
            )

    def _add(self, name: str, held_out: HeldOutSet, data: StreamConfig, max_packs: int, seed: int) -> None:
        with closing(CorpusReader(held_out.corpus, held_out.split, vocab_sizes=self._vocab_sizes)) as reader:
            index = reader.read_index(reader.whole, seed)
            for cell, packs in packs_by_cell(index, reader.cells, data, max_packs, seed):
                own = packs[self._world.rank :: self._world.size]
                own += [np.empty(0, np.int64)] * (-(-len(packs) // self._world.size) - len(own))
                key = f"{name}/{cell}" if name else cell
                self._packs[key] = [collate(reader.gather(index, chosen), data.pack_tokens) for chosen in own]

    def losses(self, engine: "Engine") -> dict[str, dict[str, Any]]:
        """Loss, span losses and format by cell (`set/cell` for further sets), over the validation split as `all`.

        Every rank must call it.
        """
        cells = {key: self._sums(engine, packs) for key, packs in self._packs.items()}
        own = [found for key, found in cells.items() if _is_own(key)]
        total = (torch.stack([counts for counts, _ in own]).sum(0), torch.stack([sums for _, sums in own]).sum(0))
        return {key: self._objective.report(*found) for key, found in {"all": total, **cells}.items()}

    def _sums(self, engine: "Engine", packs: list[Pack]) -> tuple[torch.Tensor, torch.Tensor]:
        """Counts and sums of some packs over all ranks."""
        counts = torch.from_numpy(sum(self._objective.counts(pack) for pack in packs)).double()
        found = engine.evaluate([pack.tensors(self._world.device) for pack in packs], self._objective)
        return self._world.sum(counts), found.sums


def _is_own(key: str) -> bool:
    """Whether a cell is one of the corpus that is trained on: `cell` and not `set/cell`."""
    return key.count("/") == 1
