"""What `Run.open` finds: in a finished output, a killed one, an old one, an empty one, and somebody else's folder."""

import itertools
import shutil

import pytest

from etl.errors import DataError
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from etl.storage.manifest import FLOW
from etl.storage.opened import Progress, Run, dataset_folders
from etl.storage.record import RECORD, RunRecord, StageRecord, write_record
from tests.engines.inprocess import DyingEngine, KilledError
from tests.etl.stages.toys import FILTER, make_recipe, mixed_rows, run, scores, write_jsonl, write_parquet
from tests.etl.storage.builds import InLine, begin, chunks_of, job

SPLITS = [[[1, 2], [3]], [[4]]]
STAGES = ["filter", "dedup", "kenlm", "score", "tokenize", "split", "layout"]
STEPS = (
    "ingest", "answer", "language", "english_share", "exact", "near", "perplexity", "strange", "harmony",
    "ctx_bucket", "split", "layout",
)  # fmt: skip


def commit(folder: Location) -> None:
    engine = InLine()
    engine.map(job(folder), SPLITS, chunks_of)
    engine.settle()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in")
    return {
        "a": write_parquet(folder / "a.parquet", mixed_rows(60)),
        "b": write_jsonl(folder / "b.jsonl", mixed_rows(30, seed=1)),
    }


def recipe_of(folder, sources, stages=STAGES):
    kenlm = {"order": 2, "fraction": 0.6, "seed": 1}
    return make_recipe(folder, sources, stages=stages, filter=FILTER, kenlm=kenlm, score=scores("run:kenlm"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, sources):
    folder = tmp_path_factory.mktemp("finished") / "out"
    run(recipe_of(folder, sources))
    return folder


@pytest.fixture(scope="module")
def old(tmp_path_factory, finished):
    """The same, as left by a version that knew no record."""
    folder = tmp_path_factory.mktemp("old") / "out"
    shutil.copytree(finished, folder)
    (folder / RECORD).unlink()
    return folder


def assert_chain(accounts) -> None:
    """What a step keeps is what the next one gets, and no row is lost between them."""
    for steps in accounts.values():
        for counts in steps.values():
            lost = sum(count for reason, count in counts.items() if reason not in FLOW)
            assert counts["in"] + counts["made"] == counts["kept"] + lost
        for before, after in itertools.pairwise(steps):
            assert steps[before]["kept"] == steps[after]["in"], (before, after)


def test_datasets_are_found_at_any_depth(folder):
    for name in ("ingest", "rounds/cut-0"):
        commit(folder / name)
    begin(job(folder / "later"), [0])
    left = Run.open(folder)
    assert (left.committed, left.started) == (("ingest", "rounds/cut-0"), ("later",))
    assert left.datasets["rounds/cut-0"].manifest == Dataset.open(folder / "rounds/cut-0").manifest
    alone = Run.open(folder / "ingest")
    assert (alone.committed, alone.started) == (("",), ())
    assert alone.dataset("").folder.url == (folder / "ingest").url
    assert set(alone.sizes("")) == set(left.sizes("ingest"))


def test_folders_of_a_listing():
    paths = ["_plan.json", "a/_manifest.json", "a/_plan.json", "a/b/_plan.json", "my_manifest.json", "c/x_plan.json"]
    assert dataset_folders(paths) == (("a",), ("", "a/b"))


def test_a_finished_output(finished):
    left = Run.open(finished)
    assert [stage.label for stage in left.stages] == ["ingest", *STAGES[:-1], "dropped", "layout"]
    assert left.recipe["name"] == "toy"
    assert left.own == left.datasets
    assert left.corpus == left.datasets["corpus"]
    for steps in left.accounts.values():
        assert tuple(steps) == STEPS
    assert_chain(left.accounts)


def test_an_old_output_opens_by_its_manifests(old, finished):
    left = Run.open(old)
    assert (left.record, left.recipe, left.stages) == (None, None, ())
    assert left.accounts == Run.open(finished).accounts
    assert {"ingest", "english_share", "near", "kenlm", "tokenize", "dropped", "corpus"} <= set(left.datasets)
    assert left.started == ()
    assert left.corpus is not None
    assert left.corpus.manifest.stage == "corpus"
    assert set(left.thresholds) == {"english_share", "strange"}
    assert "near" in left.findings
    assert list(left.accounts) == ["a", "b"]
    assert_chain(left.accounts)
    assert all(set(steps) == set(STEPS) for steps in left.accounts.values())


def test_accounts_without_a_corpus_are_put_together_from_the_stages(tmp_path, finished, old):
    whole = Run.open(finished).accounts
    before = {
        source: {step: counts for step, counts in steps.items() if step != "layout"} for source, steps in whole.items()
    }
    for place in (finished, old):
        shutil.copytree(place, tmp_path / place.parent.name)
        shutil.rmtree(tmp_path / place.parent.name / "corpus")
        left = Run.open(tmp_path / place.parent.name)
        assert left.corpus is None
        assert left.accounts == before
        assert_chain(left.accounts)


def test_a_record_says_the_order_and_which_datasets_are_the_runs(tmp_path, sources):
    run(recipe_of(tmp_path / "out", sources, stages=["filter", "tokenize"]))
    stages = (
        StageRecord(label="ingest", kind="ingest", folders={"ingest": "PROMPT"}, steps=("ingest",)),
        StageRecord(
            label="filter",
            kind="filter",
            folders={"filter": "FILTER", "english_share": "VERDICT"},
            steps=("answer", "language", "english_share"),
        ),
    )
    write_record(Location.of(tmp_path / "out"), RunRecord(name="toy", stages=stages, recipe={"name": "toy"}))
    left = Run.open(tmp_path / "out")
    assert (left.stages, left.recipe) == (stages, {"name": "toy"})
    assert "tokenize" in left.datasets
    assert {name.rstrip("012345") for name in left.own} == {
        "ingest",
        "filter",
        "english_share",
        "rounds/english_share-",
    }
    assert list(left.accounts["a"]) == ["ingest", "answer", "language", "english_share"]
    assert_chain(left.accounts)


def test_a_killed_run(tmp_path, sources):
    with pytest.raises(KilledError):
        run(recipe_of(tmp_path / "out", sources, stages=["tokenize"]), DyingEngine(2))
    left = Run.open(tmp_path / "out")
    assert (left.committed, left.corpus, left.accounts) == ((), None, {})
    assert [stage.label for stage in left.stages] == ["ingest", "tokenize", "dropped"]
    assert left.started == ("dropped", "ingest", "tokenize")
    splits = len(left.plan("ingest").splits)
    assert left.progress("ingest") == Progress(2, splits)


def test_progress_reads_no_receipt(folder, monkeypatch):
    _, _, writer = begin(job(folder), SPLITS)
    writer.write(1, chunks_of(SPLITS[1]))
    read = Location.read_at_most
    seen = []
    monkeypatch.setattr(Location, "read_at_most", lambda place, most: (seen.append(place.name), read(place, most))[1])
    assert Run.open(folder).progress("") == Progress(1, 2)
    assert seen == ["_plan.json"]


def test_an_empty_folder_and_one_that_is_not_there(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        left = Run.open(place)
        assert (left.committed, left.started, left.datasets) == ((), (), {})
        assert (left.record, left.recipe, left.stages, left.corpus) == (None, None, (), None)
        assert (left.accounts, left.thresholds, left.findings) == ({}, {}, {})
        with pytest.raises(DataError, match="is not a committed dataset"):
            left.dataset("ingest")
        with pytest.raises(DataError, match="there is no"):
            left.progress("ingest")
    assert not (tmp_path / "nowhere").exists()


def test_somebody_elses_folder(folder):
    for path in ("notes.txt", "a/part-0.parquet", "b/_notes/x"):
        (folder / path).create(b"x")
    left = Run.open(folder)
    assert (left.committed, left.started, left.record, left.accounts) == ((), (), None, {})
    assert len(left.entries) == 3


def test_nothing_that_a_record_names_is_opened(tmp_path):
    """A folder that only the record knows of is no dataset, and one that is elsewhere is refused."""
    commit(Location.of(tmp_path / "secret"))
    output = Location.of(tmp_path / "out")
    commit(output / "ingest")
    stage = StageRecord(label="ingest", kind="ingest", folders={"ingest": "PROMPT", "not-there": "X"})
    write_record(output, RunRecord(name="toy", stages=(stage,), recipe={}))
    assert set(Run.open(output).own) == {"ingest"}
    forged = (output / RECORD).read().replace(b"not-there", b"../secret")
    (output / RECORD).replace(forged)
    with pytest.raises(DataError, match=r"_run\.json is damaged"):
        _ = Run.open(output).own


def test_a_damaged_manifest_is_told(folder):
    commit(folder / "ingest")
    (folder / "ingest/_manifest.json").replace(b"{")
    with pytest.raises(DataError, match="is damaged"):
        _ = Run.open(folder).datasets
