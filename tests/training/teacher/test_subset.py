"""The choice of rows: budgets, preference, and that a worker repeats the driver's choice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.teacher.subset import RowColumns, SubsetConfig, choose, chosen


def columns(num, seed, num_cells=3, least_tokens=2):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(least_tokens, 200, num).astype(np.int32)
    hard = generator.uniform(0, 1, num).astype(np.float32)
    hard[generator.uniform(size=num) < 0.2] = np.nan
    return RowColumns(
        generator.integers(0, 2**64, num, np.uint64),
        generator.choice(num_cells, num, p=np.arange(1, num_cells + 1) / sum(range(num_cells + 1))).astype(np.int32),
        tokens,
        (tokens * generator.uniform(0, 0.9, num)).astype(np.int32),
        hard,
    )


def select(rows, numbers):
    return RowColumns(*(getattr(rows, name)[numbers] for name in RowColumns.__dataclass_fields__))


NAMES = ["B1/C1", "B2/C1", "B3/C1"]


@given(
    num=st.integers(1, 300),
    seed=st.integers(0, 1000),
    fraction=st.floats(0.01, 1.0),
    shares=st.sampled_from(["balanced", "proportional"]),
    least=st.integers(1, 100),
)
def test_every_cell_holds_its_budget_within_one_document_and_workers_agree(num, seed, fraction, shares, least):
    rows = columns(num, seed)
    config = SubsetConfig(fraction=fraction, shares=shares, min_supervised_tokens=least)
    cuts = choose(rows, NAMES, config)
    taken = chosen(rows, NAMES, cuts, config)
    assert (rows.supervised[taken] >= least).all()
    for number, name in enumerate(NAMES):
        mine = rows.cell == number
        tokens = int(rows.num_tokens[mine & taken].sum())
        assert (cuts[name].chosen_rows, cuts[name].chosen_tokens) == ((mine & taken).sum(), tokens)
        assert (cuts[name].rows, cuts[name].tokens) == (mine.sum(), rows.num_tokens[mine].sum())
        able = mine & (rows.supervised >= least)
        short = min(cuts[name].budget_tokens, int(rows.num_tokens[able].sum())) - tokens
        assert abs(short) <= rows.num_tokens[able].max(initial=0)
    # Rows in pieces and in another order, cells in another order: the same choice.
    order = np.random.default_rng(seed + 1).permutation(num)
    shuffled = select(rows, order)
    other = RowColumns(shuffled.id_hash, 2 - shuffled.cell, *list(vars(shuffled).values())[2:])
    for piece in np.array_split(np.arange(num), 3):
        again = chosen(select(other, piece), NAMES[::-1], cuts, config)
        assert again.tolist() == taken[order[piece]].tolist()


def test_balanced_cells_get_the_same_and_small_ones_all_they_have():
    cell = np.repeat([0, 1, 2], [5, 100, 200]).astype(np.int32)
    size = len(cell)
    rows = RowColumns(
        np.arange(size, dtype=np.uint64), cell, np.full(size, 10, np.int32), np.full(size, 5, np.int32),
        np.full(size, np.nan, np.float32),
    )  # fmt: skip
    budgets = {name: cut.budget_tokens for name, cut in choose(rows, NAMES, SubsetConfig(fraction=0.2)).items()}
    assert budgets == {"B1/C1": 50, "B2/C1": 280, "B3/C1": 280}
    config = SubsetConfig(fraction=0.2, shares="proportional")
    budgets = {name: cut.budget_tokens for name, cut in choose(rows, NAMES, config).items()}
    assert budgets == {"B1/C1": 10, "B2/C1": 200, "B3/C1": 400}


@pytest.mark.parametrize(("weights", "expected"), [((1.0, 0.0), [3, 1]), ((0.0, 1.0), [0, 2]), ((1.0, 1.0), [2, 3])])
def test_hard_and_long_rows_come_first(weights, expected):
    rows = RowColumns(
        np.arange(4, dtype=np.uint64),
        np.zeros(4, np.int32),
        np.full(4, 100, np.int32),
        np.array([90, 5, 80, 40], np.int32),
        np.array([0.0, 0.7, 0.6, 1.0], np.float32),
    )
    config = SubsetConfig(fraction=0.5, difficulty_weight=weights[0], length_weight=weights[1])
    cuts = choose(rows, ["all"], config)
    assert sorted(np.flatnonzero(chosen(rows, ["all"], cuts, config))) == sorted(expected)


def test_rows_without_a_difficulty_count_as_average():
    rows = RowColumns(
        np.arange(3, dtype=np.uint64),
        np.zeros(3, np.int32),
        np.full(3, 10, np.int32),
        np.full(3, 5, np.int32),
        np.array([0.1, np.nan, 0.9], np.float32),
    )
    config = SubsetConfig(fraction=0.66)
    assert chosen(rows, ["all"], choose(rows, ["all"], config), config).tolist() == [False, True, True]
