"""What a run says while it works: exact lines of a toy run, and its numbers against the rows themselves."""

import io
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.columns import width
from etl.engine import Engine
from etl.errors import DataError
from etl.library_log import libraries_aside
from etl.live import LiveLine
from etl.run.run import run_recipe
from etl.run.told import Lines, StageLines, StageOutcome, notes_of, under_way
from etl.storage.batches import store_batch
from etl.storage.build import Build, Chunk, Job
from etl.storage.costs import EngineCost
from etl.storage.dataset import CHECKPOINTS, Dataset
from etl.storage.location import Location
from etl.storage.progress import Counts, Seen, Watched, Writing
from etl.voice import Voice
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.toys import FILTER, make_recipe, mixed_rows, read, stage, write_jsonl

STAGES = ["filter", "dedup", "tokenize", "split", "layout"]
BAD = ["{", '"text"']
"""Lines that cannot be read."""


def said(recipe, **options):
    lines = []
    result = run_recipe(recipe, InProcessEngine(), Voice(lines.append, **options))
    return result, lines


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    source = write_jsonl(folder / "in.jsonl", mixed_rows(60))
    with source.open("a") as file:
        file.write("\n".join(BAD) + "\n")
    return make_recipe(folder / "out", {"toy": source}, stages=STAGES, filter=FILTER)


@pytest.fixture(scope="module")
def first(recipe):
    """The run and its lines where each dataset takes two seconds."""

    def costs(self, written, costs):
        self.ledger.settle()
        return [EngineCost(wall_s=2.0) for _ in written]

    with pytest.MonkeyPatch.context() as patch, libraries_aside():
        patch.setattr(Engine, "_engine_costs", costs)
        return said(recipe)


@pytest.fixture
def output(recipe):
    return Path(recipe.output)


def test_a_toy_run_says_these_lines_without_a_terminal(first, output):
    _, lines = first
    size = (output.parent / "in.jsonl").stat().st_size
    lost = "2 quarantined (invalid_json 1, not_an_object 1), 1 dropped (blank_answer 1)"
    assert lines[: lines.index("")] == [
        "stage         rows in   lost   left    time  rows/s  lost to",
        "1/6 ingest         62      3     59   4.0 s      16  blank_answer 1, invalid_json 1, not_an_object 1",
        f"  toy: 62 rows in 1 file, {size:,} bytes: 59 kept, {lost}",
        "2/6 filter         59      9     50   6.0 s     9.8  over_share 9",
        "3/6 dedup          50     10     40    20 s     2.5  near_duplicate 6, exact_duplicate 4",
        "  toy: 10 of 50 rows are duplicates (20.0%); over-select by 1.250",
        "4/6 tokenize       40      0     40   2.0 s      20  5,428 tokens (2,714/s)",
        "5/6 split          40      0     40   4.0 s      10",
        "6/6 layout         40      0     40   4.0 s      10  5,428 tokens (1,357/s)",
    ]


def test_the_numbers_are_those_of_the_rows(first, output):
    result, _ = first
    dropped = Counter((row["stage"], row["reason"]) for row in read(stage(output, "dropped")))
    quarantined = Counter(("ingest", row["reason"]) for row in read(stage(output, "quarantine")))
    assert sum(quarantined.values()) == len(BAD)
    lost = Counter({(one.label, reason): rows for one in result.stages for reason, rows in one.lost.items()})
    assert lost == dropped + quarantined
    assert [one.label for one in result.stages] == ["ingest", *STAGES]
    left = 60 + len(BAD)
    for one in result.stages:
        assert one.rows_in == left
        assert one.rows_in + one.made == one.left + one.assembled + one.num_lost
        left = one.left
    assert left == result.corpus.manifest.rows_out


INTERNALS = ["  exact: 50 in, 4 lost, 46 left, ", "  near: 21 bands × 6 rows: a pair at similarity 0.8 is found with"]


def internals(lines):
    return [inside for inside in INTERNALS if any(line.startswith(inside) for line in lines)]


def test_the_log_in_the_output_has_all_lines_with_their_time_and_the_internals(first, output):
    _, lines = first
    log = (output / "_run.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ  ", line) for line in log)
    kept = [line[22:] for line in log]
    assert [line for line in kept if line in lines] == lines
    assert internals(kept) == INTERNALS
    assert internals(lines) == []


def test_a_second_run_says_nothing_of_stages_and_a_resumed_one_what_was_there(recipe, first, output):
    before, log = first[0], (output / "_run.log").read_bytes()
    with libraries_aside():
        again, lines = said(recipe)
    assert (before.had_nothing_to_do, again.had_nothing_to_do) == (False, True)
    assert not [line for line in lines if line.startswith(("stage ", "1/6"))]
    assert lines[1] == f"nothing to do: {output} holds all that this recipe makes"
    assert (output / "_run.log").read_bytes() == log
    assert [one.lost for one in again.stages] == [one.lost for one in before.stages]
    assert {one.wall_s for one in again.stages} == {None}
    (output / "tokenize" / "_manifest.json").unlink()
    next((output / "tokenize" / "_receipts").rglob("*.json")).unlink()
    resumed, lines = said(recipe)
    assert [one.label for one in resumed.stages if one.wall_s is not None] == ["tokenize"]
    assert [line.split("  ")[0] for line in lines if line.endswith("done before")] == [
        "1/6 ingest", "2/6 filter", "3/6 dedup", "5/6 split", "6/6 layout"
    ]  # fmt: skip
    assert next(line for line in lines if line.startswith("4/6")).endswith("; resumed")


def test_a_terminal_gets_lines_of_its_width_all_reasons_in_the_end_and_internals_if_asked(recipe, first, tmp_path):
    other = recipe.model_copy(update={"output": str(tmp_path / "other")})
    _, lines = said(other, columns=lambda: 76, is_verbose=True)
    table = [line for line in lines[: lines.index("")] if not line.startswith(" ")]
    assert [width(line) <= 76 for line in table] == [True] * 7
    assert next(line for line in table if line.startswith("1/6")).endswith("  blank_answer 1, 2 more")
    assert any("not_an_object 1" in line for line in lines[lines.index("") :])
    assert internals(lines) == INTERNALS
    assert not (tmp_path / "other" / "_run.log").exists()


REASONS = st.dictionaries(st.text("abc_", min_size=1, max_size=20), st.integers(1, 10**9), max_size=6)


@given(REASONS, st.integers(12, 120), st.integers(0, 10**9), st.none() | st.floats(0, 1e6))
def test_reasons_fit_their_room_or_are_counted(lost, room, tokens, wall_s):
    outcome = StageOutcome("s", 10, 0, 0, lost, 0, tokens, wall_s)
    whole, shown = notes_of(outcome, None), notes_of(outcome, room)
    assert all(f"{reason} {rows:,}" in whole for reason, rows in lost.items())
    if width(whole) <= room:
        assert shown == whole
    counted = re.search(r"(\d+) (more|reasons)", shown)
    named = sum(f"{reason} {rows:,}" in re.split(", |; ", shown) for reason, rows in lost.items())
    assert named + (int(counted[1]) if counted else 0) == len(set(lost))


@pytest.mark.parametrize(
    ("seen", "elapsed_s", "said"),
    [
        ([Seen(4, 0, Counts())], 12, "0 of 4 parts, 12 s so far"),
        ([Seen(4, 1, Counts(100, 90, 0, 10))], 2, "1 of 4 parts, 100 rows, 10 lost, 50 rows/s, 6.0 s left"),
        ([Seen(4, 0, Counts(), 60)], 3, "0 of 4 parts, 60 rows, 20 rows/s, 3.0 s so far"),
        (
            [Seen(2, 1, Counts(80)), Seen(2, 1, Counts(80, 80, 4_000))],
            2,
            "2 of 4 parts, 80 rows, 2,000 tokens/s, 2.0 s left",
        ),
    ],
)
def test_what_is_under_way_in_words(seen, elapsed_s, said):
    assert under_way(seen, elapsed_s) == said


def test_what_tasks_leave_is_counted_once_and_that_of_an_earlier_run_not_at_all(tmp_path):
    schema = pa.schema([("n", pa.int64())])
    build = Build(Job(Location.of(tmp_path / "d"), "d", "T", schema, {}))
    plan = build.plan(range(4))
    writer = build.writer(plan)

    def write(split):
        writer.write(split, [Chunk(pa.record_batch([pa.array([split])], schema), 5 + split)])

    write(0)
    watched = Watched(Writing(build.ref(plan), plan.fingerprint, frozenset([0])))
    assert watched.look() == Seen(3, 0, Counts())
    checkpoints = build.folder / CHECKPOINTS / plan.fingerprint / "00002"
    for row in (0, 40, 1000):
        store_batch(checkpoints / f"{row:010d}.arrow", pa.record_batch([pa.array([1])], schema))
    write(1)
    assert watched.look() == Seen(3, 1, Counts(6, 1), 1000)
    write(2)
    assert watched.look() == watched.look() == Seen(3, 2, Counts(13, 2), 0)


def test_what_cannot_be_seen_is_said_and_ends_nothing(tmp_path, monkeypatch):
    shown = []

    class Live(LiveLine):
        def show(self, text):
            shown.append(text)
            over.append(True)

    over = []
    lines = StageLines(["a"], Lines(Voice(lambda line: None, live=Live(io.StringIO, pause_s=0))))

    def refuse(self):
        raise DataError("no listing here")

    monkeypatch.setattr(Watched, "look", refuse)
    build = Build(Job(Location.of(tmp_path / "a"), "a", "T", Dataset, {}))
    with lines.job([Writing(build.ref(build.plan([0])), "")]):
        while not over:
            pass
    assert set(shown) == {"a: how far it is cannot be seen (no listing here)"}
