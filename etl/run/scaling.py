"""From the sizes of a sample's run to those of the whole input, by the laws of etl.laws.

With L for the input's bytes over the sample's:

    With.INPUT     L
    With.LIVE      the rows of the input that are left before the job, over those of the sample
    With.DROPPED   the rows dropped by then, likewise
    With.SPLITS    the input's splits over the sample's
    groups, pairs  etl.run.growth, from what etl.run.duplicates found

The rows left before a job are those that all earlier tables of verdicts leave; the law `drops` of a step's job scales
the rows that it drops. Steps are counted over all sources together. If a step sees only some sources, live rows are
only exact if these sources have the same share in the sample as in the input.
"""

import math
from typing import assert_never

from etl.laws import (
    AtMost,
    CandidatePairs,
    FamilyCopies,
    GroupCopies,
    GroupRows,
    Law,
    MoreRows,
    PairCopies,
    PairRows,
    Pieces,
    SameAs,
    VerifiedPairs,
    With,
)
from etl.run.duplicates import Found, SampleRun

_LEAST_LIVE = 0.01
"""No law knows that a row can only be dropped once: at least this share of the input's rows is assumed to be left."""


class Scaling:
    """Applies laws. Datasets are identified by name.

    Attributes:
        found: the duplicates of the sample.
    """

    def __init__(self, run: SampleRun) -> None:
        self.found = Found(run)
        self._run = run
        self._live: dict[str, float] = {}
        self._dropped: dict[str, float] = {}
        self._follow_verdicts()

    def _follow_verdicts(self) -> None:
        """Live and dropped rows before each job, in the order in which the stages asked for them."""
        run = self._run
        all_rows = run.num_rows * run.scale
        gone_of_sample, gone_of_input = 0, 0.0
        for name, job in run.jobs.items():
            left = max(all_rows - gone_of_input, _LEAST_LIVE * all_rows)
            self._live[name] = left / max(1, run.num_rows - gone_of_sample)
            self._dropped[name] = gone_of_input / max(1, gone_of_sample)
            count = run.num_dropped(name)
            if count:
                gone_of_sample += count
                gone_of_input += count * self.factor(name, job.grows.drops, count)

    def factor(self, name: str, law: Law, count: int) -> float:
        """The factor by which the whole input has more things than the sample.

        Args:
            name: name of the dataset whose job has the law.
            law: the law of the job.
            count: things of the sample.
        """
        match law:
            case With():
                return self._with(name, law)
            case AtMost(rows):
                return min(self._live[name], max(1.0, rows / max(1, count)))
            case SameAs(dataset):
                return self.rows_factor(dataset)
            case GroupCopies():
                return self.found.groups(name).removed_factor
            case GroupRows():
                return self.found.groups(name).row_factor
            case CandidatePairs(block_pairs=block_pairs):
                stored = self.found.candidates(name).stored(self.num_tasks(name), block_pairs)
                return stored / max(1, self._run.num_rows_of(name))
            case VerifiedPairs():
                pairs = self.found.pairs(name)
                return pairs.pairs / max(1, pairs.sample_pairs)
            case PairRows(pairs=of):
                return self.found.row_factor(of)
            case PairCopies(pairs=of):
                return self.found.pairs(of).removed_factor
            case FamilyCopies(hits):
                return self.found.families(hits).removed_factor
            case _:
                assert_never(law)

    def _with(self, name: str, law: With) -> float:
        match law:
            case With.INPUT:
                return self._run.scale
            case With.LIVE:
                return self._live[name]
            case With.DROPPED:
                return self._dropped[name]
            case With.SPLITS:
                return self._run.sample.input_splits / len(self._run.rows.splits)
            case With.NOTHING:
                return 1.0
            case _:
                assert_never(law)

    def rows_factor(self, name: str) -> float:
        """Rows of a dataset in the whole input for each one of the sample; for an aligned table, its bytes."""
        return self.factor(name, self._run.jobs[name].grows.rows, self._run.num_rows_of(name))

    def rows(self, name: str) -> float:
        factor = self._run.scale if self._run.is_aligned(name) else self.rows_factor(name)
        return self._run.num_rows_of(name) * factor

    def written_bytes(self, name: str) -> float:
        return sum(part.bytes for part in self._run.datasets[name].manifest.parts) * self.rows_factor(name)

    def shuffle_bytes(self, name: str) -> float:
        use = self._run.use(name)
        return use.shuffle_bytes * self.factor(name, self._run.jobs[name].grows.crosses, use.shuffle_rows)

    def num_tasks(self, name: str) -> int:
        tasks = self._run.jobs[name].grows.tasks
        of_sample = self._run.datasets[name].manifest.splits
        match tasks:
            case Pieces(grow=law):
                return tasks.count(self.factor(name, law, of_sample))
            case With.SPLITS:
                return math.ceil(of_sample * self._run.sample.input_splits / len(self._run.rows.splits))
            case _:
                return math.ceil(of_sample * self._with(name, tasks))

    def work_s(self, name: str, cpu_s: float) -> float:
        """CPU-seconds of a job for the whole input, given those for the sample; without the start of tasks."""
        law = self._run.jobs[name].grows.work
        if not isinstance(law, MoreRows):
            return cpu_s * self.factor(name, law, self._run.num_rows_of(name))
        live = self._live[name]
        each = self._run.use(law.like).cpu_s / max(1, self._run.num_rows)
        return cpu_s * live + each * max(0.0, self.rows(name) - live * self._run.num_rows_of(name))
