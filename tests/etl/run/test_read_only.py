"""A finished run in a read-only output is finished; an unfinished one reports what is in its way."""

import errno

import pytest

from etl.errors import DataError
from etl.run.run import run_recipe, run_stage
from etl.storage import location
from tests.engines.inprocess import IdleEngine, InProcessEngine
from tests.etl.stages.toys import files, make_recipe, plain_rows, run, write_jsonl

STAGES = ["dedup", "tokenize", "layout"]


@pytest.fixture
def made(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", plain_rows(20))
    recipe = make_recipe(tmp_path / "out", {"toy": source}, stages=STAGES)
    return recipe, run(recipe)


@pytest.fixture
def read_only(monkeypatch):
    """Nothing can be written or removed on the local disk, though root may do so whatever the modes say."""

    def refuses(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("link_local", "temporary_beside"):
        monkeypatch.setattr(location, name, refuses)
    for name in ("rm", "rm_file"):
        monkeypatch.setattr(location.LocalFileSystem, name, refuses)


def test_a_finished_run_says_so_and_writes_nothing(made, read_only, tmp_path):
    recipe, result = made
    before = files(tmp_path)
    lines = []
    again = run_recipe(recipe, IdleEngine(), lines.append)
    assert again.accounting == result.accounting
    assert again.corpus.manifest == result.corpus.manifest
    told = [line for line in lines if line.startswith(f"nothing to do: {tmp_path / 'out'}, which may not be written,")]
    assert len(told) == 1
    assert files(tmp_path) == before
    run_stage(recipe, IdleEngine(), lines.append, "tokenize")


def test_what_a_late_attempt_left_is_no_obstacle(made, read_only, tmp_path):
    (tmp_path / "out/ingest/part-late.parquet").write_bytes(b"late")
    run(made[0], IdleEngine())
    assert (tmp_path / "out/ingest/part-late.parquet").exists()


@pytest.mark.parametrize("sections", [{"dedup": {"near": {"seed": 7}}}, {"stages": [*STAGES[:2], "split", "layout"]}])
def test_a_run_with_something_to_do_is_refused(made, read_only, tmp_path, sections):
    recipe = make_recipe(tmp_path / "out", {"toy": tmp_path / "in.jsonl"}, **{"stages": STAGES} | sections)
    engine = InProcessEngine()
    with pytest.raises(DataError, match=r"no permission to write .*/out/_lock\.json \(.*Read-only file system"):
        run(recipe, engine)
    assert engine.ran == []


def test_an_output_that_is_not_there_is_refused(made, read_only, tmp_path):
    with pytest.raises(DataError, match="no permission to write"):
        run(made[0].model_copy(update={"output": str(tmp_path / "new")}), IdleEngine())


def test_the_engine_may_write_again_afterwards(made, monkeypatch, request, tmp_path):
    engine = InProcessEngine()
    request.getfixturevalue("read_only")
    run(made[0], engine)
    monkeypatch.undo()
    run(made[0].model_copy(update={"output": str(tmp_path / "new")}), engine)
    assert engine.ran
