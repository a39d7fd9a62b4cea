"""The inputs of the training stream (recipe, corpus, position), and what planning knows of each document.

The stream is a pure function of (manifest, recipe, seed, decision log). The corpus is dealt to L canonical *lanes*,
each a small image of the whole (deal.py). Lanes take turns in a fixed order, one pack a turn, and a global step
takes `global_batch_packs` consecutive packs; ranks own contiguous blocks of lanes (order.py), so that any number
of ranks from 1 to L gives the same stream. The run is cut into *segments* of whole steps; weights and shares change
only at a segment border, by a decision record (decisions.py). Inside a segment each lane ranks and packs its unread
documents (lane.py). A position is (log digest, segment, pack): a lane gets there by planning again from its
first segment, from lengths alone, reading no tokens. Memory: about 150 bytes a document of a rank's lanes.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from etl.arrays import I64
from etl.config import Config
from etl.digests import canonical_json
from etl.errors import ConfigError, DataError
from etl.hashing import xxh64
from etl.mixture.cluster_caps import ClusterCaps
from etl.storage.manifest import Part
from training.data.stream import order
from training.versions import versioned

ONE_EPOCH_ROWS = 1_000_000
THREE_EPOCH_ROWS = 35_000
"""Rows from which on `epochs: auto` reads a corpus once, and rows up to which it reads it three times."""
SEGMENT_TOKENS = 64_000_000
PASSES = 2
"""How passes over a corpus follow one another: 2, none begins before the last document of the one before is in a pack.
A stream of several passes that began otherwise would go on with other packs, so it is refused."""
OLD_ORDER = (
    "it was made by a version in which every stage and arm read the corpus in the same order, from its start. Now "
    "`data.order` decides where a stage starts: `continue` where earlier stages stopped, `fresh` in an order of "
    "its own. Neither can resume that run: finish it with the version that started it, or train again in another "
    "`output`"
)
"""What is wrong with a checkpoint or a log from before `order`."""


class StreamConfig(Config):
    """What to train on, and in what order. Changing anything but paths starts a different stream."""

    located: ClassVar[frozenset[str]] = frozenset({"corpus", "teacher", "reference", "max_left_out"})

    corpus: str
    """Folder or URL of a committed corpus (split=…/skill_bucket=…/ctx_bucket=…)."""
    teacher: str | None = None
    """Folder or URL of a committed TEACHER_LOGP table to join to the documents; only documents in the table are read.
    null: none."""
    reference: str | None = None
    """The same for the reference model of preference pairs."""
    pack_tokens: int = Field(ge=2)
    """Tokens of one training sequence. Longer documents, and pairs whose two sides together are longer, are dropped and
    counted."""
    max_left_out: float = Field(default=0.3, ge=0, le=1)
    """Largest share of the documents that may be dropped for their length; with more, the run stops before its first
    step. Documents without a share or without scores do not count."""
    global_batch_packs: int = Field(ge=1)
    """Packs per optimizer step, over all ranks."""
    lanes: int = Field(default=64, ge=1)
    """Number of lanes, which is the largest possible number of ranks. Ranks have equal work if their number divides
    it."""
    segment_tokens: int | None = Field(default=None, ge=1)
    """Length of a segment in tokens of pack capacity; a rank holds its share of two segments in memory (4 bytes a
    token). null: 64M, or the tokens of a smaller corpus."""
    lookahead_docs: int = Field(default=1024, ge=1)
    """Number of documents (or pairs) that the packer of a lane looks ahead."""
    shares: dict[str, float] | None = None
    """Share of the tokens for each pattern of cells, e.g. {"B1/C1": 0.2, "*/C2": 0.5}, relative to the sum of all
    shares. Cells without a share are not read. null: documents as they come."""
    weights: Literal["sampling_weight", "uniform"] = "sampling_weight"
    """What decides how early a document comes within its group. Documents with `sampling_weight` 0 are never read."""
    epochs: int | Literal["auto"] = Field(default=1)
    """How often each document is read. auto: 3 for up to 35K rows, 1 from 1M rows on, and between by the logarithm of
    the rows."""
    on_exhausted: Literal["stop", "repeat", "redistribute"] = "stop"
    """When a lane has read all documents of a group with a share: end the lane (stop), read them again (repeat), or
    give the share to the other groups until all are exhausted (redistribute). The stream ends with its last lane."""
    clusters: ClusterCaps | None = None
    """Limits by semantic cluster; needs a corpus made with the stage `semantic`."""
    order: Literal["continue", "fresh"] = "continue"
    """Where an arm starts to read. continue: where earlier stages stopped reading this corpus, with the least-read
    documents first. fresh: in an order of its own (by stage and arm), as if nothing had been read."""

    @field_validator("epochs")
    @classmethod
    def _at_least_one(cls, epochs: int | str) -> int | str:
        if isinstance(epochs, int) and epochs < 1:
            raise ValueError(f"{epochs} epochs would read nothing; give 1 or more, or auto")
        return epochs

    @field_validator("shares")
    @classmethod
    def _shares_are_shares(cls, shares: dict[str, float] | None) -> dict[str, float] | None:
        return check_shares(shares)

    @property
    def segment_packs(self) -> int:
        """Packs of a segment: whole steps that hold at least `segment_tokens`."""
        assert self.segment_tokens is not None, "resolved"
        steps = math.ceil(self.segment_tokens / (self.pack_tokens * self.global_batch_packs))
        return steps * self.global_batch_packs

    def resolved(self, parts: Sequence[Part]) -> "StreamConfig":
        """The same with numbers for what depends on the corpus."""
        num_tokens = sum(part.rows if part.tokens is None else part.tokens for part in parts)
        segment_tokens = self.segment_tokens or min(SEGMENT_TOKENS, max(num_tokens, 1))
        num_epochs = self.num_epochs(sum(part.rows for part in parts))
        return self.model_copy(update={"epochs": num_epochs, "segment_tokens": segment_tokens})

    def num_epochs(self, num_rows: int) -> int:
        """Number of passes over a corpus of this many rows."""
        if self.epochs != "auto":
            return self.epochs
        low, high = math.log(THREE_EPOCH_ROWS), math.log(ONE_EPOCH_ROWS)
        place = (math.log(max(num_rows, 1)) - low) / (high - low)
        return round(3 - 2 * min(max(place, 0.0), 1.0))

    def micro_steps(self, world: int) -> int:
        """Packs of a rank in each step, fillers included: the most that any rank of this world has in any step."""
        return order.micro_steps(self.lanes, self.global_batch_packs, world)

    def check_world(self, world: int) -> None:
        """Refuse more ranks than lanes.

        Raises:
            ConfigError: naming the key and both numbers.
        """
        if world > self.lanes:
            raise ConfigError(
                f"data.lanes is {self.lanes}, fewer than the {world} processes; raise it to {world} or a multiple, "
                "or start fewer processes"
            )


def check_shares(shares: dict[str, float] | None) -> dict[str, float] | None:
    """The shares, if they are finite, not negative and not all 0."""
    if shares is not None:
        wrong = {pattern: share for pattern, share in shares.items() if not 0 <= share < math.inf}
        if wrong or not sum(shares.values()) > 0:
            raise ValueError(f"shares are 0 or positive numbers, at least one of them positive, not {wrong or shares}")
    return shares


def corpus_digest(parts: Sequence[Part]) -> str:
    """Identity of a split of a corpus, independent of its place: 32 hex digits of its parts' digests and row groups."""
    return hashlib.sha256(canonical_json([[p.sha256, list(p.row_groups)] for p in parts]).encode()).hexdigest()[:32]


def initial_value(config: StreamConfig, seed: int, parts: Sequence[Part], **more: Any) -> dict[str, Any]:
    """What a stream begins with: its recipe, its seed, the corpus's parts by their digests, rows of each cell.

    `more` is what else decides what is read, e.g. `side_tables`, the content digests of the TEACHER_LOGP tables that
    are joined; what is empty is left out.
    """
    recipe = versioned(config.fingerprinted())
    value = {"recipe": recipe, "seed": seed, "corpus": corpus_digest(parts), "cells": rows_of_cells(parts)}
    if config.on_exhausted == "repeat" or config.epochs != 1:
        value["passes"] = PASSES
    return {**value, **{key: found for key, found in more.items() if found}}


@dataclass(frozen=True)
class StreamState:
    """Position of a stream, the same for every rank and number of ranks."""

    log_digest: str
    """Of the decision log up to the segment that was begun last."""
    segment: int
    pack: int
    """Packs of the segment that are behind."""


# --- the corpus --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """Rows `start` to `stop` of a row group: what a lane owns."""

    part: int
    """Position among the parts of the split."""
    row_group: int
    start: int
    stop: int


def cell_of(part: Part) -> str:
    """The cell of a part, e.g. "B1/C1": the values of its folders below the split."""
    return "/".join(folder.partition("=")[2] for folder in part.path.split("/")[1:-1])


def cells_of(parts: Sequence[Part]) -> tuple[str, ...]:
    """The cells of some parts, sorted."""
    return tuple(sorted({cell_of(part) for part in parts}))


def rows_of_cells(parts: Sequence[Part]) -> dict[str, int]:
    """Rows by cell, in the order of `cells_of`."""
    return {cell: sum(part.rows for part in parts if cell_of(part) == cell) for cell in cells_of(parts)}


def split_parts(parts: Iterable[Part], split: str) -> tuple[Part, ...]:
    """The parts of one split, in the order of their paths.

    Raises:
        DataError: there is none.
    """
    found = tuple(sorted((p for p in parts if p.path.startswith(f"split={split}/")), key=lambda p: p.path))
    if not found:
        hint = "; --set evaluate=null trains without held-out rows" if split == "validation" else ""
        raise DataError(
            f"the corpus has no rows in split={split}; run its recipe with another validation_fraction{hint}"
        )
    return found


# --- documents ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DocumentIndex:
    """What planning needs of each document; parallel arrays in the order of the units that were read."""

    part: npt.NDArray[np.int32]
    row_group: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    num_tokens: I64
    weight: npt.NDArray[np.float64]
    id_hash: npt.NDArray[np.uint64]
    cluster_size: npt.NDArray[np.int32]
    """Rows of the document's semantic cluster; 1 where the corpus has no clusters."""
    cluster_rank: npt.NDArray[np.int32]
    """Its place in the cluster, 0 … cluster_size − 1."""
    cell: npt.NDArray[np.int16]
    """Position in the reader's `cells`."""
    supervised: npt.NDArray[np.int32]
    """Tokens in spans (n_analysis + n_commentary + n_final + n_text); -1 where the corpus has no such columns."""
    pair: npt.NDArray[np.int64]
    """Hash of pair_id; 0 for a document without a pair."""
    side: npt.NDArray[np.int8]
    """0 chosen, 1 rejected; -1 without a pair."""

    def __len__(self) -> int:
        return len(self.row)

    def take(self, numbers: I64) -> "DocumentIndex":
        """Some of the documents."""
        return DocumentIndex(*(getattr(self, field.name)[numbers] for field in fields(self)))

    @classmethod
    def concatenate(cls, indexes: Sequence["DocumentIndex"]) -> "DocumentIndex":
        """All documents of one or more indexes, concatenated."""
        return cls(*(np.concatenate([getattr(index, field.name) for index in indexes]) for field in fields(cls)))


TOO_LONG = "longer than pack_tokens"
UNUSABLE = (TOO_LONG, "fewer than 2 tokens", "no supervised token", "weight is not positive")
"""Why a document by itself can never be trained on."""
INCOMPLETE = "pair without both sides"
NOT_SCORED = "not scored by the teacher"
NO_SHARE = "no share"
READ_BEFORE = "read as often as data.epochs says, in the stages before"
LEFT_OUT = (*UNUSABLE, INCOMPLETE, NOT_SCORED, NO_SHARE, READ_BEFORE)


def left_out(index: DocumentIndex, sizes: I64, pack_tokens: int) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
    """Which documents can never be trained on, and how many for each reason of UNUSABLE (the first that holds).

    `sizes` are the tokens that have to fit into one pack with each: its own, or those of both sides of a pair.
    """
    masks = (sizes > pack_tokens, index.num_tokens < 2, index.supervised == 0, ~(index.weight > 0))
    out = np.zeros(len(index), bool)
    counts = {}
    for reason, mask in zip(UNUSABLE, masks, strict=True):
        counts[reason] = int((mask & ~out).sum())
        out |= mask
    return out, counts


def uniform(id_hash: npt.NDArray[np.uint64], seed: int, epoch: int, segment: int) -> npt.NDArray[np.float64]:
    """u(id, seed, epoch, segment) in (0, 1): the mix of SplitMix64 over the id's hash and the three numbers."""
    return uniforms(id_hash, seed, range(epoch, epoch + 1), segment)[0]


def uniforms(id_hash: npt.NDArray[np.uint64], seed: int, epochs: range, segment: int) -> npt.NDArray[np.float64]:
    """u of several epochs: float64 [epochs, ids]."""
    salts = np.array([xxh64(f"{seed}:{epoch}:{segment}".encode()) for epoch in epochs], np.uint64)
    z = id_hash ^ salts[:, None]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return ((z >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
