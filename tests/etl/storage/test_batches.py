"""Checkpoints: what is due, what is stored, and what a second attempt makes again."""

from dataclasses import replace

import pyarrow as pa
import pytest

from etl.storage.batches import LIMITS, checkpointed, load_batch, store_batch
from etl.storage.location import Location

SLICES = [[0, 1, 2], [3], [4, 5], [6, 7, 8, 9], [10]]


class Doubling:
    """Doubles numbers, and fails at one of them."""

    def __init__(self, fails_at=None):
        self.fails_at, self.seen = fails_at, []

    def __call__(self, numbers):
        if self.fails_at in numbers:
            raise OverflowError
        self.seen += numbers
        return pa.record_batch({"double": [2 * number for number in numbers]})


def call(folder, run, first_row=0, **limits):
    return [batch.num_rows for batch in checkpointed(folder, SLICES, run, replace(LIMITS, **limits), first_row)]


def names(folder):
    return sorted(path for path, _ in folder.walk())


@pytest.fixture
def folder(tmp_path):
    return Location.of(str(tmp_path / "checkpoints"))


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [({}, [11]), ({"rows": 4}, [4, 2, 4, 1]), ({"rows": 1}, [3, 1, 2, 4, 1]), ({"seconds": 0.0}, [3, 1, 2, 4, 1])],
)
def test_a_checkpoint_holds_whole_slices_up_to_its_limit(folder, limits, sizes):
    run = Doubling()
    assert call(folder, run, 100, **limits) == sizes
    assert run.seen == list(range(11))
    starts = [100 + sum(sizes[:place]) for place in range(len(sizes))]
    assert names(folder) == [f"{start:010d}.arrow" for start in starts]


def test_only_what_was_not_stored_is_made_again(folder):
    dying, second = Doubling(fails_at=6), Doubling()
    with pytest.raises(OverflowError):
        call(folder, dying, rows=4)
    assert dying.seen == [0, 1, 2, 3, 4, 5]
    assert call(folder, second, rows=4) == [4, 2, 4, 1]
    assert second.seen == [6, 7, 8, 9, 10]
    made = pa.Table.from_batches(checkpointed(folder, SLICES, Doubling(fails_at=0), LIMITS))
    assert made["double"].to_pylist() == list(range(0, 22, 2))


def test_the_first_batch_that_is_stored_stays(folder):
    first, second = pa.record_batch({"a": [1]}), pa.record_batch({"a": [2]})
    assert load_batch(folder / "x.arrow") is None
    store_batch(folder / "x.arrow", first)
    store_batch(folder / "x.arrow", second)
    assert load_batch(folder / "x.arrow") == first


def test_no_slices_make_no_checkpoint(folder):
    assert list(checkpointed(folder, [], Doubling(), LIMITS)) == []
    assert names(folder) == []
