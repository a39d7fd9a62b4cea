"""What a run says of its sources, and the sources that end it."""

import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.errors import SourceError
from etl.run.plan import plan_recipe
from etl.run.recipe import Recipe
from etl.run.run import run_recipe
from etl.stages.intake import Intake, line
from tests.engines.inprocess import IdleEngine, InProcessEngine
from tests.etl.stages.test_ingest import flawed_jsonl
from tests.etl.stages.toys import make_recipe, plain_rows, read, run, stage, write_jsonl

ALPACA = [{"instruction": f"Say {number}.", "input": "", "output": f"{number}", "note": "n"} for number in range(20)]


def recipe_of(output, path, spec="alpaca", **more):
    tree = {"name": "toy", "output": str(output), "sources": {"mine": {"spec": str(spec), "path": str(path)} | more}}
    return Recipe.model_validate(tree | {"stages": ["tokenize", "layout"]})


def refusal(recipe, engine=None):
    with pytest.raises(SourceError) as raised:
        run(recipe, engine)
    return str(raised.value)


def line_of(recipe):
    lines = []
    run_recipe(recipe, InProcessEngine(), lines.append)
    (found,) = [line.split(None, 1)[1] for line in lines if line.split()[:1] == ["mine:"]]
    return found


def shown(refusal):
    """What the command in a refusal prints."""
    command = re.search(r"to see them: (python -c .*?); (?:to go|if it|the)", refusal)[1]
    assert command.startswith("python ")
    done = subprocess.run(
        f"{sys.executable} {command.removeprefix('python ')}", shell=True, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_an_account_by_reason():
    counts = {"in": 9, "made": 1, "kept": 4, "blank_answer": 2, "blank_prompt": 0, "quarantined:invalid_json": 4}
    intake = Intake.of("mine", {"ingest": counts}, {})
    assert (intake.dropped, intake.dropped_by_reason) == (2, {"blank_answer": 2})
    assert (intake.quarantined, intake.quarantined_by_reason) == (4, {"invalid_json": 4})
    assert intake.rows_in + intake.made == intake.kept + intake.dropped + intake.quarantined


def test_an_account_of_assembled_rows():
    assembly = {"in": 20, "made": 3, "assembled": 8, "kept": 5, "deleted": 10}
    ingest = {"in": 5, "made": 0, "kept": 3, "quarantined:no_parent": 2}
    intake = Intake.of("mine", {"assemble": assembly, "ingest": ingest}, {})
    assert (intake.rows_in, intake.made, intake.assembled, intake.num_read) == (20, 3, 8, 5)
    assert intake.kept + intake.dropped + intake.quarantined + intake.assembled == 20 + 3
    assert line(intake, "1 file", []).endswith(
        "20 rows in 1 file: 8 assembled into 3, 3 kept, 2 quarantined (no_parent 2), 10 dropped (deleted 10)"
    )


def test_the_line_of_a_source(tmp_path):
    rows = [*ALPACA, ALPACA[0] | {"output": " \n"}, {"instruction": "Say.", "input": ""}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    said = f"22 rows in 1 file, {path.stat().st_size:,} bytes: 20 kept, 1 quarantined (missing_output 1), "
    assert line_of(recipe_of(tmp_path / "out", path)) == f"{said}1 dropped (blank_answer 1); columns not used: note"
    assert stage(tmp_path / "out", "ingest").manifest.findings["inputs"]["mine"]["columns_not_used"] == ["note"]


def test_the_line_of_prompts_says_so(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Why?"}, {"prompt": " "}])
    said = line_of(recipe_of(tmp_path / "out", path, "prompts"))
    assert said.endswith(": 1 kept, 1 dropped (blank_prompt 1); prompts without answers")


def test_a_twentieth_of_a_source_may_be_bad(tmp_path):
    bad = write_jsonl(tmp_path / "a.jsonl", [*ALPACA[:19], {}])
    run(recipe_of(tmp_path / "out", bad))
    worse = write_jsonl(tmp_path / "b.jsonl", [*ALPACA[:18], {}])
    assert "1 of 19 rows (5.3%)" in refusal(recipe_of(tmp_path / "out", worse))


def test_the_refusal_of_bad_rows_says_what_is_wrong_and_what_to_do(tmp_path):
    (position, *_), *_ = flawed_jsonl(tmp_path / "flawed.jsonl")
    recipe = make_recipe(tmp_path / "an out", {"toy": tmp_path / "flawed.jsonl"}, max_bad_fraction=0.05)
    said = refusal(recipe)
    assert said.startswith(
        "source 'toy': 3 of 10 rows (30.0%) could not be read (invalid_json 2, missing_query 1), more than "
        f"max_bad_fraction=0.05; the first invalid_json is flawed.jsonl, position {position}: "
    )
    assert "\n" not in said
    positions = [f"'position': {row['position']}," for row in read(stage(tmp_path / "an out", "quarantine"))]
    assert all(position in line for position, line in zip(positions, shown(said), strict=True))
    assert said.endswith("; to go on without them, set max_bad_fraction=0.3")
    run(recipe.model_copy(update={"max_bad_fraction": 0.3}))


def test_a_source_whose_rows_are_all_bad_ends_the_run(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"problem": "1 + 1", "solution": "2"}] * 3)
    recipe = recipe_of(tmp_path / "out", path)
    said = refusal(recipe)
    assert said.startswith("source 'mine' gives no row: of 3 there are 3 quarantined (missing_")
    assert "; the first missing_instruction is a.jsonl, position 0: null or absent; " in said
    assert len(shown(said)) == 3
    assert "; the rows have the columns problem, solution; the nearest description is {" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"_run.json", "ingest", "quarantine"}
    assert refusal(recipe, IdleEngine()) == said
    # Whatever share may be bad, a source without a row is another matter.
    assert refusal(recipe.model_copy(update={"max_bad_fraction": 1.0}), IdleEngine()) == said


def test_the_error_names_the_shipped_description_that_reads_the_rows(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ALPACA)
    (tmp_path / "mine.yaml").write_text("{shape: columns, user: question, final: output, skill_bucket: math}")
    said = refusal(recipe_of(tmp_path / "out", path, tmp_path / "mine.yaml"))
    assert "; the nearest description is alpaca (columns from instruction, output: 20 of 20 rows); if it may" in said


def test_the_error_of_a_table_that_lacks_columns_names_what_reads_it(tmp_path):
    pq.write_table(pa.Table.from_pylist(ALPACA), tmp_path / "a.parquet")
    said = refusal(recipe_of(tmp_path / "out", tmp_path / "a.parquet", "verifiable"))
    assert "a.parquet lacks the columns ['problem']; it has ['instruction'" in said
    assert "; the nearest description is alpaca (" in said


def test_stages_after_ingest_share_its_work_where_the_first_rows_are_sound(tmp_path):
    sound, flawed = InProcessEngine(), InProcessEngine()
    run(recipe_of(tmp_path / "one", write_jsonl(tmp_path / "a.jsonl", ALPACA)), sound)
    run(recipe_of(tmp_path / "two", write_jsonl(tmp_path / "b.jsonl", [{}, *ALPACA])), flawed)
    assert sound.ran[0][0].startswith("ingest+tokenize")
    assert flawed.ran[0] == ("ingest", 0)


def test_a_run_goes_on_once_the_description_is_right(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"problem": "1 + 1", "solution": "2"}] * 3)
    (tmp_path / "mine.yaml").write_text("{shape: columns, user: question, final: solution, skill_bucket: math}")
    recipe = recipe_of(tmp_path / "out", path, tmp_path / "mine.yaml")
    refusal(recipe)
    with pytest.raises(SourceError, match="'mine' gives no row"):
        plan_recipe(recipe)
    (tmp_path / "mine.yaml").write_text("{shape: columns, user: problem, final: solution, skill_bucket: math}")
    assert next(stage.action for stage in plan_recipe(recipe).stages) == "run"
    assert run(recipe).corpus.manifest.rows_out == 3


def test_a_plan_looks_at_an_input_that_has_changed_since_rows_of_it_were_bad(tmp_path):
    flawed_jsonl(tmp_path / "flawed.jsonl")
    recipe = make_recipe(tmp_path / "out", {"toy": tmp_path / "flawed.jsonl"})
    run(recipe)
    write_jsonl(tmp_path / "flawed.jsonl", plain_rows(3))
    assert next(stage.action for stage in plan_recipe(recipe).stages) == "run"


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_source_of_empty_files_ends_the_run(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    said = refusal(recipe_of(tmp_path / "out", tmp_path / "a.jsonl"))
    assert said == (
        f"source 'mine' gives no row: there is none in its 1 file, {len(content)} bytes; if it may be so, set "
        "sources.mine.may_be_empty=true"
    )
    run(recipe_of(tmp_path / "out", tmp_path / "a.jsonl", may_be_empty=True))


def test_a_source_of_blank_rows_ends_the_run_in_its_own_words(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"instruction": " ", "input": "", "output": "yes"}] * 2)
    said = refusal(recipe_of(tmp_path / "out", path))
    assert said.startswith("source 'mine' gives no row: of 2 there are 2 dropped (blank_prompt 2); to see them: ")
    assert all("blank_prompt" in line for line in shown(said))


def test_what_may_be_empty_may_still_not_be_bad(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{}])
    recipe = recipe_of(tmp_path / "out", path, may_be_empty=True)
    assert "1 of 1 rows (100.0%)" in refusal(recipe)
    assert run(recipe.model_copy(update={"max_bad_fraction": 1.0})).corpus.manifest.rows_out == 0
