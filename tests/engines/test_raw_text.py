"""Raw text with two kinds of units taken out, on every engine: the same rows as the oracle."""

import random

import pytest

from etl.storage.dataset import Dataset
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.toys import ENGLISH, run, sentence, text_recipe

UNITS = ("line", "sentence")
DATASETS = ("ingest", *UNITS, "tokenize", "dropped")


def documents(count):
    """Documents of paragraphs, lines and sentences, some of them shared."""
    rng = random.Random(5)
    said = [sentence(rng, ENGLISH, 10).capitalize() + "." for _ in range(60)]
    rows = []
    for number in range(count):
        parts = [rng.choice(said) + rng.choice([" ", "\n", "\n\n"]) for _ in range(rng.randrange(1, 12))]
        rows.append({"id": f"d{number}", "text": "".join(parts) + sentence(rng, ENGLISH, 30)})
    return rows


def run_and_digest(folder, engine, split_bytes):
    rows = random.Random(split_bytes).sample(documents(80), 80)
    sources = {
        "a": [row for row in rows if int(row["id"][1:]) < 50],
        "b": [row for row in rows if int(row["id"][1:]) >= 50],
    }
    recipe = text_recipe(
        folder / f"{split_bytes}",
        sources,
        stages=["dedup", "tokenize"],
        dedup={
            "survivor": {"sources": ["b"]},
            "units": [{"unit": "line"}, {"unit": "sentence", "min_words": 9}],
            "exact": None,
            "near": None,
        },
        run={"split_bytes": split_bytes, "bucket_bytes": split_bytes},
    )
    result = run(recipe, engine)
    removed = {name: Dataset.open(f"{recipe.output}/{name}_hits").manifest.rows_out for name in UNITS}
    assert all(removed.values()), removed
    digests = {name: Dataset.open(f"{recipe.output}/{name}").manifest.content_digest for name in DATASETS}
    return digests, result.accounting


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return run_and_digest(tmp_path_factory.mktemp("expected"), InProcessEngine(), 1 << 20)


def test_in_process(tmp_path, expected):
    assert run_and_digest(tmp_path, InProcessEngine(batch_rows=3, seed=1), 4096) == expected


def test_beam_direct(tmp_path, expected):
    from etl.engines.beam import BeamEngine

    assert run_and_digest(tmp_path, BeamEngine([], report=lambda line: None), 8192) == expected


def test_spark_local(tmp_path, expected, spark):
    from etl.engines.spark import SparkEngine

    assert run_and_digest(tmp_path, SparkEngine(session=spark), 32768) == expected
