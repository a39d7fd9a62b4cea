"""The training stream as a pure function of (manifest, recipe, seed, decision log).

The corpus is dealt to L canonical *lanes*. Lanes own row groups; one that is too large for lanes to balance is cut into
strided slices, so a small corpus fills all lanes too. Pack p of the run comes from lane p mod L, always, and a global
step takes `global_batch_packs` consecutive packs; rank r of W takes the packs and owns the lanes that are r modulo W,
so W must divide both numbers and the stream is the same for every W.

The run is cut into *segments* of whole steps. What the stream depends on is written in decision records; a segment
sees the records up to its own number. Inside a segment a lane ranks its unread documents by -log u(id, seed, epoch,
segment) / weight (Efraimidis and Spirakis 2006), u a hash, and packs them in that order; documents that were looked at
but not packed go back. With `clusters`, an epoch of a lane has only the documents whose turn in their cluster it is,
and rare clusters keep a share of its tokens (etl/mixture/cluster_caps.py). A position in the stream is (log digest,
segment, pack): a lane gets there by planning again from its first segment, from lengths alone (about 0.1 ms a pack),
reading no tokens.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from etl.config import Config
from etl.errors import ConfigError, DataError
from etl.hashing import canonical_json, xxh64
from etl.mixture.cluster_caps import ClusterCaps, first_epoch, next_epoch, with_tail
from etl.storage.manifest import Part
from training.data.packing import IntArray, pack

UNITS_PER_LANE = 8
"""A row group is cut when it is larger than a lane's share divided by this; lanes then differ by some per cent."""


class StreamConfig(Config):
    """What is trained on, and in what order. Changing any of it but `corpus` starts another stream."""

    corpus: str
    """Folder or URL of a committed corpus (split=…/skill_bucket=…/ctx_bucket=…)."""
    pack_tokens: int = Field(ge=2)
    """Tokens of one training sequence; longer documents are left out and counted."""
    global_batch_packs: int = Field(ge=1)
    """Packs of one optimizer step over all ranks; the number of ranks must divide it."""
    lanes: int = Field(default=64, ge=1)
    """Canonical lanes; the number of ranks must divide it."""
    segment_tokens: int = Field(default=64_000_000, ge=1)
    """Length of a segment in tokens of pack capacity; a rank holds its share of one in memory (4 bytes a token)."""
    lookahead_docs: int = Field(default=1024, ge=1)
    on_exhausted: Literal["stop", "repeat"] = "stop"
    """At the end of a lane's documents: fill its turns with empty packs and stop with the last lane, or go round."""
    clusters: ClusterCaps | None = None
    """Limits by semantic cluster; the corpus must have been through the stage `semantic`."""

    @property
    def segment_packs(self) -> int:
        """Packs of a segment: whole steps that hold at least `segment_tokens`."""
        steps = math.ceil(self.segment_tokens / (self.pack_tokens * self.global_batch_packs))
        return steps * self.global_batch_packs

    def check_world(self, world: int) -> None:
        """Refuse a number of ranks that cannot share packs and lanes evenly.

        Raises:
            ConfigError: naming the key whose value it does not divide.
        """
        for key, value in (("global_batch_packs", self.global_batch_packs), ("lanes", self.lanes)):
            if value % world:
                raise ConfigError(
                    f"data.{key} is {value}, which {world} processes cannot share evenly; make it a multiple of {world}"
                )


# --- decisions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """One immutable record of the log. `digest` covers the record and everything before it."""

    segment: int
    kind: str
    value: dict[str, Any]
    digest: str

    @classmethod
    def after(cls, previous: str, segment: int, kind: str, value: dict[str, Any]) -> "Decision":
        """The record that follows one with the digest `previous` ("" for the first)."""
        body = canonical_json({"after": previous, "segment": segment, "kind": kind, "value": value})
        return cls(segment, kind, value, hashlib.sha256(body.encode()).hexdigest()[:32])


def first_decision(config: StreamConfig, seed: int, parts: Sequence[Part]) -> Decision:
    """The record of segment 0: the recipe of the stream and the corpus's parts by their digests."""
    # A stream without limits has the digest that it had before there were any.
    left_out = {"corpus"} if config.clusters else {"corpus", "clusters"}
    recipe = config.model_dump(mode="json", exclude=left_out)
    corpus = hashlib.sha256(canonical_json([[p.sha256, list(p.row_groups)] for p in parts]).encode()).hexdigest()[:32]
    value = {"recipe": recipe, "seed": seed, "corpus": corpus, "weight": "sampling_weight"}
    return Decision.after("", 0, "initial", value)


@dataclass(frozen=True)
class StreamState:
    """Where a stream stands, the same for every rank and every number of ranks."""

    log_digest: str
    segment: int
    pack: int
    """Packs of the segment that are behind."""


# --- lanes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """Rows `offset`, `offset + stride`, … of a row group: what a lane owns."""

    part: int
    """Position among the parts of the split."""
    row_group: int
    stride: int
    offset: int
    num_tokens: float
    """Estimated from the part's tokens (rows where the manifest has none)."""


def split_parts(parts: Iterable[Part], split: str) -> tuple[Part, ...]:
    """The parts of one split, in the order of their paths.

    Raises:
        DataError: there is none.
    """
    found = tuple(sorted((p for p in parts if p.path.startswith(f"split={split}/")), key=lambda p: p.path))
    if not found:
        raise DataError(f"the corpus has no part under split={split}; lay it out again with rows in that split")
    return found


def deal_lanes(parts: Sequence[Part], num_lanes: int, seed: int) -> tuple[tuple[Unit, ...], ...]:
    """The units of each lane: largest first to the lightest lane, ties by a seeded hash. Only the manifest is used."""
    groups = [
        (index, group, (part.rows if part.tokens is None else part.tokens) * rows / max(part.rows, 1))
        for index, part in enumerate(parts)
        for group, rows in enumerate(part.row_groups)
    ]
    largest = sum(tokens for _, _, tokens in groups) / (num_lanes * UNITS_PER_LANE)
    units = [
        Unit(index, group, stride, offset, tokens / stride)
        for index, group, tokens in groups
        for stride in [min(math.ceil(tokens / largest), parts[index].row_groups[group]) if tokens else 1]
        for offset in range(stride)
    ]

    def order(unit: Unit) -> tuple[float, int]:
        # Without the digest in the file's name: the same rows laid out by another build are dealt alike.
        name = f"{parts[unit.part].path.rpartition('-')[0]}:{unit.row_group}:{unit.offset}"
        return -unit.num_tokens, xxh64(name.encode(), seed)

    lanes: list[list[Unit]] = [[] for _ in range(num_lanes)]
    loads = np.zeros(num_lanes)
    for unit in sorted(units, key=order):
        lightest = int(np.argmin(loads))
        lanes[lightest].append(unit)
        loads[lightest] += unit.num_tokens
    return tuple(tuple(lane) for lane in lanes)


# --- documents ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DocumentIndex:
    """What planning needs of each document of a lane; parallel arrays in the order of the lane's units."""

    part: npt.NDArray[np.int32]
    row_group: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    num_tokens: IntArray
    weight: npt.NDArray[np.float64]
    id_hash: npt.NDArray[np.uint64]
    cluster_size: npt.NDArray[np.int32]
    """Rows of the document's semantic cluster; 1 where the corpus has no clusters."""
    cluster_rank: npt.NDArray[np.int32]
    """Its place in the cluster, 0 … cluster_size − 1."""

    def __len__(self) -> int:
        return len(self.row)

    def take(self, numbers: IntArray) -> "DocumentIndex":
        """Some of the documents."""
        return DocumentIndex(*(getattr(self, field.name)[numbers] for field in fields(self)))

    @classmethod
    def concatenate(cls, indexes: Sequence["DocumentIndex"]) -> "DocumentIndex":
        """All documents of one or more indexes, one behind the other."""
        return cls(*(np.concatenate([getattr(index, field.name) for index in indexes]) for field in fields(cls)))


LEFT_OUT = ("longer than pack_tokens", "fewer than 2 tokens", "weight is not positive")


def left_out(index: DocumentIndex, pack_tokens: int) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
    """Which documents can never be trained on, and how many for each reason (the first that holds)."""
    masks = (index.num_tokens > pack_tokens, index.num_tokens < 2, ~(index.weight > 0))
    out = np.zeros(len(index), bool)
    counts = {}
    for reason, mask in zip(LEFT_OUT, masks, strict=True):
        counts[reason] = int((mask & ~out).sum())
        out |= mask
    return out, counts


def uniform(id_hash: npt.NDArray[np.uint64], seed: int, epoch: int, segment: int) -> npt.NDArray[np.float64]:
    """u(id, seed, epoch, segment) in (0, 1): the mix of SplitMix64 over the id's hash and the three numbers."""
    salt = np.uint64(xxh64(f"{seed}:{epoch}:{segment}".encode()))
    z = id_hash ^ salt
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return ((z >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


@dataclass(frozen=True)
class LaneSegment:
    """A lane's packs of one segment: document numbers of the lane, fewer packs than asked for when it ran out."""

    packs: tuple[IntArray, ...]
    documents_left: bool
    """Whether the lane has more for the next segment."""


class LanePlan:
    """One lane's packs, segment after segment."""

    def __init__(self, index: DocumentIndex, config: StreamConfig, seed: int) -> None:
        self.index = index
        self.config = config
        self.seed = seed
        out, self.num_left_out = left_out(index, config.pack_tokens)
        self._usable = np.flatnonzero(~out)
        cap = config.clusters.cap if config.clusters else None
        self._turns = _Turns(index.cluster_size.astype(np.int64), index.cluster_rank.astype(np.int64), cap)
        self._due = self._turns.first()
        """The epoch in which each document is read next."""
        self._next_segment = 0

    def segment(self, number: int, num_packs: int) -> LaneSegment:
        """Plan the next segment; they must be asked for in order, from 0."""
        assert number == self._next_segment, "segments are planned in order"
        self._next_segment += 1
        if len(self._usable) == 0:
            return LaneSegment((), False)
        stream = pack(self._ranked(number), self.index.num_tokens, self.config.pack_tokens, self.config.lookahead_docs)
        packs = tuple(packed for _, packed in zip(range(num_packs), stream, strict=False))
        self._read(packs)
        left = self.config.on_exhausted == "repeat" or bool((self._due[self._usable] == 0).any())
        return LaneSegment(packs, left)

    def _read(self, packs: Sequence[IntArray]) -> None:
        """Note what was packed; a small lane packs a document several times, once an epoch."""
        documents, times = np.unique(np.concatenate([np.empty(0, np.int64), *packs]), return_counts=True)
        for time in range(int(times.max(initial=0))):
            again = documents[times > time]
            self._due[again] = self._turns.after(again, self._due[again])

    def _ranked(self, segment: int) -> Iterator[IntArray]:
        """Blocks of documents, an epoch each: those that are due in it, by rank."""
        due = self._due.copy()
        epoch = int(due[self._usable].min())
        while epoch == 0 or self.config.on_exhausted == "repeat":
            unread = self._usable[due[self._usable] == epoch]
            u = uniform(self.index.id_hash[unread], self.seed, epoch, segment)
            ranked = unread[np.argsort(-np.log(u) / self.index.weight[unread], kind="stable")]
            if self.config.clusters is not None:
                rare = self.index.cluster_size <= self.config.clusters.rare_size
                ranked = with_tail(ranked, self.index.num_tokens, rare, self.config.clusters.tail_share)
            yield ranked
            due[unread] = self._turns.after(unread, due[unread])
            epoch += 1


@dataclass(frozen=True)
class _Turns:
    """In which epochs each document is read."""

    size: IntArray
    rank: IntArray
    cap: int | None

    def first(self) -> IntArray:
        return np.zeros(len(self.rank), np.int64) if self.cap is None else first_epoch(self.rank, self.cap)

    def after(self, documents: IntArray, epochs: IntArray) -> IntArray:
        """The next epoch of some documents after that in which each was read."""
        if self.cap is None:
            return epochs + 1
        return next_epoch(self.size[documents], self.rank[documents], epochs, self.cap)


def turns(lane: int, num_lanes: int, start: int, stop: int) -> int:
    """How many packs p with start <= p < stop come from a lane, i.e. are congruent to it modulo `num_lanes`."""
    return (stop - 1 - lane) // num_lanes - (start - 1 - lane) // num_lanes
