"""Toy texts with families of near duplicates, runs of the dedup stage over them, and splits that a mark judges."""

import random
import re

import pyarrow as pa

from etl.schema import aligned
from etl.stages.dedup.marks import MarkSplit
from etl.stages.keyed import routed
from tests.etl.stages.toybatches import ToyRows, cut_at, ids, verdict_column
from tests.etl.stages.toys import ENGLISH, make_recipe, row, sentence, stage, write_jsonl, write_parquet
from tests.etl.stages.toys import run as run_on

NEAR = {"unit": "word", "threshold": 0.7, "bands": 20, "rows": 5}


def dedup(tmp_path, rows, engine=None, run=None, **section):
    write_parquet(tmp_path / "in.parquet", rows, row_group_size=17)
    recipe = make_recipe(
        tmp_path / "out",
        {"toy": tmp_path / "in.parquet"},
        stages=["dedup"],
        dedup={"exact": None, "near": None} | section,
        **({} if run is None else {"run": run}),
    )
    return run_on(recipe, engine)


def two_sources(tmp_path, rows, others, **section):
    """A run over sources `a` and `b`."""
    sources = {"a": write_jsonl(tmp_path / "a.jsonl", rows), "b": write_jsonl(tmp_path / "b.jsonl", others)}
    return run_on(make_recipe(tmp_path / "out", sources, stages=["dedup"], dedup={"near": None} | section))


def edited(rng, text):
    """The text with a few words replaced, taken out or added."""
    words = text.split()
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(len(words))
        words[place : place + rng.randrange(2)] = rng.choices(ENGLISH, k=rng.randrange(2))
        words = words or ["x"]
    return " ".join(words)


def families(seed, count=70):
    """Texts with chains of edits, so that clusters are more than pairs."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        text = sentence(rng, ENGLISH, rng.randrange(20, 80))
        for _ in range(rng.choice([1, 1, 2, 3, 5])):
            texts.append(text)
            text = edited(rng, rng.choice([text, *texts[-2:]]))
    rng.shuffle(texts)
    return [row(n, text, "the answer") for n, text in enumerate(texts)]


def long_rows(count, seed=0):
    rng = random.Random(seed)
    return [row(n, sentence(rng, ENGLISH, 60), sentence(rng, ENGLISH, 60)) for n in range(count)]


def word_ngrams(text, n=5):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[at : at + n]) for at in range(max(1, len(words) - n + 1))}


def digests(output, names):
    """Content digests of some datasets of a run."""
    return {name: stage(output, name).manifest.content_digest for name in names}


SPLIT = 2
"""Of the rows that `marked` judges."""


def groups_of(sizes, dropped=()):
    """Row groups of this many rows, numbered through; the rows in `dropped` have a verdict."""
    groups, start = [], 0
    for size in sizes:
        numbers = range(start, start + size)
        columns = [ids(numbers), pa.array(["toy"] * size), verdict_column(size, {n - start for n in dropped})]
        groups.append(pa.record_batch(columns, ["id", "source_dataset", "verdict"]))
        start += size
    return groups


def marked(mark, groups, hits, cuts=()):
    """What `MarkSplit` writes.

    Args:
        mark: that judges.
        groups: the row groups of the split.
        hits: (row number, what `mark.hits` has after `row` …), in any order.
        cuts: where the stream of hits is cut.
    """
    schema = routed(mark.hits)
    lines = [(SPLIT, (SPLIT << 32) + row, *values) for row, *values in sorted(hits, key=lambda hit: hit[0])]
    table = pa.Table.from_pylist([dict(zip(schema.names, line, strict=True)) for line in lines], schema)
    return list(MarkSplit(ToyRows([], [], groups), mark, aligned(mark.columns))(SPLIT, cut_at(table, cuts)))
