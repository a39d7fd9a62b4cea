"""What an earlier recipe left: found beside what a record owns, never somebody else's, removed only when asked for."""

import shutil
import time

import pyarrow as pa
import pytest

from etl.storage import stale
from etl.storage.catalog import statements
from etl.storage.dataset import MANIFEST
from etl.storage.location import Location
from etl.storage.opened import Run
from etl.storage.record import RECORD, RunRecord, StageRecord, write_record
from etl.storage.stale import folders_in, outdated, stale_below, stale_folders, stale_lines
from etl.storage.sweep import find_leftovers, find_stale, remove_leftovers
from etl.storage.verify import verify
from tests.datasets import write_dataset

ROWS = pa.table({"word": ["a", "b"]})
RUN = RunRecord(
    name="toy",
    stages=(
        StageRecord(label="ingest", kind="ingest", folders={"ingest": "PROMPT", "tables/a": "TABLE"}),
        StageRecord(label="cut", kind="filter", folders={"share": "VERDICT"}, steps=("share",)),
        StageRecord(
            label="dedup", kind="dedup", folders={"edges": "EDGE"}, folders_by_rows={"candidate_components": "LABEL"}
        ),
    ),
    recipe={},
)
OWN = (
    "ingest", "tables/a", "share", "rounds/share-2", "edges", "rounds/edges-nodes", "candidate_components",
    "rounds/candidate_components-7",
)  # fmt: skip
STALE = ("near", "other/deep", "rounds/late-share-2", "tables/b")


def put(root: Location, folder: str, stage: str | None = None, table: str = "WORDS") -> None:
    write_dataset(root / folder, stage or folder, table, {"": ROWS})


@pytest.fixture
def output(tmp_path):
    """A run's output with what it owns, what it does not, and what others put there."""
    root = Location.of(tmp_path / "out")
    for folder in (*OWN, *STALE):
        put(root, folder)
    put(root, "near-copied", stage="near")
    put(root, "teacher_logp", table="TEACHER_LOGP")
    put(root, "student/near", stage="near")
    (root / "student/notes.txt").create(b"mine")
    for folder in ("ingest", "old"):
        put(root / "inner", folder)
    write_record(root / "inner", RUN)
    write_record(root, RUN)
    return root


def test_a_record_owns_its_folders_their_rounds_and_what_the_rows_ask_for():
    assert all(map(RUN.owns, OWN))
    assert not any(map(RUN.owns, (*STALE, "rounds", "tables", "rounds/share", "share/x", "")))


def test_stale_is_what_no_stage_owns_and_nobody_else(output):
    assert stale_folders(output, RUN) == STALE
    assert stale_below(Run.open(output)) == ("inner/old", *STALE)
    assert stale_below(Run.open(output / "inner")) == ("old",)
    assert stale_below(Run.open(output / "near")) == ()


def test_without_a_record_nothing_is_stale(output):
    (output / RECORD).remove()
    assert stale_below(Run.open(output)) == ("inner/old",)
    assert stale_folders(output / "nowhere", RUN) == ()


def test_only_what_nobody_owns_is_looked_into(output, monkeypatch):
    seen = []
    monkeypatch.setattr(stale, "folders_in", lambda place: (seen.append(place.url), folders_in(place))[1])
    stale_folders(output, RUN)
    looked = ["", "/other", "/rounds", "/student", "/tables"]
    assert sorted(seen) == [f"{output.url}{folder}" for folder in looked]


def test_a_run_names_a_few_and_counts_the_rest(output):
    lines = list(stale_lines(output, STALE))
    assert [what for what, _ in lines] == ["near", "other/deep", "rounds/late-share-2", "stale"]
    assert lines[-1][1] == f"and 1 more; `stillhouse sweep {output.path} --stale --delete` removes what is stale"
    assert list(stale_lines(output, ())) == []
    assert len(list(stale_lines(output, STALE[:1]))) == 2


def test_verify_names_it_and_checks_it_as_any_other(output):
    found = list(verify(output))
    assert {item.dataset.removeprefix(f"{output.url}/") for item in found} == {"inner/old", *STALE}
    assert {(item.kind, item.is_damage) for item in found} == {("stale", False)}
    (part,) = [path for path, _ in (output / "near").walk() if path.startswith("part-")]
    (output / "near" / part).remove()
    assert [item.kind for item in verify(output) if item.is_damage] == ["missing"]


def test_catalog_leaves_it_out_and_says_so(output):
    made = list(statements(output, "duckdb"))
    left_out = "skipped, as it is from an earlier recipe and no stage of the last recipe writes it"
    assert f"-- near: {left_out}" in made
    assert sum(left_out in line for line in made) == len(STALE) + 1
    assert any('VIEW "near_copied"' in line for line in made)
    assert next(statements(output / "near", "duckdb")).startswith("CREATE OR REPLACE VIEW"), "named outright"


def test_sweep_leaves_it_unless_it_is_asked_for(output):
    assert find_leftovers(output, 0.0, time.time() + 10) == []
    (output / "near/notes.txt").create(b"mine")
    before = dict(output.walk())
    going = find_stale(output, time.time())
    manifests = [item.path.endswith(MANIFEST) for item in going]
    assert manifests == sorted(manifests), "the manifest goes last"
    remove_leftovers(output, going)
    gone = tuple(f"{folder}/" for folder in ("inner/old", *STALE))
    kept = {path: size for path, size in before.items() if not path.startswith(gone) or path == "near/notes.txt"}
    assert dict(output.walk()) == kept
    assert find_stale(output, time.time()) == []
    assert (folders_in(output / "near"), folders_in(output / "other")) == ((), ())
    others = {"inner", "near", "near-copied", "student", "teacher_logp"}
    assert folders_in(output) == tuple(sorted({folder.partition("/")[0] for folder in OWN} | others))


def test_a_corpus_without_the_run_that_made_it_is_taken_as_it_is(output, tmp_path):
    put(output, "corpus", table="CORPUS")
    assert "no stage of the recipe that last ran in" in outdated(output / "corpus")
    shutil.copytree(f"{output.path}/corpus", tmp_path / "elsewhere" / "corpus")
    assert outdated(str(tmp_path / "elsewhere" / "corpus")) == ""
    (output / RECORD).replace(b"{")
    assert "cannot be read" in outdated(output / "corpus")
    (output / RECORD).remove()
    assert outdated(output / "corpus") == ""
