"""Components and blocks by one task and by rounds of shuffles: the same labels, every pair in one bounded block."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from etl.dedup.blocks import CLASS_BITS, set_bytes, size_class
from etl.rows import ROW_BITS, Rows
from etl.run.run import context_of
from etl.stages.dedup.bands import CANDIDATE
from etl.stages.dedup.blocks import EDGE
from etl.stages.dedup.components import cut_blocks, label_components
from etl.stages.dedup.stars import LABEL
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from tests.engines.inprocess import DyingEngine, IdleEngine, InProcessEngine, KilledError
from tests.etl.stages.dedup.toys import NEAR, digests, families, long_rows
from tests.etl.stages.toys import make_recipe, read, run, stage, write_jsonl
from tests.etl.storage.builds import NUMBERS, commit, numbers

PAIRS = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in ("left", "right")])
NUM_NODES = 120


def toy_pairs(num_splits=1):
    """A chain, a clique, a star, a two-level tree, pairs and repeated edges; node n is row n // S of split n % S."""
    chain = np.random.default_rng(1).permutation(40)
    found = list(itertools.pairwise(chain))
    found += [(a, b) for a in range(40, 50) for b in range(40, a)]
    found += [(70, n) for n in range(50, 70)]
    found += [(n, 80 + n // 10) for n in range(90, 110)] + [(80 + 9, 75), (75, 80 + 10)]
    found += [(110, 111), (112, 113), (112, 113), (113, 112), (115, 119)]
    return row_keys(np.array(found, np.int64), num_splits)


def row_keys(numbers, num_splits):
    return (numbers % num_splits << ROW_BITS) | numbers // num_splits


def numbers_of(rows, num_splits):
    return (rows >> ROW_BITS) + (rows & (1 << ROW_BITS) - 1) * num_splits


def stored(folder, name, schema, columns, num_splits):
    """A dataset of this many splits with row groups of 11 rows."""
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    size = -(-batch.num_rows // num_splits) if batch.num_rows else 1
    pieces = [batch.slice(split * size, size) for split in range(num_splits)]
    groups = [[piece.slice(at, 11) for at in range(0, piece.num_rows, 11)] for piece in pieces]
    return commit(Location.of(str(folder / name)), schema, groups, name)


def base(folder, num_splits):
    return Rows.of(commit(Location.of(str(folder / "base")), NUMBERS, [[numbers(1)]] * num_splits, "base"))


def context(output, max_edges, engine=None):
    run = {"max_component_edges": max_edges, "bucket_bytes": 1 << 11}
    return context_of(make_recipe(output, {"toy": output}, run=run), engine or InProcessEngine())


def label(output, pairs, max_edges, engine=None, num_splits=1):
    """Row key to label."""
    dataset = stored(output, "pairs", PAIRS, pairs.T, num_splits)
    ctx = context(output, max_edges, engine)
    return label_components(ctx, base(output, num_splits), "components", dataset, ("left", "right")).result()


def labels_of(dataset):
    """Row key to label; each row occurs once and a part is sorted."""
    rows = read(dataset)
    assert len({row["row"] for row in rows}) == len(rows)
    for split in range(dataset.ref.num_splits):
        keys = [row for batch in dataset.ref.read_split(split) for row in batch.column("row").to_pylist()]
        assert keys == sorted(keys)
    return {row["row"]: row["component"] for row in rows}


def expected_labels(pairs):
    found = {row: row for row in pairs.ravel().tolist()}
    while True:
        before = dict(found)
        for a, b in pairs.tolist():
            found[a] = found[b] = min(found[a], found[b])
        if found == before:
            return found


@pytest.mark.parametrize("num_splits", [1, 2, 7])
def test_both_paths_give_the_same_labels(tmp_path, num_splits):
    pairs = toy_pairs(num_splits)
    one = label(tmp_path / "one", pairs, len(pairs), num_splits=num_splits)
    stars = label(tmp_path / "stars", pairs, len(pairs) - 1, num_splits=num_splits)
    assert labels_of(one) == labels_of(stars) == expected_labels(pairs)
    assert one.manifest.content_digest == stars.manifest.content_digest
    assert (one.ref.num_splits, stars.ref.num_splits) == (1, num_splits)
    for split in range(num_splits):
        assert all((batch.column("row").to_numpy() >> ROW_BITS == split).all() for batch in stars.ref.read_split(split))
    assert one.schema.equals(LABEL)
    assert stars.schema.equals(LABEL)
    assert min(path.name for path in (tmp_path / "stars/rounds").iterdir()) == "components-0"
    assert not (tmp_path / "one/rounds").exists()


def test_random_graphs(tmp_path):
    rng = np.random.default_rng(3)
    for number, num_pairs in enumerate([1, 5, 40, 90, 300]):
        pairs = row_keys(rng.integers(0, NUM_NODES, (num_pairs, 2)), 2)
        stars = label(tmp_path / str(number), pairs, 0, InProcessEngine(seed=number), num_splits=2)
        assert labels_of(stars) == expected_labels(pairs)


def test_no_pairs(tmp_path):
    none = np.empty((0, 2), np.int64)
    assert labels_of(label(tmp_path, none, 0)) == {}


def test_arrival_and_batches_change_nothing(tmp_path):
    digests = set()
    for seed, batch_rows in enumerate([2, 1000]):
        stars = label(tmp_path / str(seed), toy_pairs(2), 0, InProcessEngine(batch_rows, seed), 2)
        rounds = (tmp_path / str(seed) / "rounds").iterdir()
        digests.add(tuple(Dataset.open(str(path)).manifest.content_digest for path in sorted(rounds)))
        digests.add(stars.manifest.content_digest)
    assert len(digests) == 2


def test_a_run_that_was_killed_goes_on(tmp_path):
    pairs = toy_pairs(2)
    whole = InProcessEngine()
    expected = labels_of(label(tmp_path / "whole", pairs, 0, whole, 2))
    output = tmp_path / "killed"
    ran = 0
    for tasks in (1, 5, len(whole.ran) // 3):
        engine = DyingEngine(tasks)
        with pytest.raises(KilledError):
            label(output, pairs, 0, engine, 2)
        ran += len(engine.ran)
    engine = InProcessEngine()
    assert labels_of(label(output, pairs, 0, engine, 2)) == expected
    assert ran + len(engine.ran) == len(whole.ran)
    assert labels_of(label(output, pairs, 0, IdleEngine(), 2)) == expected


def test_another_budget_begins_the_dataset_anew(tmp_path):
    """Parts of one path are never taken for those of the other."""
    pairs = toy_pairs(2)
    whole = InProcessEngine()
    label(tmp_path / "whole", pairs, 0, whole, 2)
    with pytest.raises(KilledError):
        label(tmp_path, pairs, 0, DyingEngine(len(whole.ran) - 1), 2)
    assert labels_of(label(tmp_path, pairs, 10**6, num_splits=2)) == expected_labels(pairs)
    assert labels_of(label(tmp_path, pairs, 0, num_splits=2)) == expected_labels(pairs)


# --- blocks --------------------------------------------------------------------------------------------------------

NUM_SHINGLES = np.random.default_rng(5).integers(1, 40, NUM_NODES)
KEYS = (np.random.default_rng(6).permutation(NUM_NODES) << CLASS_BITS) | size_class(NUM_SHINGLES)
SIZES = set_bytes(KEYS)


def candidates(num_splits):
    """CANDIDATE columns: the smaller row key first, some pairs several times."""
    pairs = np.sort(toy_pairs(num_splits), axis=1)
    pairs = np.concatenate([pairs, pairs[::3], pairs[::5]])
    keys = KEYS[numbers_of(pairs, num_splits)]
    return [*pairs.T, *keys.T, pairs.sum(axis=1) % 3 == 0, np.ones(len(pairs), np.int64)]


def cut(output, max_edges, block_bytes, num_splits=1, engine=None):
    met = candidates(num_splits)
    dataset = stored(output, "candidates", CANDIDATE, met, num_splits)
    ctx = context(output, max_edges, engine)
    return cut_blocks(ctx, base(output, num_splits), dataset, block_bytes).result()


def by_names(edges, num_splits):
    """The pairs of each block by the numbers of nodes, blocks in any order."""
    blocks = {}
    for edge in read(edges):
        pair = frozenset(int(numbers_of(np.int64(edge[end]), num_splits)) for end in "ab")
        blocks.setdefault(edge["block"], set()).add(pair)
    return {frozenset(pairs) for pairs in blocks.values()}


@pytest.mark.parametrize("num_splits", [1, 2, 7])
@pytest.mark.parametrize("block_bytes", [500, 3_000, 1 << 20])
def test_every_pair_is_in_one_block_of_bounded_bytes(tmp_path, num_splits, block_bytes):
    edges = cut(tmp_path, 0, block_bytes, num_splits)
    assert edges.schema.equals(EDGE)
    pairs = [(row["a"], row["b"]) for row in read(edges)]
    assert all(row["alike"] == ((row["a"] + row["b"]) % 3 == 0) for row in read(edges))
    one_task = cut(tmp_path / "one_task", 10**6, block_bytes, num_splits).manifest
    assert one_task.content_digest == edges.manifest.content_digest
    assert sorted(pairs) == sorted(set(map(tuple, np.sort(toy_pairs(num_splits), axis=1).tolist())))
    label = expected_labels(toy_pairs(num_splits))
    for block in by_names(edges, num_splits):
        inside = sorted(set.union(*map(set, block)))
        assert len({label[row] for row in row_keys(np.array(inside), num_splits).tolist()}) == 1
        assert SIZES[inside].sum() <= block_bytes + 2 * SIZES.max()


def test_a_component_far_below_the_budget_is_one_block(tmp_path):
    assert len(by_names(cut(tmp_path, 0, 1 << 30), 1)) == len(set(expected_labels(toy_pairs()).values()))


def test_blocks_do_not_depend_on_splits_or_arrival(tmp_path):
    found = [
        by_names(cut(tmp_path / str(splits), 0, 1_000, splits, InProcessEngine(batch_rows, splits)), splits)
        for splits, batch_rows in [(1, 3), (2, 7), (7, 100)]
    ]
    # The label of a component is a row key, and so is the hash; which pairs share a block does not follow from it.
    assert found[0] == found[1] == found[2]
    digests = {
        cut(tmp_path / f"again-{seed}", 0, 1_000, 2, InProcessEngine(5 * seed + 2, seed)).manifest.content_digest
        for seed in range(2)
    }
    assert len(digests) == 1


def test_one_task_keeps_what_fits_together(tmp_path):
    """A block is named by the smallest row of its component, or by a negative number where that is cut."""
    edges = cut(tmp_path, 10**6, 2_000)
    label = expected_labels(toy_pairs())
    total = {name: sum(SIZES[row] for row in label if label[row] == name) for name in label.values()}
    assert {total[name] > 2_000 for name in total} == {True, False}
    for row in read(edges):
        fits = total[label[row["a"]]] <= 2_000
        assert row["block"] == label[row["a"]] if fits else row["block"] < 0
    assert edges.manifest.rows_in == len(candidates(1)[0])


def test_cutting_that_was_killed_goes_on(tmp_path):
    whole = InProcessEngine()
    expected = cut(tmp_path / "whole", 0, 1_000, 2, whole).manifest.content_digest
    engine = DyingEngine(len(whole.ran) - 3)
    with pytest.raises(KilledError):
        cut(tmp_path / "killed", 0, 1_000, 2, engine)
    last = InProcessEngine()
    assert cut(tmp_path / "killed", 0, 1_000, 2, last).manifest.content_digest == expected
    assert len(last.ran) == 3


def test_star_contraction_gives_the_clusters_of_one_task(tmp_path):
    """With no room for edges in one task, labels and blocks come from rounds of shuffles."""
    rows = [*families(12), *long_rows(30)]
    found, accounts = {}, {}
    for edges in (0, 1 << 20):
        write_jsonl(tmp_path / f"{edges}.jsonl", rows)
        out = tmp_path / str(edges)
        recipe = make_recipe(
            out, {"toy": tmp_path / f"{edges}.jsonl"}, stages=["dedup"], dedup={"exact": None, "near": NEAR},
            run={"split_bytes": 8192, "bucket_bytes": 8192, "max_component_edges": edges},
        )  # fmt: skip
        run(recipe, InProcessEngine(batch_rows=6))
        found[edges] = digests(out, ("pairs", "components", "near_hits", "near", "clusters"))
        accounts[edges] = stage(out, "near").manifest.accounting
        assert (out / "rounds").exists() == (edges == 0)
        told = stage(out, "near").manifest.findings["canaries"]
        assert sum(level["made"] for level in told["by_jaccard"].values()) > 20
        assert told["recall"] == 1.0
    assert found[0] == found[1 << 20]
    assert accounts[0] == accounts[1 << 20]
