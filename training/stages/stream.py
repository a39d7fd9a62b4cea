"""The global steps of one stage for one rank: each step's arm, and the packs that its stream gives.

An arm's stream is opened with its first step and keeps its own decision log in decisions/<stage>/<arm>, so that what an
operator decides for one arm leaves the others alone. Memory is that of the open streams together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from etl.errors import ConfigError
from etl.storage.location import Location
from etl.storage.stale import outdated
from training.data.collate import Pack
from training.data.reader import PAIR_COLUMNS, CorpusReader, ReadConfig, open_corpus
from training.data.stream.decisions import DecisionLog
from training.data.stream.lanes import RankStream
from training.data.stream.plan import StreamConfig, StreamState, initial_value, rows_of_cells, split_parts
from training.data.stream.shares import Groups
from training.data.stream.stream import DocumentStream, Step
from training.launch.world import World
from training.stages.schedule import ArmConfig, StageConfig, stream_of

OpenStream = Callable[[ArmConfig], DocumentStream]


@dataclass(frozen=True)
class ArmStep:
    """A global step of a stage: its arm and this rank's share of its packs."""

    arm: ArmConfig
    local: Step
    global_packs: int
    """Packs of the step over all ranks, fillers left out."""

    @property
    def packs(self) -> tuple[Pack, ...]:
        return self.local.packs

    @property
    def slots(self) -> tuple[int, ...]:
        return self.local.slots

    @property
    def lanes_left(self) -> int:
        return self.local.lanes_left


@dataclass(frozen=True)
class GlobalStep:
    """A global step as all ranks together know it."""

    arm: ArmConfig
    packs: tuple[Pack, ...]
    """This rank's."""
    counts: torch.Tensor
    """float64: the objective's counts."""
    num_tokens: int
    num_supervised: int
    capacity: int
    """Tokens that the step's packs could hold."""
    is_over: bool
    """Whether the arm's stream is over: no document is left."""
    stops: bool
    """Whether some rank was asked to stop."""


def over_all_ranks(drawn: ArmStep, here: World, stops: bool) -> GlobalStep:
    """What all ranks together have in a step, in one all-reduce. Every rank must call it."""
    packs, objective = drawn.packs, drawn.arm.objective
    counts = np.sum([objective.counts(pack) for pack in packs], axis=0)
    num_tokens = sum(pack.num_tokens for pack in packs)
    num_supervised = sum(int(pack.span_counts().sum()) for pack in packs)
    mine = [*counts, num_tokens, num_supervised, drawn.lanes_left, float(stops)]
    total = here.sum(torch.tensor(mine, dtype=torch.float64))
    num_tokens, num_supervised, lanes_left, num_stops = (int(value) for value in total[-4:])
    return GlobalStep(
        arm=drawn.arm,
        packs=packs,
        counts=total[:-4],
        num_tokens=num_tokens,
        num_supervised=num_supervised,
        capacity=drawn.global_packs * len(packs[0].input_ids),
        is_over=lanes_left == 0,
        stops=num_stops > 0,
    )


class StageStream:
    """The steps of a stage, in order; the same for every number of ranks."""

    def __init__(self, stage: StageConfig, seed: int, open_stream: OpenStream) -> None:
        self._stage = stage
        self._seed = seed
        self._open_stream = open_stream
        self._streams: dict[str, DocumentStream] = {}
        self._resumed: dict[str, StreamState] = {}
        self._steps = 0

    @property
    def state(self) -> tuple[int, dict[str, StreamState]]:
        """Global steps given out, and where each arm that has had a step stands."""
        return self._steps, {**self._resumed, **{name: stream.state for name, stream in self._streams.items()}}

    def seek(self, state: tuple[int, dict[str, StreamState]]) -> None:
        """Resume from a state of any rank of any run of this stage."""
        assert not self._streams, "a stream is sought before its first step"
        self._steps, resumed = state
        self._resumed = dict(resumed)

    def next_step(self) -> ArmStep:
        """The next global step."""
        arm = self._stage.arm_of(self._steps, self._seed)
        stream = self._stream(arm)
        local = stream.next_step()
        self._steps += 1
        return ArmStep(arm, local, stream.global_batch_packs)

    def labels(self, arm: ArmConfig) -> Sequence[tuple[str | None, ...]]:
        """What `Pack.label` numbers in the packs of an arm."""
        return self._stream(arm).labels

    def _stream(self, arm: ArmConfig) -> DocumentStream:
        """The stream of an arm, opened and at its place."""
        if arm.name not in self._streams:
            stream = self._open_stream(arm)
            if arm.name in self._resumed:
                stream.seek(self._resumed[arm.name])
            self._streams[arm.name] = stream
        return self._streams[arm.name]

    def left_out(self) -> dict[str, int]:
        """Documents of the open streams that are never trained on, by reason."""
        total: dict[str, int] = {}
        for stream in self._streams.values():
            for reason, count in stream.left_out().items():
                total[reason] = total.get(reason, 0) + count
        return total

    def close(self) -> None:
        """Give back what the streams hold."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()


OpenLog = Callable[[Location, dict[str, Any]], DecisionLog]
"""DecisionLog.open, which begins or continues a run's log, or DecisionLog.preview, which writes nothing."""


@dataclass(frozen=True)
class RunStreams:
    """Opens the streams of a run's arms: what of its configuration decides which documents they give, and when."""

    data: StreamConfig
    """Of the run; stages and arms change single keys of it."""
    read: ReadConfig
    seed: int
    decisions: Path
    """Folder of the decision logs, <stage>/<arm> below it."""

    def config_of(self, stage: StageConfig, arm: ArmConfig) -> StreamConfig:
        """What an arm is trained on.

        Raises:
            ConfigError: a key or a value of the stage or the arm is wrong.
        """
        return stream_of(self.data, stage, arm)

    def log_folder(self, stage: StageConfig, arm: ArmConfig) -> Location:
        """Where the decisions of an arm lie."""
        return Location.of(self.decisions / stage.name / arm.name)

    def open_arm(
        self,
        stage: StageConfig,
        arm: ArmConfig,
        ranks: tuple[int, int],
        open_log: OpenLog,
        vocab_sizes: Mapping[str, int] = MappingProxyType({}),
    ) -> RankStream:
        """The stream of an arm for `ranks`, (rank, number of ranks), and for models with these vocabularies."""
        data = self.config_of(stage, arm)
        reader = CorpusReader(data.corpus, "train", self.read, data.teacher, data.reference, vocab_sizes)
        scores = [table.dataset.manifest.content_digest for table in reader.side_tables]
        log = open_log(self.log_folder(stage, arm), initial_value(data, self.seed, reader.parts, scores))
        return RankStream(reader, data, self.seed, log, *ranks)

    def open_stage(
        self,
        stage: StageConfig,
        rank: int,
        num_ranks: int,
        open_log: OpenLog,
        vocab_sizes: Mapping[str, int] = MappingProxyType({}),
    ) -> StageStream:
        """The steps of a stage."""

        def open_stream(arm: ArmConfig) -> RankStream:
            return self.open_arm(stage, arm, (rank, num_ranks), open_log, vocab_sizes)

        return StageStream(stage, self.seed, open_stream)


def outdated_corpora(streams: RunStreams, stages: Sequence[StageConfig]) -> Iterator[str]:
    """One line for each corpus of stages that is not what the run beside it makes any more.

    Such a corpus is sound, and a training run that has begun with it must be able to go on; so it is told, not refused.
    """
    corpora = {streams.config_of(stage, arm).corpus for stage in stages for arm in stage.arms}
    yield from filter(None, map(outdated, sorted(corpora)))


def check_corpora(streams: RunStreams, stages: Sequence[StageConfig]) -> None:
    """Refuse corpora of stages that lack cells of `data.shares` or pairs, by their manifests alone.

    A stage opens its streams when it begins; what it lacks is better known before the stages ahead of it are trained.

    Raises:
        ConfigError: a share names no cell, a cell has fewer documents than there are lanes, or there are no pairs.
        DataError: there is no committed corpus, or none of its rows are in the training split.
    """
    for stage in stages:
        for arm in stage.arms:
            data = streams.config_of(stage, arm)
            corpus = open_corpus(data.corpus)
            if "pairs" in arm.objective.needs and not set(PAIR_COLUMNS) <= set(corpus.schema.names):
                raise ConfigError(
                    f"the objective '{arm.objective.kind}' of stage '{stage.name}' needs preference pairs, but "
                    f"{data.corpus} has no columns {', '.join(PAIR_COLUMNS)}; give a corpus of pairs"
                )
            rows = rows_of_cells(split_parts(corpus.manifest.parts, "train"))
            groups = Groups.of(data.shares, list(rows))
            if data.shares is not None and data.on_exhausted != "redistribute":
                groups.check_rows(rows, data.lanes)
