"""The local engine in this process and in a pool: the oracle's rows and order, errors as we raise them, no scratch."""

import functools
import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl.engine import Exchange, Resources, worker_number
from etl.engines import bucket_slices, spill
from etl.engines.local import LocalEngine
from etl.errors import ConfigError, DataError, SchemaError, SourceError
from etl.sorting import SortedRows
from etl.storage.build import Chunk, Job
from etl.storage.location import Location
from tests.engines.blocked_shuffle import blocked, is_alive
from tests.engines.exchanges import NUMBER, ROW, WORDS, emit_numbers, exchanged, write_numbers
from tests.engines.grid import check_files_are_those_of_the_oracle
from tests.engines.inprocess import InProcessEngine


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Two workers; their temporary files and the engine's own are in a folder of this module."""
    before = tempfile.tempdir
    tempfile.tempdir = str(tmp_path_factory.mktemp("scratch"))
    engine = LocalEngine(processes=2)
    yield engine
    engine.close()
    assert scratch() == []
    tempfile.tempdir = before


@pytest.fixture(params=["here", "pool"])
def engine(request, tmp_path, monkeypatch):
    if request.param == "here":
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        return LocalEngine()
    return request.getfixturevalue("pool")


def scratch() -> list[Path]:
    """What engines and workers have left in the folder for temporary files; a living pool may have an empty one."""
    found = Path(tempfile.gettempdir()).glob("stillhouse-*")
    return [path for path in found if not path.name.startswith("stillhouse-local-") or any(path.iterdir())]


def job(folder, stage):
    return Job(Location.of(folder / stage), stage, "NUMBERS", NUMBER, {"x": 1})


# --- the order of a bucket -----------------------------------------------------------------------------------------


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(ROW, max_size=12), max_size=4), st.sets(st.integers(0, 3), min_size=1))
def test_wanted_buckets_get_their_rows_in_the_order_of_the_oracle(engine, tmp_path_factory, splits, wanted):
    """Nulls first, binary and text bytewise, buckets without rows; splits without rows and no splits at all."""
    folder = tmp_path_factory.mktemp("exchange")
    made = exchanged(engine, folder / "local", tuple(splits), sorted(wanted))
    assert made == exchanged(InProcessEngine(), folder / "inprocess", tuple(splits), sorted(wanted))
    assert sorted(made) == sorted(wanted)
    assert scratch() == []


@pytest.mark.parametrize("limit", ["HELD_BYTES", "SLICE_BYTES"])
def test_rows_are_the_same_in_the_smallest_slices(tmp_path, monkeypatch, limit):
    rows = [(n % 4, bytes([n % 7]), None, n) for n in range(500)]
    monkeypatch.setattr(bucket_slices, limit, 1)
    made = exchanged(LocalEngine(), tmp_path / "made", (rows[:300], rows[300:]), [0, 1, 2, 3])
    assert made == {bucket: sorted(rows[bucket::4], key=lambda row: (row[1], row[3])) for bucket in range(4)}


def test_a_bucket_that_is_larger_than_a_run_is_merged_from_scratch_files(tmp_path, monkeypatch):
    rows = [(0, None, str(n % 9), n) for n in range(400)]
    monkeypatch.setattr(spill, "SortedRows", functools.partial(SortedRows, run_bytes=100))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = exchanged(LocalEngine(), tmp_path / "made", (rows[:150], rows[150:]), [0])
    assert made == {0: sorted(rows, key=lambda row: (row[2], row[3]))}
    assert scratch() == []


def test_files_are_those_of_the_oracle(tmp_path, engine):
    check_files_are_those_of_the_oracle(tmp_path, engine)


# --- whole jobs ----------------------------------------------------------------------------------------------------


def one_number(split):
    yield Chunk(pa.record_batch([pa.array([split])], schema=NUMBER), 1)


def receipts(folder, stage):
    return sorted(int(path.stem) for path in (folder / stage / "_receipts").rglob("*.json"))


def test_only_missing_buckets_are_reduced_and_sent_rows(tmp_path, engine):
    exchange = Exchange((1, 2, 3), emit_numbers, WORDS, ("n",), 2)
    whole = engine.shuffle(job(tmp_path, "numbers"), exchange, write_numbers).manifest
    folder = tmp_path / "numbers"
    (folder / "_manifest.json").unlink()
    next((folder / "_receipts").rglob("00001.json")).unlink()
    kept = next((folder / "_receipts").rglob("00000.json")).read_bytes()
    assert engine.shuffle(job(tmp_path, "numbers"), exchange, write_numbers).manifest == whole
    assert next((folder / "_receipts").rglob("00000.json")).read_bytes() == kept


def test_a_shuffle_without_a_map_side_opens_every_bucket(tmp_path, engine):
    done = engine.shuffle(job(tmp_path, "none"), Exchange((), emit_numbers, WORDS, ("n",), 2), write_numbers)
    assert (done.manifest.splits, done.manifest.rows_out) == (2, 0)


def test_fewer_than_one_process_is_refused():
    with pytest.raises(ConfigError, match="processes=0"):
        LocalEngine(processes=0)


# --- resources -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NameWorker:
    """A map that leaves a file named after the worker that it runs in."""

    folder: Path

    def __call__(self, split):
        (self.folder / f"worker-{worker_number()}").touch()
        return one_number(split)


def test_a_task_that_asks_for_two_cpus_runs_alone_in_a_pool_of_two(tmp_path, pool):
    dataset = pool.map(job(tmp_path, "wide"), range(6), NameWorker(tmp_path), Resources(cpus=2))
    assert dataset.result().manifest.rows_out == 6
    assert [path.name for path in tmp_path.glob("worker-*")] == ["worker-0"]


# --- errors --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FailAt:
    """A map that raises at one split."""

    split: int
    error: Exception

    def __call__(self, split):
        if split == self.split:
            raise self.error
        return one_number(split)


@pytest.mark.parametrize("error", [ConfigError, SourceError, SchemaError, DataError])
def test_an_error_of_a_task_is_raised_as_what_it_is_and_splits_before_it_are_kept(tmp_path, engine, error):
    dataset = engine.map(job(tmp_path, "some"), range(40), FailAt(2, error("split 2: the value is 3; make it 4")))
    with pytest.raises(error, match=r"^split 2: the value is 3; make it 4$"):
        dataset.result()
    done = receipts(tmp_path, "some")
    assert {0, 1} <= set(done)
    assert 2 not in done
    assert len(done) < 39
    assert engine.map(job(tmp_path, "some"), range(40), one_number).result().manifest.rows_out == 40


@dataclass(frozen=True)
class FailLate:
    """A map side that raises after it has emitted rows."""

    def __call__(self, split):
        yield from emit_numbers(split)
        if split == 2:
            raise DataError("split 2 is gone")


def test_an_error_of_the_map_side_is_raised_and_no_bucket_is_written(tmp_path, engine):
    with pytest.raises(DataError, match=r"^split 2 is gone$"):
        engine.shuffle(job(tmp_path, "none"), Exchange((1, 2, 3), FailLate(), WORDS, ("n",), 2), write_numbers)
    assert receipts(tmp_path, "none") == []
    assert scratch() == []


def fail_bucket(bucket, batches):
    raise SourceError("no")


def test_an_error_of_a_reducer_is_raised_as_what_it_is(tmp_path, engine):
    with pytest.raises(SourceError, match=r"^no$"):
        engine.shuffle(job(tmp_path, "failing"), Exchange((1,), emit_numbers, WORDS, ("n",), 2), fail_bucket)
    assert scratch() == []


@dataclass(frozen=True)
class DieOnce:
    """A map that kills its process at one split, unless a file is there."""

    split: int
    spared: Path

    def __call__(self, split):
        if split == self.split and not self.spared.exists():
            self.spared.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return one_number(split)


def test_a_job_whose_worker_died_resumes(tmp_path, pool):
    fn = DieOnce(3, tmp_path / "spared")
    dataset = pool.map(job(tmp_path, "dying"), range(5), fn)
    with pytest.raises(DataError, match="run again to resume"):
        dataset.result()
    assert scratch() == []
    assert 3 not in receipts(tmp_path, "dying")
    assert pool.map(job(tmp_path, "dying"), range(5), fn).result().manifest.rows_out == 5


# --- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("processes", "how"), [(1, ()), (2, ()), (2, ("fork",))])
def test_ctrl_c_ends_the_workers_and_leaves_no_scratch(tmp_path, processes, how):
    with blocked(tmp_path, processes, *how) as (process, workers):
        assert len(workers) == processes
        assert list(tmp_path.glob("stillhouse-*"))
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGINT
        assert said.count(b"Traceback") == said.count(b"\nKeyboardInterrupt") == 1, said.decode()
        assert not [pid for pid in workers if is_alive(pid)]
        assert list(tmp_path.glob("stillhouse-*")) == []
