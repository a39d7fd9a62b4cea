"""What each law comes to, on the jobs of a toy sample: 12 rows in 2 splits that stand for 120 rows in 10."""

import pyarrow as pa
import pytest

from etl.engine import Exchange
from etl.laws import AtMost, GroupCopies, GroupRows, Growth, MoreRows, PairCopies, PairRows, Pieces, SameAs, With
from etl.rows import ROW_BITS, Rows
from etl.run.duplicates import SampleRun
from etl.run.meter import MeteredEngine
from etl.run.sample import Sample
from etl.run.scaling import Scaling
from etl.storage.build import Chunk, Job
from etl.storage.location import Location
from tests.etl.stages.toys import make_recipe

ROWS, SCALE = 6, 10
NUMBER = pa.schema([("row", pa.int64())])
VERDICTS = pa.schema([("row", pa.int64()), ("verdict", pa.string())])
SENT = pa.schema([("bucket", pa.int32()), ("word", pa.binary()), ("row", pa.int64())])


def keys(split):
    return pa.array([(split << ROW_BITS) + row for row in range(ROWS)])


def write(split):
    yield Chunk(pa.record_batch([keys(split)], schema=NUMBER), ROWS)


def drop_two(split):
    """Two rows of each split are dropped; rows that an earlier step dropped do not come in."""
    counts = {"in": ROWS, "made": 0, "kept": ROWS - 2, "gone": 2}
    batch = pa.record_batch([keys(split), pa.array(["gone"] * 2 + [None] * (ROWS - 2))], schema=VERDICTS)
    yield Chunk(batch, ROWS, {"toy": {"step": counts}})


def emit(split):
    """All rows of a split have one word, those of the other split another one."""
    yield pa.record_batch(
        [pa.array([0] * ROWS, pa.int32()), pa.array([b"%d" % split] * ROWS), keys(split)], schema=SENT
    )


def all_rows(bucket, batches):
    yield from (Chunk(batch.select(["row"]), batch.num_rows) for batch in batches)


class Toy:
    """Jobs on the metered engine, then what they come to."""

    def __init__(self, folder):
        self.engine = MeteredEngine()
        self.folder = folder
        self.base = self.map("base")

    def job(self, name, schema=NUMBER, grows=Growth(), base=None):  # noqa: B008 - frozen
        return Job(Location.of(self.folder / name), name, name.upper(), schema, {}, base=base, grows=grows)

    def map(self, name, grows=Growth()):  # noqa: B008 - frozen
        return self.engine.map(self.job(name, grows=grows), range(2), write)

    def verdicts(self, name, law):
        self.engine.map(self.job(name, VERDICTS, Growth(drops=law), self.base), range(2), drop_two)

    def shuffle(self, name, grows):
        self.engine.shuffle(self.job(name, grows=grows), Exchange((0, 1), emit, SENT, ("row",), 1), all_rows)

    def scaling(self):
        self.engine.settle()
        recipe = make_recipe(self.folder, {"toy": "toy.jsonl"})
        sample = Sample(recipe, input_bytes=100 * SCALE, sample_bytes=100, input_splits=10)
        engine = self.engine
        return Scaling(SampleRun(sample, Rows.of(self.base), engine.jobs, engine.uses, engine.emitted))


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path)


@pytest.mark.parametrize(
    ("law", "factor"),
    [
        (With.INPUT, SCALE),
        (With.LIVE, SCALE),
        (With.SPLITS, 5),
        (With.NOTHING, 1),
        (With.DROPPED, 0),
        (AtMost(60), 5),
        (AtMost(6), 1),
        (AtMost(10_000), SCALE),
        (SameAs("capped"), 3),
    ],
)
def test_laws_without_duplicates(toy, law, factor):
    toy.map("capped", Growth(AtMost(36)))
    toy.map("some", Growth(law))
    assert toy.scaling().rows_factor("some") == factor


def test_live_rows_are_what_the_verdicts_before_a_job_leave(toy):
    """Of 12 rows, two steps drop 4 each; the first step's drops grow as rows do, the second's remain 4."""
    names = ("first", "second", "third")
    for name, law in zip(names, (With.LIVE, With.NOTHING, With.LIVE), strict=True):
        toy.map(f"before_{name}")
        toy.verdicts(name, law)
    toy.map("dropped", Growth(With.DROPPED))
    scaling = toy.scaling()
    assert [scaling.rows_factor(f"before_{name}") for name in names] == [10, 80 / 8, 76 / 4]
    assert scaling.rows("before_third") == 12 * 76 / 4
    assert scaling.rows("third") == 12 * SCALE, "an aligned table has every row"
    assert scaling.rows_factor("dropped") == pytest.approx((40 + 4 + 76) / 12)


def test_a_hundredth_of_the_rows_stays_whatever_is_dropped(toy):
    for name in ("first", "second", "third"):
        toy.verdicts(name, With.INPUT)
    toy.map("after")
    assert toy.scaling().rows_factor("after") == pytest.approx(0.01 * 120)


def test_groups_are_those_of_the_map_side(toy):
    """Two groups of 6 rows of one piece each: their pairs grow as rows do."""
    toy.shuffle("copies", Growth(GroupCopies("word")))
    toy.shuffle("members", Growth(GroupRows("word")))
    scaling = toy.scaling()
    assert scaling.found.groups("copies").sample_rows == 12
    assert scaling.rows_factor("copies") == scaling.rows_factor("members") == SCALE


def test_what_crosses_and_the_tasks_have_laws_of_their_own(toy):
    heaps = Pieces((50, 10), each=100)
    toy.shuffle("one", Growth(With.NOTHING, crosses=With.SPLITS, tasks=heaps))
    toy.shuffle("two", Growth(crosses=AtMost(24), tasks=With.NOTHING))
    toy.map("three")
    scaling = toy.scaling()
    sent = toy.engine.uses["one"].shuffle_bytes
    assert (scaling.shuffle_bytes("one"), scaling.shuffle_bytes("two")) == (5 * sent, 2 * sent)
    assert [scaling.num_tasks(name) for name in ("one", "two", "three")] == [5 + 1, 1, 10]


def test_rows_beyond_the_live_ones_take_what_a_row_takes_elsewhere(toy):
    toy.shuffle("slow", Growth())
    toy.shuffle("pairs", Growth(GroupRows("row")))
    toy.map("fewer", Growth(With.SPLITS, work=MoreRows(like="slow")))
    toy.map("more", Growth(SameAs("plenty"), work=MoreRows(like="slow")))
    toy.shuffle("plenty", Growth(GroupCopies("bucket")))
    scaling = toy.scaling()
    assert scaling.work_s("fewer", 2.0) == 2.0 * SCALE
    beyond = scaling.rows("more") - 12 * SCALE
    assert scaling.work_s("more", 2.0) == 2.0 * SCALE + beyond * toy.engine.uses["slow"].cpu_s / 12


@pytest.mark.parametrize("law", [PairRows("base"), PairCopies("base")])
def test_a_law_of_pairs_asks_for_a_dataset_of_pairs(toy, law):
    toy.map("some", Growth(law))
    with pytest.raises(AssertionError, match="base does not say"):
        toy.scaling().rows_factor("some")
