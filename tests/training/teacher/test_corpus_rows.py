"""The rows of a corpus by row group: which columns are read, cells and numbers of rows, splits, and the choice."""

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from etl.errors import DataError, SchemaError
from etl.schema import SPAN, SPAN_KINDS
from etl.storage.manifest import Part
from tests.datasets import write_dataset
from training.teacher.corpus_rows import CorpusRows, choose_rows
from training.teacher.subset import SubsetConfig, chosen

SUPERVISED = [f"n_{kind}" for kind in SPAN_KINDS]
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source_dataset", pa.string()),
        ("n_tokens", pa.int32()),
        *((name, pa.int32()) for name in SUPERVISED),
        ("input_ids", pa.list_(pa.int32())),
        ("spans", pa.list_(SPAN)),
        ("category", pa.string()),
        ("hard", pa.float64()),
        ("late", pa.float64()),
        ("empty", pa.float64()),
    ]
)


def row(name, n_tokens, category, hard, late=None, **supervised):
    known = {"id": name, "source_dataset": "s", "n_tokens": n_tokens, "category": category, "hard": hard, "late": late}
    return {**dict.fromkeys(SCHEMA.names), **known, **{f"n_{kind}": count for kind, count in supervised.items()}}


CELLS = {
    "split=train/skill_bucket=B1/ctx_bucket=C1": [
        row("p", 10, "z", 0.1, final=3),
        row("q", 10, "z", 0.9, analysis=1, final=2),
    ],
    "split=train/skill_bucket=B2/ctx_bucket=C1": [
        row("r", 20, "a", 0.8, late=0.5, final=3),
        row("s", 20, "a", 0.2, text=3),
        row("t", 8, None, None),
    ],
    "split=validation/skill_bucket=B3/ctx_bucket=C1": [row("v", 5, "z", 0.5, final=1)],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    tables = {folder: pa.Table.from_pylist(rows, SCHEMA) for folder, rows in CELLS.items()}
    return write_dataset(str(tmp_path_factory.mktemp("corpus") / "corpus"), "layout", "CORPUS", tables)


def rows_of(corpus, split="train", mode_column=None, **subset):
    return CorpusRows.of(corpus, split, SubsetConfig(**subset), mode_column)


def read(rows, number):
    """A part, and the narrow columns of its first row group."""
    part = rows.parts[number]
    return part, rows.read(part, 0, rows.narrow)


def test_rows_are_those_of_one_split(corpus):
    assert [part.rows for part in rows_of(corpus).parts] == [2, 3]
    assert [part.rows for part in rows_of(corpus, "validation").parts] == [1]


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"split": "test"}, DataError, r"no row in split=test; correct `corpus` or `split`"),
        ({"cells": ("skill_bucket", "topic")}, SchemaError, r"no column \['topic'\]"),
        ({"mode_column": "effort"}, SchemaError, r"no column \['effort'\]"),
    ],
)
def test_a_split_or_a_column_that_is_not_there_is_told(corpus, change, error, told):
    with pytest.raises(error, match=told):
        rows_of(corpus, **change)


def test_a_corpus_without_what_layout_writes_is_refused(tmp_path):
    table = pa.Table.from_pylist([{"id": "p", "n_tokens": 1}])
    dataset = write_dataset(str(tmp_path / "c"), "layout", "CORPUS", {"split=train": table})
    with pytest.raises(SchemaError, match=r"no column \['source_dataset', 'n_analysis', .*'input_ids', 'spans'\]"):
        rows_of(dataset, cells=())


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (("absent", "empty", "hard", "late"), "hard"),
        (("late", "hard"), "late"),
        (("absent", "empty"), None),
        ((), None),
    ],
)
def test_the_difficulty_is_the_first_column_with_a_value_in_any_part(corpus, columns, found):
    assert rows_of(corpus, difficulty=columns).difficulty == found


def test_only_columns_that_the_choice_needs_are_read_once_each(corpus):
    always = ["id", "source_dataset", "n_tokens", *SUPERVISED]
    assert rows_of(corpus, difficulty=()).narrow == always
    rows = rows_of(corpus, mode_column="category", cells=("ctx_bucket", "category"), difficulty=("hard",))
    assert rows.narrow == [*always, "category", "hard"]
    _, batch = read(rows, 1)
    assert batch.schema.names == rows.narrow
    assert batch.column("id").to_pylist() == ["r", "s", "t"]


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        ((), ["all", "all", "all"]),
        (("skill_bucket", "ctx_bucket"), ["B2/C1", "B2/C1", "B2/C1"]),
        (("category", "skill_bucket"), ["a/B2", "a/B2", "/B2"]),
    ],
)
def test_a_cell_is_named_by_folders_and_columns(corpus, cells, labels):
    rows = rows_of(corpus, cells=cells)
    assert rows.labels(*read(rows, 1)).to_pylist() == labels


def test_cells_are_numbered_as_they_come_and_no_value_is_no_token(corpus):
    rows = rows_of(corpus, cells=("category",), difficulty=("hard",))
    cells = {}
    first, second = (rows.columns(*read(rows, number), cells) for number in (0, 1))
    assert cells == {"z": 0, "a": 1, "": 2}
    assert (first.cell.tolist(), second.cell.tolist()) == ([0, 0], [1, 1, 2])
    assert second.num_tokens.tolist() == [20, 20, 8]
    assert (first.supervised.tolist(), second.supervised.tolist()) == ([3, 3], [3, 3, 0])
    np.testing.assert_array_equal(second.difficulty, np.array([0.8, 0.2, np.nan], np.float32))
    assert first.id_hash.tolist() == [xxhash.xxh64_intdigest(name, 0x746561636865) for name in (b"p", b"q")]
    assert np.isnan(rows_of(corpus, difficulty=()).columns(*read(rows, 0), {}).difficulty).all()


def part_of(row_groups, tokens):
    known = {"split": 0, "path": "split=train/a.parquet", "bytes": 1, "sha256": "0" * 64}
    return Part(**known, rows=sum(row_groups), tokens=tokens, row_groups=row_groups)


@pytest.mark.parametrize(
    ("split_tokens", "expected"),
    [
        (1, [(0, [0]), (0, [1]), (0, [2]), (1, [0]), (1, [1]), (2, [0, 1])]),
        (50, [(0, [0, 1]), (0, [2]), (1, [0]), (1, [1]), (2, [0, 1])]),
        (80, [(0, [0, 1]), (0, [2]), (1, [0, 1]), (2, [0, 1])]),
        (1000, [(0, [0, 1, 2]), (1, [0, 1]), (2, [0, 1])]),
    ],
)
def test_splits_are_row_groups_of_one_part(corpus, split_tokens, expected):
    """20, 30 and 50 tokens; 40 and 40; and a part that does not know its tokens."""
    parts = (part_of((2, 3, 5), 100), part_of((4, 4), 80), part_of((1, 1), None))
    assert CorpusRows(corpus.ref, parts, (), None, None).splits(split_tokens) == expected


def test_half_of_the_tokens_are_the_hard_row_of_each_cell_and_a_worker_takes_the_same(corpus):
    config = SubsetConfig(fraction=0.5, shares="proportional", cells=("category",), difficulty=("hard",))
    rows = CorpusRows.of(corpus, "train", config, None)
    cuts = choose_rows(rows, config)
    assert [(name, cut.rows, cut.tokens) for name, cut in cuts.items()] == [("", 1, 8), ("a", 2, 40), ("z", 2, 20)]
    assert [(cut.chosen_rows, cut.chosen_tokens) for cut in cuts.values()] == [(0, 0), (1, 20), (1, 10)]
    taken = []
    for number in (0, 1):
        part, batch = read(rows, number)
        cells = {}
        columns = rows.columns(part, batch, cells)
        mask = chosen(columns, list(cells), cuts, config)
        taken += batch.column("id").filter(pa.array(mask)).to_pylist()
    assert taken == ["q", "r"]


def test_a_choice_of_nothing_is_told(corpus):
    config = SubsetConfig(fraction=0.5, min_supervised_tokens=4)
    with pytest.raises(DataError, match=r"subset\.fraction=0\.5 of 68 tokens chooses no row with 4 supervised tokens"):
        choose_rows(CorpusRows.of(corpus, "train", config, None), config)
