"""The result of ingest for each source: its line for the user, and whether it ends the run.

A source that gives no row, or loses more than the recipe's `max_bad_fraction` of them, has most often been given the
wrong description. So the run ends before its later stages, and the error has everything needed to correct that.
"""

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from etl.errors import SourceError
from etl.sources.look import Look, names
from etl.sources.prompts import INGEST
from etl.sources.spec import Shape, Source
from etl.stages import assemble
from etl.storage.dataset import Dataset, DatasetLike
from etl.storage.manifest import ASSEMBLED, losses

QUARANTINED: Final = "quarantined:"
"""Prefix of the reasons in an account for which a row could not be read."""
_DETAIL_CHARS = 200
_SHOW = """import sys, pyarrow.parquet as pq
print(*pq.read_table(sys.argv[1], columns=sys.argv[2:]).to_pylist(), sep='\\n')"""
_PLACE = ("source", "file", "position", "reason", "detail")


@dataclass(frozen=True)
class Intake:
    """The account of ingest for one source."""

    source: str
    rows_in: int
    """Rows of the files."""
    made: int
    """Rows assembled from several rows, or as the turns of one."""
    assembled: int
    """Raw rows that went into assembled rows."""
    num_read: int
    """Rows after the assembly, to which shares refer."""
    kept: int
    dropped_by_reason: Mapping[str, int]
    """Rows that were read but are not examples, such as blank ones."""
    quarantined_by_reason: Mapping[str, int]
    """Rows that could not be read."""
    unparsed_by_field: Mapping[str, int] = field(default_factory=dict)
    """Values that became null because they were not of their field's type."""

    @classmethod
    def of(cls, source: str, accounts: Mapping[str, Mapping[str, int]], unparsed: Mapping[str, int]) -> "Intake":
        """From the accounts of a source in a manifest of ingest, and its counts of values that did not parse.

        Args:
            source: the name.
            accounts: by step; those of the assembly and of ingest are used, other steps ignored.
            unparsed: by field.
        """
        named = {step: accounts[step] for step in (assemble.STEP, INGEST) if step in accounts}
        steps = list(named.values())
        sums = sum((Counter(counts) for counts in steps), Counter())
        lost = losses(named)
        quarantined = {
            reason.removeprefix(QUARANTINED): rows for reason, rows in lost.items() if reason.startswith(QUARANTINED)
        }
        dropped = {reason: rows for reason, rows in lost.items() if not reason.startswith(QUARANTINED)}
        return cls(
            source, steps[0]["in"], sums["made"], sums[ASSEMBLED], steps[-1]["in"], steps[-1]["kept"], dropped,
            quarantined, unparsed,
        )  # fmt: skip

    @property
    def dropped(self) -> int:
        return sum(self.dropped_by_reason.values())

    @property
    def quarantined(self) -> int:
        return sum(self.quarantined_by_reason.values())

    def losses(self) -> list[str]:
        """`12 quarantined (invalid_json 12)` and the like, one for each way in which rows were lost."""
        ways = ("quarantined", self.quarantined_by_reason), ("dropped", self.dropped_by_reason)
        return [f"{sum(reasons.values()):,} {way} ({_listed(reasons)})" for way, reasons in ways if reasons]


def _listed(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {reasons[reason]:,}" for reason in _by_rows(reasons))


def _by_rows(reasons: Mapping[str, int]) -> list[str]:
    """The reasons, the most frequent first."""
    return sorted(reasons, key=lambda reason: (-reasons[reason], reason))


def line(intake: Intake, size: str, notes: Sequence[str]) -> str:
    """The line of a run about a source.

    Args:
        intake: what was read.
        size: files and bytes, in words.
        notes: further remarks.
    """
    made = [f"{intake.assembled:,} assembled into {intake.made:,}"] if intake.made else []
    said = ", ".join([*made, f"{intake.kept:,} kept", *intake.losses()])
    unparsed = intake.unparsed_by_field
    nulls = [f"did not parse, so null: {_listed(unparsed)}"] if unparsed else []
    return "; ".join([f"{intake.rows_in:,} rows in {size}: {said}", *nulls, *notes])


def notes_on(source: Source, shape: Shape, unused: Sequence[str]) -> list[str]:
    """Remarks on a source: that it has no answers, that it has a limit, and which columns are not used."""
    columns = [f"columns not used: {names(unused)}"] if unused else []
    prompts = [] if shape.has_answers else ["prompts without answers"]
    limit = [] if source.limit is None else [f"limit {source.limit:,}"]
    return [*prompts, *limit, *columns]


@dataclass(frozen=True)
class Limits:
    """How much of a source may be lost before the run ends."""

    may_be_empty: bool
    """Whether it may give no row."""
    max_bad_fraction: float
    """Share of its rows, once they are assembled, that may be quarantined."""


def check(intake: Intake, limits: Limits, quarantine: DatasetLike, size: str, seen: Look) -> None:
    """Refuse the result of a source, unless the recipe allows it.

    Args:
        intake: what was read.
        limits: those of the recipe.
        quarantine: of the run; read only if the source is refused.
        size: files and bytes of the source, in words.
        seen: the heads of its files.

    Raises:
        SourceError: it gives no row, or too many of its rows are in quarantine.
    """
    if not intake.kept and not limits.may_be_empty:
        raise SourceError("; ".join(_nothing_kept(intake, quarantine.result(), size, seen)))
    if intake.quarantined > limits.max_bad_fraction * intake.num_read:
        raise SourceError("; ".join(_too_many_bad(intake, limits.max_bad_fraction, quarantine.result())))


def _nothing_kept(intake: Intake, quarantine: Dataset, size: str, seen: Look) -> list[str]:
    name = intake.source
    if not intake.rows_in:
        found = [f"source '{name}' gives no row: there is none in its {size}"]
    else:
        found = [f"source '{name}' gives no row: of {intake.rows_in:,} there are {', '.join(intake.losses())}"]
    if intake.quarantined:
        found += [*_first_bad(intake, quarantine), *filter(None, [seen.near])]
    elif intake.dropped:
        ingested = str(quarantine.folder).removesuffix("quarantine") + "ingest"
        found.append(f"to see them: {_command(ingested, 'file', 'position', 'verdict', 'messages')}")
    return [*found, f"if it may be so, set sources.{name}.may_be_empty=true"]


def _too_many_bad(intake: Intake, max_bad_fraction: float, quarantine: Dataset) -> list[str]:
    share = intake.quarantined / intake.num_read
    refusal = (
        f"source '{intake.source}': {intake.quarantined:,} of {intake.num_read:,} rows ({share:.1%}) could not be read "
        f"({_listed(intake.quarantined_by_reason)}), more than max_bad_fraction={max_bad_fraction}"
    )
    allowing = f"to go on without them, set max_bad_fraction={math.ceil(share * 1000) / 1000}"
    return [refusal, *_first_bad(intake, quarantine), allowing]


def _first_bad(intake: Intake, quarantine: Dataset) -> list[str]:
    """Where the first row with the most frequent reason is, and how to see all bad rows."""
    reason = _by_rows(intake.quarantined_by_reason)[0]
    row = _first(intake.source, reason, quarantine)
    detail = " ".join(row["detail"].split())[:_DETAIL_CHARS]
    return [
        f"the first {reason} is {row['file']}, position {row['position']}: {detail}",
        f"to see them: {_command(str(quarantine.folder), *_PLACE)}",
    ]


def _first(source: str, reason: str, quarantine: Dataset) -> dict[str, Any]:
    rows = (row for batch in quarantine.read(list(_PLACE)) for row in batch.to_pylist())
    return next(row for row in rows if (row["source"], row["reason"]) == (source, reason))


def _command(folder: str, *columns: str) -> str:
    return f'python -c "{_SHOW.replace(chr(10), "; ")}" {shlex.quote(folder)} {" ".join(columns)}'
