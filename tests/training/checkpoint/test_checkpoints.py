"""Checkpoints of one rank in this process, and of two ranks in one launch of the toy."""

import dataclasses
import logging
import threading

import pytest
import torch

from etl.errors import ConfigError, DataError, SourceError
from etl.storage.location import Location
from tests.training.checkpoint_ranks import decays, digests, engine_of, launch, make_engine, step
from training.checkpoint import store
from training.checkpoint.checkpoints import Checkpoints, seed_generators
from training.checkpoint.config import CheckpointConfig
from training.checkpoint.store import complete_tags
from training.launch.process_group import world

# DeepSpeed and what it imports late use deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")


@pytest.fixture(scope="module")
def here():
    with world() as only:
        yield only


@pytest.fixture
def engine(here):
    return make_engine({"stage": 1, "bf16": False})


@pytest.fixture
def make(here, tmp_path):
    """Checkpoints in this test's folder."""

    def build(identity=None, **config):
        root = Location.of(tmp_path / "root")
        return Checkpoints(root, tmp_path / "scratch", CheckpointConfig(**config), here, identity or {})

    return build


def save(checkpoints, engine, number, score=None):
    checkpoints.save(engine_of(engine), {"step": number}, score)
    checkpoints.wait()


def steps(checkpoints):
    return [int(tag.split("-")[1]) for tag in complete_tags(checkpoints.root)]


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_run_goes_on_bit_for_bit(make, engine):
    for number in range(3):
        step(engine, number)
    checkpoints = make(identity={"student": {"hidden": 7}})
    assert checkpoints.newest() is None
    checkpoints.save(engine_of(engine), {"step": 3, "loss": 0.1}, score=2.5)
    checkpoints.wait()
    state, draw = digests(engine), torch.rand(3)
    losses = [step(engine, number) for number in range(3, 6)]

    fresh = make_engine({"stage": 1, "bf16": False})
    found = make(identity={"student": {"hidden": 7}}).newest()
    assert (found.payload, found.manifest.score) == ({"step": 3, "loss": 0.1}, 2.5)
    assert (found.world, found.zero_stage) == (1, 1)
    make().load(engine_of(fresh), found, seed=0)
    assert digests(fresh) == state
    assert torch.equal(torch.rand(3), draw)
    assert [step(fresh, number) for number in range(3, 6)] == losses


def test_the_configuration_wins_over_the_rates_in_a_checkpoint(make, engine):
    checkpoints = make()
    step(engine, 0)
    save(checkpoints, engine, 1)
    for stage in (1, 2):
        fresh = make_engine({"stage": stage, "bf16": False})
        fresh.optimizer.param_groups[0]["weight_decay"] = 0.3
        checkpoints.load(engine_of(fresh), checkpoints.newest(), seed=0)
        assert decays(fresh) == [0.3, 0.0]


def test_a_save_comes_back_before_the_upload_and_the_next_one_waits_for_it(make, engine, monkeypatch):
    put, gate = store._put, threading.Event()
    monkeypatch.setattr(store, "_put", lambda path, target: gate.wait() and put(path, target))
    checkpoints = make()
    checkpoints.save(engine_of(engine), {"step": 1})
    step(engine, 0)
    assert steps(checkpoints) == []
    timer = threading.Timer(0.3, gate.set)
    timer.start()
    checkpoints.save(engine_of(engine), {"step": 2})
    assert gate.is_set()
    assert 1 in steps(checkpoints)
    timer.join()
    checkpoints.wait()
    assert steps(checkpoints) == [1, 2]


def test_the_newest_and_the_best_stay(make, engine):
    checkpoints = make(keep=2, keep_best=2)
    for number, score in enumerate([2.0, 1.0, 3.0, 1.5, None, 4.0], start=1):
        save(checkpoints, engine, number, score)
    assert steps(checkpoints) == [2, 4, 5, 6]
    assert {path.name for path in files(checkpoints.scratch)} == set()


def test_local_files_are_not_copied(make, engine, monkeypatch):
    monkeypatch.setattr(Location, "upload", None)
    save(make(), engine, 1)


def test_a_half_written_checkpoint_is_not_seen_and_goes_later(make, engine):
    checkpoints = make()
    save(checkpoints, engine, 1)
    save(checkpoints, engine, 2)
    (newest,) = (tag for tag in complete_tags(checkpoints.root) if "00000002" in tag)
    (checkpoints.root / newest / "manifest.json").remove()
    assert checkpoints.newest().payload == {"step": 1}
    save(checkpoints, engine, 3)
    assert steps(checkpoints) == [1, 3]
    assert not (checkpoints.root / newest).exists()


def test_a_changed_file_is_told(make, engine):
    checkpoints = make()
    save(checkpoints, engine, 1)
    found = checkpoints.newest()
    file = checkpoints.root / found.tag / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    data = bytearray(file.read())
    data[len(data) // 2] ^= 1
    file.replace(bytes(data))
    for stage in (1, 3):
        with pytest.raises(DataError, match=r"optim_states\.pt does not match its receipt"):
            checkpoints.load(engine_of(make_engine({"stage": stage, "bf16": False})), found, seed=0)
    file.remove()
    with pytest.raises(DataError, match=r"optim_states\.pt is missing"):
        checkpoints.load(engine_of(engine), found, seed=0)


def test_another_student_is_refused(make, engine):
    save(make(identity={"hidden": 7}), engine, 1)
    with pytest.raises(ConfigError, match=r"'hidden': 7.*'hidden': 8.*another `output`"):
        make(identity={"hidden": 8}).newest()


def test_another_optimizer_goes_on_as_it_was_but_no_other_way(make, here):
    sgd = make_engine({"stage": 1, "bf16": False, "optimizer": "SGD"})
    step(sgd, 0)
    checkpoints = make()
    save(checkpoints, sgd, 1)
    found = checkpoints.newest()
    fresh = make_engine({"stage": 1, "bf16": False, "optimizer": "SGD"})
    checkpoints.load(engine_of(fresh), found, seed=0)
    assert step(fresh, 1) == step(sgd, 1)
    with pytest.raises(ConfigError, match="the optimizer is SGD: only AdamW"):
        checkpoints.load(engine_of(make_engine({"stage": 2, "bf16": False, "optimizer": "SGD"})), found, seed=0)


def test_an_upload_that_fails_costs_no_training_and_no_older_checkpoint(make, engine, caplog, monkeypatch):
    checkpoints = make()
    save(checkpoints, engine, 1)
    good = checkpoints.root
    checkpoints.root = Location.of("/dev/null/no-folder")
    checkpoints.save(engine_of(engine), {"step": 2})
    step(engine, 0)
    with caplog.at_level(logging.WARNING):
        checkpoints.save(engine_of(engine), {"step": 3})
    assert checkpoints.failures == 1
    assert "step-00000002" in caplog.text
    assert "/dev/null/no-folder" in caplog.text
    with pytest.raises(
        SourceError, match=r"step-00000003-\w+ is not complete \(rank 0: .*its files are kept in .*saves"
    ):
        checkpoints.wait()
    (kept,) = (checkpoints.scratch / "saves").iterdir()
    assert kept.name.startswith("step-00000003")
    assert len(files(kept)) >= 3
    checkpoints.root = good
    assert checkpoints.newest().payload == {"step": 1}
    save(checkpoints, engine, 4)
    assert steps(checkpoints) == [1, 4]
    assert files(checkpoints.scratch) == []


def test_scratch_that_cannot_be_written_is_told(make, engine):
    checkpoints = make()
    (checkpoints.scratch).write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot write a checkpoint to .*set checkpoint.scratch"):
        checkpoints.save(engine_of(engine), {"step": 1})


def test_random_states_of_another_world_are_a_function_of_seed_step_and_rank():
    def draw(*numbers):
        seed_generators(*numbers)
        return float(torch.rand(()))

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4)}) == 4


def test_two_ranks(make, engine, tmp_path):
    """1 → 2 and 2 → 1 with a change of stage, and one of two ranks that cannot upload."""
    alone = make()
    for number in range(1, 4):
        step(engine, number)
    save(alone, engine, 3)
    state, loss = digests(engine), step(engine, 100)
    common = {"bf16": False, "scratch": str(tmp_path / "two")}
    loaded, saved, broken = launch(
        [
            {"do": "load", "stage": 2, "root": str(tmp_path / "root"), **common},
            {"do": "save", "stage": 3, "steps": 3, "also_at": 2, "root": str(tmp_path / "both"), **common},
            {"do": "save", "stage": 0, "steps": 1, "root": str(tmp_path / "broken"), "broken_rank": 1, **common},
        ],
        2,
        tmp_path,
    )
    assert loaded["state"] == state
    assert loaded["loss"][0] == pytest.approx(loss, abs=1e-6)
    assert (saved["world"], saved["zero_stage"]) == (2, 3)
    assert broken["error"].startswith("SourceError: the checkpoint step-00000001-")
    assert "rank 1: " in broken["error"]
    assert complete_tags(Location.of(tmp_path / "broken")) == []

    both = dataclasses.replace(alone.root, url=str(tmp_path / "both"))
    assert len(complete_tags(both)) == 2
    alone.root = both
    fresh = make_engine({"stage": 1, "bf16": False})
    alone.load(engine_of(fresh), alone.newest(), seed=0)
    assert digests(fresh) == saved["state"]
    assert step(fresh, 100) == pytest.approx(saved["loss"][0], abs=1e-6)
    (index,) = tmp_path.glob("scratch/universal/*/index.json")
    written = index.stat().st_mtime_ns
    again = make_engine({"stage": 1, "bf16": False})
    alone.load(engine_of(again), alone.newest(), seed=0)
    assert index.stat().st_mtime_ns == written
