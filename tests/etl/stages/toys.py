"""Toy SYNTH rows, the files and recipes around them, and reading back what a run wrote."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq

from etl.engine import Engine
from etl.run.recipe import Recipe
from etl.run.run import RunResult, run_recipe
from etl.storage.dataset import Dataset
from tests.engines.inprocess import InProcessEngine

COLUMNS = ("synth_id", "language", "exercise", "model", "query", "synthetic_reasoning", "synthetic_answer")
SYNTH = pa.schema([(name, pa.string()) for name in COLUMNS])

_ENGLISH = """
the of house water people think about because where never small garden every morning light through old river
between something children would answer question always number first write read long after before together
"""
_GERMAN = """
der das Haus Wasser Menschen denken weil wo niemals klein Garten jeden Morgen Licht durch alter Fluss zwischen
etwas Kinder würde Antwort Frage immer Zahl erste schreiben lesen lange nach vor zusammen und nicht
"""
ENGLISH, GERMAN = _ENGLISH.split(), _GERMAN.split()
EXERCISES = ("memorization", "math exercise", "code", "editing", "something else")
"""Skill buckets B5, B2, B3, B4 and B1."""


def row(number, query, answer, reasoning="", **more):
    """One SYNTH row."""
    return {
        "synth_id": f"r{number}", "language": "en", "exercise": "memorization", "model": "toy", "query": query,
        "synthetic_reasoning": reasoning, "synthetic_answer": answer,
    } | more  # fmt: skip


def sentence(rng, words, num_words):
    return " ".join(rng.choices(words, k=num_words))


def plain_rows(count, seed=0, first=0):
    """Distinct English rows, no two of which are near duplicates."""
    rng = random.Random(seed)
    return [row(first + n, sentence(rng, ENGLISH, 12), sentence(rng, ENGLISH, 25)) for n in range(count)]


def mixed_rows(count, seed=0):
    """Rows in two languages and all skills, with unusable answers, exact and near duplicates planted among them."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        language, words = ("de", GERMAN) if rng.random() < 0.4 else ("en", ENGLISH)
        made = row(
            number,
            sentence(rng, words, rng.randrange(8, 30)),
            sentence(rng, words, rng.randrange(20, 60)),
            sentence(rng, words, rng.randrange(10, 40)) if rng.random() < 0.7 else "",
            language=language,
            exercise=rng.choice(EXERCISES),
        )
        kind = rng.random()
        if rows and kind < 0.08:
            made = rng.choice(rows) | {"synth_id": made["synth_id"]}
            made["query"] = made["query"].replace(" ", "  ", 2)
        elif rows and kind < 0.2:
            made = rng.choice(rows) | {"synth_id": made["synth_id"]}
            made["synthetic_answer"] += " indeed"
        elif kind < 0.24:
            made["synthetic_answer"] = rng.choice(["", "Failed after maximum attempts"])
        rows.append(made)
    return rows


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in rows), encoding="utf-8")
    return path


def write_parquet(path, rows, row_group_size=50):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, SYNTH), path, row_group_size=row_group_size)
    return path


def make_recipe(output, sources, spec="synth", **sections):
    """A recipe over `sources` (name to path); keys of `sections` are the recipe's, `run` cuts work small."""
    return _recipe(output, {name: {"spec": spec, "path": str(path)} for name, path in sources.items()}, sections)


def text_recipe(output, documents, **sections):
    """A recipe over raw documents: rows of `id` and `text` by source."""
    folder = output.parent / f"{output.name}-in"
    paths = {name: write_jsonl(folder / f"{name}.jsonl", rows) for name, rows in documents.items()}
    return _recipe(output, {name: {"spec": "text", "path": str(path)} for name, path in paths.items()}, sections)


def _recipe(output, sources, sections):
    """Whatever is wrong with the rows, no toy run ends for it."""
    tree = {
        "name": "toy",
        "output": str(output),
        "sources": {name: {"may_be_empty": True, **source} for name, source in sources.items()},
        "max_bad_fraction": 1.0,
        "stages": [],
        "run": {"split_bytes": 8192, "bucket_bytes": 8192},
        "layout": {"validation_fraction": 0.15, "target_bytes": 1 << 16},
    }
    return Recipe.model_validate(tree | sections)


FILTER = {
    "steps": [{"kind": "answer"}, {"kind": "language", "keep": ["en", "de"]}],
    "cuts": [{"kind": "share", "name": "english_share", "column": "detected_language", "values": ["en"], "share": 0.7}],
}


def scores(model):
    """A score section with a perplexity cut, for the model at a path."""
    cut = {"kind": "percentile", "name": "strange", "column": "perplexity", "within": ["detected_language"]}
    return {"steps": [{"kind": "perplexity", "model": str(model)}], "cuts": [cut | {"keep": 0.9}]}


def whole_recipe(output, sources, model, **sections):
    """Every stage that needs no neural model."""
    stages = ["filter", "dedup", "score", "tokenize", "split", "layout"]
    parts = {"stages": stages, "filter": FILTER, "score": scores(model)}
    return make_recipe(output, sources, **(parts | sections))


def run(recipe: Recipe, engine: Engine | None = None) -> RunResult:
    return run_recipe(recipe, engine or InProcessEngine(), lambda line: None)


def read(dataset: Dataset) -> list[dict]:
    """All rows of a dataset."""
    return [item for batch in dataset.read() for item in batch.to_pylist()]


def stage(output, name) -> Dataset:
    return Dataset.open(f"{output}/{name}")


def verdicts(output, name):
    """id to (step, reason, value), for the rows of an aligned dataset that have a verdict."""
    rows = read(stage(output, name))
    return {item["id"]: tuple(item["verdict"].values()) for item in rows if item["verdict"]}


def files(output):
    """Relative path to bytes of everything below a folder but what it has cost, which no run repeats."""
    paths = [path for path in sorted(output.rglob("*")) if path.is_file() and not path.name.endswith("_costs.json")]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def manifests(output):
    return {path: data for path, data in files(output).items() if path.endswith("_manifest.json")}
