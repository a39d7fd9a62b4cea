"""Finds, before the first step, which documents the stages of a run drop and whether the rest suffice.

What arms read alike (a corpus, its tables of scores, packs of a size, shares of cells) is surveyed once, from the
narrow index columns. Each rank reads its part of the rows, and one exchange makes the result the same on every rank.
Costs that reading, which a stage does again when it begins, and some 120 bytes a document of a rank's part while it is
counted.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from etl.errors import ConfigError
from training.data.reader import CorpusReader
from training.data.stream.deal import deal_lanes, lanes_of_pairs
from training.data.stream.lane import Items
from training.data.stream.plan import LEFT_OUT, NO_SHARE, NOT_SCORED, DocumentIndex, StreamConfig
from training.data.stream.shares import Groups
from training.stages.schedule import ArmConfig, StageConfig
from training.stages.state import EndedStage
from training.stages.stream import RunStreams

SIZE_STEP = 64
"""Sizes are counted rounded up to a multiple of this many tokens."""
QUANTILE = 0.99
_ANY_LENGTH = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Survey:
    """What some arms have to read, over all ranks."""

    documents: int
    """Of the training split."""
    left_out: Mapping[str, int]
    """Documents that are never trained on, by reason; reasons that occur."""
    tokens: Mapping[str, int]
    """Of what is trained on, by the pattern of `data.shares`; "*" without shares."""
    too_long: int
    """Documents that do not fit in a pack, a pair taken as the sum of its sides."""
    sizes: Mapping[int, int]
    """Documents by what has to fit in a pack with them, rounded up to SIZE_STEP; those without a share left out."""
    longest: int
    """Tokens of the longest of them."""
    has_pairs: bool

    @classmethod
    def merged(cls, parts: Sequence["Survey"]) -> "Survey":
        """That of all ranks."""
        return cls(
            documents=sum(part.documents for part in parts),
            left_out=_sum([part.left_out for part in parts]),
            tokens=_sum([part.tokens for part in parts]),
            too_long=sum(part.too_long for part in parts),
            sizes=_sum([part.sizes for part in parts]),
            longest=max(part.longest for part in parts),
            has_pairs=any(part.has_pairs for part in parts),
        )

    @property
    def share_too_long(self) -> float:
        """Of the documents that have a share and scores, those that do not fit."""
        return self.too_long / max(sum(self.sizes.values()), 1)

    def size_of(self, quantile: float) -> int:
        """Tokens of a pack in which that part of the documents fits."""
        left = math.ceil(quantile * sum(self.sizes.values()))
        for size in sorted(self.sizes):
            left -= self.sizes[size]
            if left <= 0:
                return min(size, self.longest)
        return self.longest

    def counts(self) -> dict[str, int]:
        """All documents, and those left out by reason."""
        return {"documents": self.documents, **self.left_out}

    def told(self) -> str:
        """In words."""
        total = sum(self.left_out.values())
        if not total:
            return f"{self.documents:,} documents, none of them left out"
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
        return f"{total:,} of {self.documents:,} documents ({total / self.documents:.1%}) are left out: {reasons}"


def _sum(parts: Sequence[Mapping[Any, int]]) -> dict[Any, int]:
    total: Counter[Any] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)


@dataclass(frozen=True)
class SurveyedArm:
    """An arm with what it reads and what there is of it."""

    stage: StageConfig
    arm: ArmConfig
    data: StreamConfig
    survey: Survey

    @property
    def name(self) -> str:
        """For the user: the stage, and the arm where there are several."""
        return f"'{self.stage.name}'" if len(self.stage.arms) == 1 else f"'{self.stage.name}' / '{self.arm.name}'"

    @property
    def epochs(self) -> int:
        return self.data.num_epochs(self.survey.documents)

    @property
    def repeats(self) -> bool:
        """Whether its documents never end."""
        return self.data.on_exhausted == "repeat"

    @property
    def needed_tokens(self) -> float:
        """Its part of the stage's target."""
        return self.stage.tokens * self.arm.share / sum(arm.share for arm in self.stage.arms)

    @property
    def tokens(self) -> float:
        """Of one pass, as far as the shares let it read before a group has no unread document."""
        shares = self.data.shares
        if shares is None or self.data.on_exhausted != "stop":
            return float(sum(self.survey.tokens.values()))
        total = sum(shares.values())
        return min(self.survey.tokens.get(name, 0) * total / share for name, share in shares.items() if share > 0)


# --- reading ----------------------------------------------------------------------------------------------------------


def survey_stages(
    streams: RunStreams,
    stages: Sequence[StageConfig],
    ranks: tuple[int, int] = (0, 1),
    gather: Callable[[Any], list[Any]] = lambda mine: [mine],
) -> list[SurveyedArm]:
    """Every arm of some stages with what there is to read. Every rank must call it.

    Args:
        streams: of the run.
        stages: which.
        ranks: (rank, number of ranks).
        gather: gives the value of each rank on every rank (World.gather).

    Raises:
        ConfigError, DataError, SchemaError: as the run itself would.
    """
    arms = [(stage, arm, streams.config_of(stage, arm)) for stage in stages for arm in stage.arms]
    distinct = {_source(data): data for _, _, data in arms}
    mine = [_survey(streams, data, ranks) for data in distinct.values()]
    merged = [Survey.merged(parts) for parts in zip(*gather(mine), strict=True)]
    found = dict(zip(distinct, merged, strict=True))
    return [SurveyedArm(stage, arm, data, found[_source(data)]) for stage, arm, data in arms]


def _source(data: StreamConfig) -> tuple[Any, ...]:
    """Equal for arms that find the same documents."""
    shares = None if data.shares is None else tuple(sorted(data.shares.items()))
    return data.corpus, data.teacher, data.reference, data.pack_tokens, shares


def _survey(streams: RunStreams, data: StreamConfig, ranks: tuple[int, int]) -> Survey:
    """This rank's part."""
    reading = streams.read.model_copy(update={"cache_gib": 0})
    with closing(CorpusReader(data.corpus, "train", reading, data.teacher, data.reference)) as reader:
        index, scored = _own_index(reader, streams.seed, ranks)
        groups = Groups.of(data.shares, reader.cells)
        return _counted(index, scored, groups, data.pack_tokens, reader.has_pairs)


def _own_index(reader: CorpusReader, seed: int, ranks: tuple[int, int]) -> tuple[DocumentIndex, Any]:
    """A rank's part of the rows, the sides of a pair in one part, and which of them all tables have."""
    rank, size = ranks
    tables = list(reader.side_tables.values())
    if reader.has_pairs:
        index, scored = reader.read_scored_index(reader.whole, seed, tables)
        own = np.flatnonzero(lanes_of_pairs(index, size, seed) == rank)
        index, scored = index.take(own), scored[:, own]
    else:
        index, scored = reader.read_scored_index(deal_lanes(reader.parts, size, seed)[rank], seed, tables)
    return index, scored.all(axis=0)


def _counted(index: DocumentIndex, scored: Any, groups: Groups, pack_tokens: int, has_pairs: bool) -> Survey:
    has_share = groups.of_cell[index.cell] >= 0
    read = index.take(np.flatnonzero(scored & has_share))
    items, left_out = Items.of(read, pack_tokens)
    left_out |= {NOT_SCORED: int((~scored).sum()), NO_SHARE: int((scored & ~has_share).sum())}
    everything, _ = Items.of(read, _ANY_LENGTH)
    sides = (everything.documents >= 0).sum(axis=1)
    rounded = -(-everything.num_tokens // SIZE_STEP) * SIZE_STEP
    sizes, places = np.unique(rounded, return_inverse=True)
    group = groups.of_cell[read.cell[items.chosen]]
    tokens = np.bincount(group, weights=items.num_tokens, minlength=len(groups.patterns))
    return Survey(
        documents=len(index),
        left_out={reason: left_out[reason] for reason in LEFT_OUT if left_out.get(reason)},
        tokens={pattern: int(count) for pattern, count in zip(groups.patterns, tokens, strict=True)},
        too_long=int(sides[everything.num_tokens > pack_tokens].sum()),
        sizes=dict(zip(sizes.tolist(), np.bincount(places, weights=sides).astype(int).tolist(), strict=True)),
        longest=int(everything.num_tokens.max(initial=0)),
        has_pairs=has_pairs,
    )


# --- what is said -----------------------------------------------------------------------------------------------------


def left_out_lines(arms: Sequence[SurveyedArm]) -> Iterator[str]:
    """The dropped documents: one line for arms that read the same."""
    alike: dict[tuple[Any, ...], list[SurveyedArm]] = {}
    for arm in arms:
        alike.setdefault(_source(arm.data), []).append(arm)
    for group in alike.values():
        yield f"{', '.join(arm.name for arm in group)}: {group[0].survey.told()}"


def left_out_counts(arms: Sequence[SurveyedArm]) -> dict[str, dict[str, dict[str, int]]]:
    """By stage and arm: all documents, and those left out by reason."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for arm in arms:
        found.setdefault(arm.stage.name, {})[arm.arm.name] = arm.survey.counts()
    return found


def check_left_out(arms: Sequence[SurveyedArm]) -> None:
    """Refuse arms whose packs are too short for more documents than `data.max_left_out` allows.

    Raises:
        ConfigError: with both remedies.
    """
    for arm in arms:
        survey, data = arm.survey, arm.data
        share = survey.share_too_long
        if share > data.max_left_out:
            pairs = " (a pair is as long as both its sides together)" if survey.has_pairs else ""
            allowed = min(math.ceil(share * 100) / 100, 1.0)
            raise ConfigError(
                f"stage {arm.name}: {survey.too_long:,} of {sum(survey.sizes.values()):,} documents ({share:.1%}) are "
                f"longer than data.pack_tokens = {data.pack_tokens:,}{pairs} and would be left out, more than "
                f"data.max_left_out = {data.max_left_out:g} allows; raise data.pack_tokens to "
                f"{survey.size_of(QUANTILE):,} for {QUANTILE:.0%} of the documents or to {survey.longest:,} for the "
                f"longest, or raise data.max_left_out to {allowed:g}"
            )


def shortages(
    arms: Sequence[SurveyedArm], rate: Callable[[StageConfig, int], float], read_before: Mapping[str, float]
) -> Iterator[str]:
    """One line for each arm whose documents end before its stage's target, as far as that is known by then.

    Arms of one corpus that continue draw on one supply, stage after stage; one that reads a part of it (by a table of
    scores or by shares) is compared with that part alone. What limits clusters is not counted.

    Args:
        arms: all of the stages, in order.
        rate: the learning rate of a stage at one of its tokens.
        read_before: tokens that the stages before these have read, by corpus (`read_in`).
    """
    read = dict(read_before)
    whole: dict[str, float] = {}
    for arm in arms:
        whole[arm.data.corpus] = max(arm.tokens, whole.get(arm.data.corpus, 0))
    for _, of_stage in groupby(arms, key=lambda arm: arm.stage.name):
        here = list(of_stage)
        continuing = [arm for arm in here if arm.data.order == "continue"]
        for corpus in dict.fromkeys(arm.data.corpus for arm in continuing):
            drawing = [arm for arm in continuing if arm.data.corpus == corpus]
            needed = sum(arm.needed_tokens for arm in drawing)
            before = read.get(corpus, 0)
            of_all = [arm for arm in drawing if arm.tokens == whole[corpus]]
            if of_all:
                yield from _shortage(of_all[0], needed, before, rate)
            supply = max((math.inf if arm.repeats else arm.tokens * arm.epochs) for arm in drawing)
            read[corpus] = max(before, min(before + needed, supply))
        for arm in here:
            if arm.data.order == "fresh" or arm.tokens < whole[arm.data.corpus]:
                yield from _shortage(arm, arm.needed_tokens, 0, rate)


def read_in(streams: RunStreams, stages: Sequence[StageConfig], ended: Sequence[EndedStage]) -> dict[str, float]:
    """Tokens that stages which are over have read of each corpus, for those that continue it."""
    read: dict[str, float] = {}
    for stage, end in zip(stages, ended, strict=False):
        total = sum(arm.share for arm in stage.arms)
        for arm in stage.arms:
            data = streams.config_of(stage, arm)
            if data.order == "continue":
                read[data.corpus] = read.get(data.corpus, 0) + end.tokens * arm.share / total
    return read


def _shortage(arm: SurveyedArm, needed: float, read: float, rate: Callable[[StageConfig, int], float]) -> Iterator[str]:
    available = max(arm.tokens * arm.epochs - read, 0)
    if arm.repeats or available >= needed:
        return
    end = round(arm.stage.tokens * available / needed)
    before = f", of which the stages before read {read:,.0f}," if read else ""
    epochs = math.ceil((read + needed) / max(arm.tokens, 1))
    anew = ", or data.order to fresh" if read else ""
    yield (
        f"stage {arm.name} cannot reach its target: {arm.tokens:,.0f} tokens x {arm.epochs} epochs{before} are fewer "
        f"than the {needed:,.0f} it is to read, so the stage ends after about {end:,} of {arm.stage.tokens:,} tokens, "
        f"at a rate of about {rate(arm.stage, max(end, 1)):.3g}, while its schedule ends at "
        f"{rate(arm.stage, arm.stage.tokens):.3g}; set tokens to {max(end, 1):,}, data.epochs to {epochs}, or "
        f"data.on_exhausted to repeat{anew}"
    )
