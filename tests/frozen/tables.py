"""The stored tables, one JSON file each, and what a difference from one of them asks for.

    runs.json       recipe -> dataset -> table, schema, made_from, fingerprint, content_digest, rows
    defaults.json   configuration -> version, defaults, located
    signatures.json public name -> signature

A difference is either *forbidden* (rows, schema or defaults changed and no version did: an old output would pass for a
new one) or to be *recorded*, in the commit that makes it and says why.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.run.plan import differences
from tests.frozen import defaults, runs, signatures

HERE = Path(__file__).parent
RECORD = "write the table with `python -m tests.frozen.update`, and say in the same commit why"
_ROWS = ("schema", "content_digest", "rows")

Table = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """One thing that is not as stored."""

    what: str
    advice: str
    forbidden: bool

    def __str__(self) -> str:
        return f"{self.what}\n      {self.advice}"


def stored(name: str) -> Table:
    """A stored table."""
    table: Table = json.loads((HERE / f"{name}.json").read_text("utf-8"))
    return table


def store(name: str, table: Table) -> None:
    """Write a table, keys sorted."""
    text = json.dumps(table, indent=1, sort_keys=True, ensure_ascii=False)
    (HERE / f"{name}.json").write_text(text + "\n", "utf-8")


def rows_and_defaults() -> dict[str, Table]:
    """The tables `runs` and `defaults` as the code makes them now."""
    with tempfile.TemporaryDirectory(prefix="stillhouse-frozen-") as folder:
        ran = {name: runs.run(name, Path(folder) / name) for name in runs.SETTINGS}
    return {"runs": ran, "defaults": defaults.table(made_from(ran))}


def current() -> dict[str, Table]:
    """Every table as the code makes it now, by name."""
    return {**rows_and_defaults(), "signatures": signatures.table()}


def made_from(ran: Table) -> dict[str, Any]:
    """What the jobs of all recipes are made from, by stage."""
    return {stage: found["made_from"] for datasets in ran.values() for stage, found in datasets.items()}


def compare(name: str, old: Table, new: Table) -> list[Difference]:
    """What is not as stored, table `name`."""
    old, new = json.loads(json.dumps([old, new]))
    return list(_COMPARE[name](old, new))


def _compare_runs(old: Table, new: Table) -> Iterator[Difference]:
    for recipe in sorted(old.keys() | new.keys()):
        before, after = old.get(recipe, {}), new.get(recipe, {})
        for dataset in sorted(before.keys() | after.keys()):
            title = f"recipe {recipe}, dataset {dataset}"
            if dataset not in before or dataset not in after:
                is_new = dataset in after
                yield Difference(f"{title}: {'not in the table' if is_new else 'no longer written'}", RECORD, False)
            else:
                yield from _compare_dataset(title, before[dataset], after[dataset])


def _compare_dataset(title: str, old: Table, new: Table) -> Iterator[Difference]:
    is_same_work = old["fingerprint"] == new["fingerprint"]
    advice = "raise the version of the step, cut or job, which its fingerprint holds; then " if is_same_work else ""
    for field in _ROWS:
        for line in differences(old[field], new[field], field):
            yield Difference(f"{title}: {line}", advice + RECORD, is_same_work)
    if old["table"] != new["table"]:
        yield Difference(f"{title}: table: {old['table']} -> {new['table']}", RECORD, False)
    if not is_same_work:
        lines = differences(old["made_from"], new["made_from"], "made_from") or ["the word of its table or folder"]
        for line in lines:
            yield Difference(f"{title}: other fingerprint: {line}", RECORD, False)


def _compare_defaults(old: Table, new: Table) -> Iterator[Difference]:
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            yield Difference(f"{name}: {'not in the table' if name in new else 'is gone'}", RECORD, False)
            continue
        before, after = old[name], new[name]
        may_change = before["version"] is None or before["version"] != after["version"]
        for field in sorted(before["defaults"].keys() | after["defaults"].keys()):
            is_kept = field in before["defaults"] and field in after["defaults"]
            is_forbidden = is_kept and not may_change and field not in after["located"]
            advice = f"raise its version ({before['version']}); then " if is_forbidden else ""
            for line in differences(before["defaults"].get(field), after["defaults"].get(field), field):
                yield Difference(f"{name}: default of {line}", advice + RECORD, is_forbidden)
        for part in ("version", "located"):
            for line in differences(before[part], after[part], part):
                yield Difference(f"{name}: {line}", RECORD, False)


def _compare_signatures(old: Table, new: Table) -> Iterator[Difference]:
    for name in sorted(old.keys() | new.keys()):
        for line in differences(old.get(name), new.get(name), name):
            yield Difference(line, f"public: keep old calls working; else {RECORD}", False)


_COMPARE = {"runs": _compare_runs, "defaults": _compare_defaults, "signatures": _compare_signatures}
