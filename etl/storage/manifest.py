"""The JSON objects that make a folder a dataset: plan, receipts and manifest.

    _plan.json                           what the splits are; written once, before the first task
    _receipts/<build>/<split>.json       what one split wrote; create-only, so the first attempt wins
    _closed/<build>                      a build that was given up; empty
    _manifest.json                       everything that was committed; written last

None of them contains a time, a host or an absolute path: equal inputs and configuration give equal bytes.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, Field, model_validator

from etl.config import Config
from etl.digests import canonical_json
from etl.errors import DataError
from etl.storage.location import Location
from etl.storage.untrusted import (
    MAX_OBJECT_BYTES,
    MAX_SPLITS,
    Account,
    Count,
    Counts,
    Hex32,
    RelativePath,
    Sha256,
    SplitNumber,
    Text,
)

Accounting = dict[str, dict[str, dict[str, int]]]
"""source → step → reason → rows. Every step has `in`, `made` and `kept`; each other reason is one of loss, with the
prefix `quarantined:` for rows that could not be read. in + made = kept + the sum of the losses."""

FLOW = ("in", "made", "kept")
ASSEMBLED = "assembled"
"""Counts rows that went into others, which are counted as made: they are gone, and not lost."""
_NOT_LOST = (*FLOW, ASSEMBLED)
TABLE_SUFFIX = ".parquet"


class Part(Config):
    """One committed file: Parquet, or one that storage keeps as it is (an opaque file, which has no rows)."""

    split: SplitNumber
    path: RelativePath
    """Relative to the dataset's folder, partition folders included."""
    rows: Count
    bytes: Count
    tokens: Count | None = None
    """Sum of n_tokens where the table has that column."""
    sha256: Sha256
    row_groups: tuple[Count, ...]
    """Rows of each row group."""

    @property
    def is_table(self) -> bool:
        """Whether it is Parquet, according to its name."""
        return self.path.endswith(TABLE_SUFFIX)


class Plan(Config):
    """The splits of a dataset under construction."""

    fingerprint: Hex32
    """Of the work: the configuration, and for each input the name of the build that writes it."""
    splits: tuple[Any, ...] = Field(max_length=MAX_SPLITS)
    """What each split reads, as JSON; its index is the split's number."""

    @property
    def name(self) -> str:
        """32 hex digits that name a build: what it does and how that is cut."""
        return fingerprint_of({"fingerprint": self.fingerprint, "splits": self.splits})


class Receipt(Config):
    """What the winning attempt of a split wrote."""

    split: SplitNumber
    rows_in: Count
    rows_out: Count
    content_digest: Hex32
    sequence: Hex32 | Literal[""] = ""
    """Of its rows in their order (`ContentDigest.sequence`); empty for opaque files and before format 2."""
    parts: tuple[Part, ...]
    accounting: dict[str, dict[str, Account]] = {}
    distributions: Counts = {}

    @model_validator(mode="after")
    def _parts_are_of_the_split(self) -> "Receipt":
        if any(part.split != self.split for part in self.parts):
            raise ValueError(f"parts: not all are of the split {self.split}")
        return self


class Manifest(Config):
    """A committed dataset."""

    format: int = 2
    """1 had no `sequence`."""
    stage: RelativePath
    table: Text
    fingerprint: Hex32
    base: Hex32 | Literal[""] = ""
    """What the dataset belongs to: `cut` of the rows that it is aligned with or whose row keys it holds, fingerprint of
    those whose files and positions it repeats; empty for a dataset that stands alone."""
    receipts: Hex32
    """Name of the build that wrote it: its receipts are in _receipts/<name>."""
    made_from: dict[str, Any]
    """The fields under the fingerprint, so that a change can be named."""
    content_digest: Hex32
    sequence: Hex32 | Literal[""] = ""
    """Digest of the rows in their order, split by split."""
    rows_in: Count
    rows_out: Count
    accounting: dict[str, dict[str, Account]]
    thresholds: dict[str, Any] = {}
    distributions: Counts = {}
    """Counts, summed over all splits."""
    findings: dict[str, Any] = {}
    """Results computed from the counts of the run's datasets: recall, overlaps, shares."""
    splits: int = Field(ge=0, le=MAX_SPLITS, strict=True)
    parts: tuple[Part, ...]
    adopted: tuple[dict[str, Any], ...] = ()
    """What `stillhouse adopt` accepted: the fingerprint that it replaced, and the fields that differ."""

    @model_validator(mode="after")
    def _parts_are_of_the_splits(self) -> "Manifest":
        if any(part.split >= self.splits for part in self.parts):
            raise ValueError(f"parts: one is of a split beyond the {self.splits} splits")
        return self

    @property
    def cut(self) -> str:
        """Digest of which row lies where: of the rows in their order, and their cut into parts and row groups."""
        return fingerprint_of({**self._shape, "sequence": self.sequence})

    @property
    def _shape(self) -> dict[str, Any]:
        shape = [[part.split, *part.row_groups] for part in self.parts]
        return {"splits": self.splits, "parts": shape, "content": self.content_digest}

    def is_cut_as(self, base: "Manifest") -> bool:
        """Whether the dataset belongs to a base that is cut in this way.

        Before format 2 the order of the rows was not told. What is aligned repeats their ids, which every read
        compares, and what holds row keys has had another fingerprint since.
        """
        return self.base == base.cut or (self.format == 1 and self.base == fingerprint_of(base._shape))

    @property
    def holds_files(self) -> bool:
        """Whether its parts are opaque files, such as a model, and no table."""
        return any(not part.is_table for part in self.parts)

    @property
    def accounts_rows(self) -> bool:
        """Whether its accounts are those of the steps that made it; a corpus repeats those of the whole run."""
        return bool(self.base) or self.table == "PROMPT"

    # What stages write and read of their own has the shape that they give it; a forged one may have another.

    def account(self, source: str, step: str) -> dict[str, int]:
        """The account of one step of one source.

        Raises:
            DataError: there is none.
        """
        found = self.accounting.get(source, {}).get(step)
        return self._unlike(f"accounting has no entry {source!r}, {step!r}") if found is None else found

    def count(self, *names: str) -> int:
        """A number of the distributions, by its name at each level; 0 where it is not there.

        Raises:
            DataError: it is not a number.
        """
        found: Any = self.distributions
        for name in names:
            found = found.get(name, 0) if isinstance(found, dict) else found
        return found if isinstance(found, int) else self._unlike(f"distributions.{'.'.join(names)} is not a number")

    def counts(self, name: str, levels: int = 1) -> dict[str, Any]:
        """Counts of the distributions by name, or by names of several levels; empty where they are not there.

        Raises:
            DataError: they are of other levels.
        """
        found = self.distributions.get(name, {})
        if not _has_levels(found, levels):
            self._unlike(f"distributions.{name} must be counts by names of {levels} level{'s' * (levels > 1)}")
        return dict(found)

    def findings_by_column(self, name: str) -> dict[str, dict[str, Any]]:
        """What the findings of a name say of each column; empty where there are none.

        Raises:
            DataError: they are something else.
        """
        found = self.findings.get(name, {})
        if not isinstance(found, dict) or not all(isinstance(said, dict) for said in found.values()):
            self._unlike(f"findings.{name} must be a mapping by column")
        return dict(found)

    @property
    def inputs(self) -> dict[str, str]:
        """Folder -> content digest of the datasets that it was made from.

        Raises:
            DataError: `made_from.inputs` is something else.
        """
        return self.names_in("inputs")

    def names_in(self, key: str) -> dict[str, str]:
        """The texts by name that `made_from` holds under a key; empty where it holds none.

        Raises:
            DataError: it is something else.
        """
        found = self.made_from.get(key, {})
        if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
            self._unlike(f"made_from.{key} must be texts by name")
        return dict(found)

    def _unlike(self, what: str) -> NoReturn:
        raise DataError(f"the manifest of {self.stage} is damaged: {what}; remove it and run the recipe again")

    @property
    def num_tokens(self) -> int:
        return sum(part.tokens or 0 for part in self.parts)


def _has_levels(tree: Any, levels: int) -> bool:
    if levels == 0:
        return isinstance(tree, int)
    return isinstance(tree, dict) and all(_has_levels(inner, levels - 1) for inner in tree.values())


def fingerprint_of(semantic: dict[str, Any]) -> str:
    """32 hex digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(semantic).encode()).hexdigest()[:32]


def to_json(model: BaseModel) -> bytes:
    """The model as canonical JSON, one trailing newline."""
    return (canonical_json(model.model_dump(mode="json")) + "\n").encode()


def leave(place: Location, model: BaseModel) -> None:
    """Write a model as JSON, unless that is there already."""
    data = to_json(model)
    try:
        if place.read_at_most(MAX_OBJECT_BYTES) == data:
            return
    except FileNotFoundError:
        pass
    place.replace(data)


def add_counts(total: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Sum of two nested dictionaries of counts.

    Raises:
        DataError: what is a count in one is a dictionary in the other, so one of them was changed.
    """
    out = dict(total)
    for key, value in more.items():
        if isinstance(out.get(key, value), dict) != isinstance(value, dict):
            raise DataError(f"'{key}' is a count in one receipt and counts by name in another; remove both, run again")
        if isinstance(value, dict):
            out[key] = add_counts(out.get(key, {}), value)
        else:
            out[key] = out.get(key, 0) + value
    return out


def sum_counts(counts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Sum of many nested dictionaries of counts, keys sorted."""
    total: dict[str, Any] = {}
    for count in counts:
        total = add_counts(total, count)
    return _sorted(total)


def _sorted(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: _sorted(value) if isinstance(value, dict) else value for key, value in sorted(tree.items())}


def losses(steps: Mapping[str, Mapping[str, int]]) -> Counter[str]:
    """Rows that some steps of one source lost, by reason; rows that went into others are not lost."""
    lost: Counter[str] = Counter()
    for counts in steps.values():
        lost.update({reason: rows for reason, rows in counts.items() if reason not in _NOT_LOST and rows})
    return lost


def totals(accounting: Accounting) -> tuple[int, int, int]:
    """Rows that came in, that were lost, and that are left, over all sources, of steps that follow one another."""
    entered = lost = left = 0
    for steps in accounting.values():
        came = _entered(steps)
        made = sum(counts["made"] for counts in steps.values())
        gone = losses(steps).total()
        assembled = sum(counts.get(ASSEMBLED, 0) for counts in steps.values())
        entered, lost, left = entered + came, lost + gone, left + came + made - gone - assembled
    return entered, lost, left


def _entered(steps: Mapping[str, Mapping[str, int]]) -> int:
    """Rows that came into the first of some steps, of which each gets what the one before it has kept."""
    first = Counter(counts["in"] for counts in steps.values()) - Counter(counts["kept"] for counts in steps.values())
    return next(iter(first), max((counts["in"] for counts in steps.values()), default=0))


def accounting_gaps(accounting: Accounting) -> list[str]:
    """One line for every (source, step) whose accounting does not add up."""
    gaps = []
    for source, steps in accounting.items():
        for step, counts in steps.items():
            lost = sum(n for reason, n in counts.items() if reason not in FLOW)
            left = counts.get("in", 0) + counts.get("made", 0) - counts.get("kept", 0) - lost
            if left:
                gaps.append(f"{source}/{step}: in + made exceeds kept + dropped by {left} rows")
    return gaps
