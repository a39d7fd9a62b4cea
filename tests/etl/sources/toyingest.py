"""Whole runs of ingest over toy files, on the local engine in this process, with the account checked."""

import json
from dataclasses import dataclass

from etl.engines.local import LocalEngine
from etl.run.recipe import Recipe
from etl.run.run import run_recipe
from etl.storage.dataset import Dataset

COLUMNS = {"shape": "columns", "user": "q", "final": "a", "meta": ["m"]}
CHAT = {"shape": "messages", "meta": ["m"]}


@dataclass
class Ingested:
    """What ingest made of one source."""

    rows: list[dict]
    """Of PROMPT, by file and position."""
    bad: list[dict]
    """Of QUARANTINE, likewise."""
    account: dict[str, int]
    digest: str
    """Content digest of the whole dataset."""

    @property
    def said(self) -> list[tuple[str, ...]]:
        """The contents of the messages of each row."""
        return [tuple(message["content"] for message in row["messages"]) for row in self.rows]

    @property
    def reasons(self) -> list[tuple[int, str]]:
        """Position and reason of each row in quarantine."""
        return [(row["position"], row["reason"]) for row in self.bad]


def recipe_of(folder, paths, shapes, **sections) -> Recipe:
    """A recipe that only ingests.

    Args:
        folder: gets the output and the descriptions.
        paths: of each source by name.
        shapes: the description of each source, YAML's keys.
        sections: more of the recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = {}
    for name, path in paths.items():
        spec = folder / f"{name}.yaml"
        spec.write_text(json.dumps({"skill_bucket": "chat", **shapes[name]}))
        sources[name] = {"spec": str(spec), "path": str(path), "may_be_empty": True}
    tree = {"name": "toy", "output": str(folder / "out"), "sources": sources, "stages": [], "max_bad_fraction": 1.0}
    return Recipe.model_validate(tree | sections)


def ingest(folder, paths, shape, **sections) -> dict[str, Ingested]:
    """What a run gives of each of several sources of one shape; arguments as for `recipe_of`."""
    return ingest_each(folder, paths, dict.fromkeys(paths, shape), LocalEngine(), **sections)


def ingest_each(folder, paths, shapes, engine, **sections) -> dict[str, Ingested]:
    """What a run on an engine gives of each source; arguments as for `recipe_of`."""
    recipe = recipe_of(folder, paths, shapes, **sections)
    run_recipe(recipe, engine, lambda line: None)
    prompts, quarantine = (Dataset.open(f"{recipe.output}/{name}") for name in ("ingest", "quarantine"))
    rows, bad = _by_source(prompts, "source_dataset"), _by_source(quarantine, "source")
    digest = prompts.manifest.content_digest
    accounts = {name: prompts.manifest.account(name, "ingest") for name in paths}
    for name, account in accounts.items():
        check_account(account, rows.get(name, []), bad.get(name, []))
    return {name: Ingested(rows.get(name, []), bad.get(name, []), accounts[name], digest) for name in paths}


def check_account(account, rows, bad) -> None:
    """Rows in + made = kept + dropped + quarantined, and each of them is where the account says."""
    lost = {name: count for name, count in account.items() if name not in ("in", "made", "kept")}
    quarantined = sum(count for name, count in lost.items() if name.startswith("quarantined:"))
    assert account["in"] + account["made"] == account["kept"] + sum(lost.values())
    assert len(rows) == account["in"] - quarantined
    assert sum(row["verdict"] is None for row in rows) == account["kept"]
    assert len(bad) == quarantined


def _by_source(dataset, column):
    found: dict[str, list[dict]] = {}
    for batch in dataset.read():
        for row in batch.to_pylist():
            found.setdefault(row[column], []).append(row)
    return {name: sorted(rows, key=lambda row: (row["file"], row["position"])) for name, rows in found.items()}
