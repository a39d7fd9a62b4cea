"""Checks all stages before the first step of a run: sizes that must fit a head, and span kinds.

A number that is compared with a head's size comes from many places: the corpora and held-out sets, `vocab_size` of an
objective, a teacher's head, a table of a teacher's likeliest tokens. Each is checked here, by the footers of files
alone, so that no stage is trained in vain. The cost is one footer a part; ranks share the parts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from etl.errors import ConfigError, DataError
from etl.storage.dataset import Dataset
from etl.storage.manifest import Part
from training.data.footers import Largest, largest_in, largest_of
from training.data.reader import beyond_vocabulary, open_corpus
from training.data.span_rates import SpanRates, counted, told
from training.data.stream.plan import split_parts
from training.data.teacher_table import LOGP_ROUNDING
from training.launch.world import World
from training.losses.objective import Divergence
from training.losses.spans import SpanObjective
from training.stages.schedule import ArmConfig, StageConfig
from training.stages.stream import RunStreams

T = TypeVar("T")


@dataclass(frozen=True)
class Heads:
    """Rows of the heads of a run's models."""

    student: int
    teacher: int | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """By what each model is called in an error."""
        return {"the student": self.student} | ({} if self.teacher is None else {"the teacher": self.teacher})


@dataclass(frozen=True)
class Preflight:
    """The stages that are still to be trained; every rank makes the same calls.

    `here` shares the reading among the ranks of a run; None where this process reads all (a dry run).
    """

    streams: RunStreams
    stages: Sequence[StageConfig]
    here: World | None = None

    def check_sizes(self, heads: Heads, held_out: Iterable[tuple[str, str]] = ()) -> None:
        """Refuse what no head has a row for, and log-probabilities above 0.

        Args:
            heads: of the student, and of the model `teacher` of the run.
            held_out: corpus and split of each further set that is evaluated.

        Raises:
            ConfigError: the heads differ and no `vocab_size` says how; a corpus, a held-out set or a teacher's table
                holds an id beyond a head, or beyond what an objective compares.
            DataError: a table of scores has a log-probability above 0, or a file is damaged.
        """
        for _, arm in self._arms():
            if isinstance(arm.objective, Divergence) and heads.teacher is not None:
                arm.objective.check_heads(heads.student, heads.teacher)
        found: dict[tuple[str, str], Largest] = {}
        for corpus, split in (*((self._corpus(*arm), "train") for arm in self._arms()), *held_out):
            if (corpus, split) not in found:
                found[corpus, split] = self._largest_id(corpus, split)
                _check_corpus(corpus, found[corpus, split], heads)
        for stage, arm in self._arms():
            self._check_arm(stage, arm, heads, found[self._corpus(stage, arm), "train"])

    def span_rates(self) -> dict[tuple[str, str], SpanRates]:
        """How often an arm's corpus holds each kind of span, by stage and arm; of arms whose loss is one of tokens.

        Raises:
            DataError: a file is damaged.
        """
        arms = [(stage, arm) for stage, arm in self._arms() if isinstance(arm.objective, SpanObjective)]
        corpora = {(stage.name, arm.name): self._corpus(stage, arm) for stage, arm in arms}
        rates = {corpus: self._rates(corpus) for corpus in sorted(set(corpora.values()))}
        return {arm: rates[corpus] for arm, corpus in corpora.items()}

    # --- sizes

    def _check_arm(self, stage: StageConfig, arm: ArmConfig, heads: Heads, largest: Largest) -> None:
        name = f"the objective '{arm.objective.kind}' of stage '{stage.name}', arm '{arm.name}'"
        compared = arm.objective.vocab_size if isinstance(arm.objective, Divergence) else None
        if compared is not None and largest.value >= compared:
            raise ConfigError(
                f"{name} compares {compared:,} ids (objective.vocab_size), but {largest.place} of "
                f"{self._corpus(stage, arm)} has the token id {int(largest.value):,}, which would be left out; set "
                f"it to the tokenizer's size, at least {int(largest.value) + 1:,}, or to null"
            )
        data = self.streams.config_of(stage, arm)
        for folder in filter(None, (data.teacher, data.reference)):
            columns = ["logp", *(["topk_ids", "topk_logp"] if "topk" in arm.objective.needs else [])]
            table = Dataset.open(folder)
            of = self._over_parts(table, table.manifest.parts, columns)
            for column in columns[::2]:
                _check_logp(folder, column, of[column])
            if "topk_ids" in of and of["topk_ids"].value >= heads.student:
                raise ConfigError(
                    f"{name}: {of['topk_ids'].place} of {folder} has the token id {int(of['topk_ids'].value):,} in "
                    f"a teacher's top-k, but the student's head has {heads.student:,} rows; use a student with the "
                    "teacher's vocabulary, or rescore with a teacher that has the student's"
                )

    def _largest_id(self, corpus: str, split: str) -> Largest:
        dataset = open_corpus(corpus)
        return self._over_parts(dataset, split_parts(dataset.manifest.parts, split), ["input_ids"])["input_ids"]

    def _over_parts(self, dataset: Dataset, parts: Sequence[Part], columns: Sequence[str]) -> dict[str, Largest]:
        found = self._gathered(parts, lambda own: largest_in(dataset, own, columns))
        return {column: largest_of(one[column] for one in found) for column in columns}

    # --- span kinds

    def _rates(self, corpus: str) -> SpanRates:
        dataset = open_corpus(corpus)
        parts = split_parts(dataset.manifest.parts, "train")
        counts = told(dataset.manifest, "train")
        sizes = [part.tokens for part in parts]
        if counts is None or None in sizes:
            total = np.sum(self._gathered(parts, lambda own: counted(dataset, own)), axis=0)
            return SpanRates.of(total[:-1], int(total[-1]))
        return SpanRates.of(counts, sum(size for size in sizes if size is not None))

    # --- who reads what

    def _gathered(self, parts: Sequence[Part], read: Callable[[Sequence[Part]], T]) -> list[T]:
        """What each rank has read of its own parts."""
        if self.here is None:
            return [read(parts)]
        return self.here.gather(read(parts[self.here.rank :: self.here.size]))

    def _arms(self) -> Iterator[tuple[StageConfig, ArmConfig]]:
        return ((stage, arm) for stage in self.stages for arm in stage.arms)

    def _corpus(self, stage: StageConfig, arm: ArmConfig) -> str:
        return self.streams.config_of(stage, arm).corpus


def expected(rates: SpanRates, num_tokens: int) -> torch.Tensor:
    """The average counts of a step of this many tokens: StepContext.expected."""
    return torch.from_numpy(rates.expected(num_tokens))


def _check_corpus(corpus: str, largest: Largest, heads: Heads) -> None:
    for model, size in heads.sizes.items():
        if largest.value >= size:
            raise beyond_vocabulary(largest.place, corpus, int(largest.value), model, size)


def _check_logp(folder: str, column: str, largest: Largest) -> None:
    if largest.value > LOGP_ROUNDING:
        raise DataError(
            f"{largest.place} of {folder} has the log-probability {largest.value:g} in {column}, but none may be "
            f"above 0 (except by rounding, {LOGP_ROUNDING:g}). Rescore, or write natural logarithms of probabilities"
        )
