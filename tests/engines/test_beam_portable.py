"""The Beam engine on a job service of its own process, workers in ours (LOOPBACK): what it makes, what it raises."""

import pyarrow as pa
import pytest

from etl.engine import Work
from etl.engines.beam import BeamEngine
from etl.errors import SourceError
from etl.storage.build import Chunk, Job
from etl.storage.location import Location
from etl.storage.progress import Counts
from tests.engines.grid import check_files_are_those_of_the_oracle

pytestmark = pytest.mark.slow
NUMBER = pa.schema([("n", pa.int64())])


@pytest.fixture(scope="module")
def engine(portable_flags):
    return BeamEngine(portable_flags, report=lambda line: None)


def test_every_file_of_a_recipe_equals_the_one_of_the_other_engine(tmp_path, engine):
    check_files_are_those_of_the_oracle(tmp_path, engine)


def test_error_of_a_worker_is_raised_as_what_it_is_and_other_splits_are_kept(tmp_path, engine):
    def some(split):
        if split == 2:
            raise SourceError("file 2 is damaged")
        yield Chunk(pa.record_batch([pa.array([split])], schema=NUMBER), 1)

    def run_it():
        job = Job(Location.of(tmp_path / "some"), "some", "NUMBER", NUMBER, {})
        return engine.map(job, range(4), some).result().manifest

    with pytest.raises(SourceError, match=r"^file 2 is damaged$"):
        run_it()
    assert {path.stem for path in (tmp_path / "some" / "_receipts").rglob("*.json")} == {"00000", "00001", "00003"}


def test_another_exception_fails_the_job_with_its_traceback(engine):
    def fail(number, split):
        raise ZeroDivisionError("a bug of ours")

    with pytest.raises(RuntimeError, match="a bug of ours"):
        engine.run_splits(Work("bug", 1, 1), [(0, 0)], fail)
    engine.run_splits(Work("next", 1, 1), [(0, 0)], lambda number, split: Counts())
