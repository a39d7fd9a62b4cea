import numpy as np
import pytest
from pydantic import ValidationError

from etl.errors import ConfigError, DataError
from tests.training.data.streams import index_of, part, stream
from training.data.stream.plan import (
    UNUSABLE,
    cell_of,
    cells_of,
    initial_value,
    left_out,
    split_parts,
    uniform,
    uniforms,
)


def test_a_split_without_parts_is_refused():
    with pytest.raises(DataError, match="split=validation"):
        split_parts([part("split=train/0", [1], 1)], "validation")


def test_a_cell_is_named_by_the_folders_below_the_split():
    parts = [
        part(f"split=train/skill_bucket={skill}/ctx_bucket=C1/part-0-ab.parquet", [3]) for skill in ("B2", "B1", "B2")
    ]
    assert cell_of(parts[0]) == "B2/C1"
    assert cells_of(parts) == ("B1/C1", "B2/C1")


def test_documents_that_can_never_be_trained_on_are_counted_by_reason():
    index = index_of([101, 100, 1, 50, 2, 200, 9, 9], [1, 1, 1, 0, 1, -1, 1, 1], supervised=[1] * 6 + [0, -1])
    out, counts = left_out(index, index.num_tokens, 100)
    assert out.tolist() == [True, False, True, True, False, True, True, False]
    assert counts == dict(zip(UNUSABLE, (2, 1, 1, 1), strict=True))


def test_uniform_is_uniform_and_differs_by_seed_epoch_and_segment():
    ids = np.random.default_rng(0).integers(0, 2**63, 20_000).astype(np.uint64)
    u = uniform(ids, 1, 2, 3)
    assert 0 < u.min() < u.max() < 1
    assert abs(u.mean() - 0.5) < 0.01
    for other in ((9, 2, 3), (1, 9, 3), (1, 2, 9)):
        assert abs(np.corrcoef(u, uniform(ids, *other))[0, 1]) < 0.03


def test_several_epochs_at_once_are_those_epochs():
    ids = np.arange(50, dtype=np.uint64)
    several = uniforms(ids, 1, range(2, 6), 3)
    assert np.array_equal(several, [uniform(ids, 1, epoch, 3) for epoch in range(2, 6)])


def test_segments_are_whole_steps():
    assert stream(segment_tokens=1).segment_packs == 2
    assert stream(segment_tokens=401).segment_packs == 6


@pytest.mark.parametrize(
    ("rows", "epochs"),
    [(0, 3), (35_000, 3), (60_000, 3), (100_000, 2), (300_000, 2), (700_000, 1), (10**6, 1), (10**9, 1)],
)
def test_epochs_follow_the_size_of_the_corpus(rows, epochs):
    assert stream(epochs="auto").num_epochs(rows) == epochs
    assert stream(epochs=5).num_epochs(rows) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"epochs": "some"},
        {"shares": {"B1/*": 0.0}},
        {"shares": {}},
        {"shares": {"B1/*": -1.0, "*": 2.0}},
        {"shares": {"*": float("nan")}},
    ],
)
def test_values_without_meaning_are_refused(changes):
    with pytest.raises(ValidationError):
        stream(**changes)


def test_the_beginning_covers_recipe_seed_corpus_and_teacher_but_not_where_they_lie():
    parts = [part("split=train/a=B1/b=C1/0", [10, 5], 100), part("split=train/a=B2/b=C1/0", [3], 9)]
    assert "passes" not in initial_value(stream(), 0, parts)
    assert initial_value(stream(on_exhausted="repeat"), 0, parts)["passes"] == 2
    value = initial_value(stream(), 0, parts)
    assert value["cells"] == {"B1/C1": 15, "B2/C1": 3}
    assert initial_value(stream(corpus="elsewhere", teacher="there"), 0, parts) == value
    others = [
        initial_value(stream(lookahead_docs=5), 0, parts),
        initial_value(stream(clusters={"cap": 3}), 0, parts),
        initial_value(stream(shares={"*": 1.0}), 0, parts),
        initial_value(stream(), 1, parts),
        initial_value(stream(), 0, parts[:1]),
        initial_value(stream(), 0, parts, side_tables=["digest"]),
        initial_value(stream(order="fresh"), 0, parts),
        initial_value(stream(), 0, parts, after=[["digest", 1, 2]]),
    ]
    assert all(other != value for other in others)


def test_any_world_up_to_the_number_of_lanes_works():
    for world in range(1, 65):
        stream(lanes=64).check_world(world)
    with pytest.raises(ConfigError, match=r"data\.lanes is 2, fewer than the 4 processes"):
        stream().check_world(4)
