"""Bad input of a run is reported in one of the four errors, and the last checkpoint is kept whole."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from etl.errors import ConfigError, DataError, StillhouseError
from tests.datasets import write_dataset
from tests.training.corpora import VOCAB, documents, write_corpus
from tests.training.disturbed_runs import arguments, checked_steps, configuration, settings
from tests.training.faulty import FACTORY, FAULT
from tests.training.toy_runs import records
from training.train import main, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")

TOKENS = "stages.0.tokens=1400"
PACKS_A_STEP = 4


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """A corpus, and the output of a run on it that was paused after step 2."""
    folder = tmp_path_factory.mktemp("run")
    write_corpus(folder / "corpus")
    train(configuration(folder / "corpus", folder / "output", TOKENS, FACTORY, "max_steps=2"))
    return folder


@pytest.fixture
def run(untouched, tmp_path):
    """A copy of it that a test may damage; the configuration that continues it."""
    shutil.copytree(untouched, tmp_path, dirs_exist_ok=True)
    return tmp_path


def going_on(run, *more):
    return train(configuration(run / "corpus", run / "output", TOKENS, FACTORY, *more))


def part_of(run, split="train"):
    return next((run / "corpus").glob(f"split={split}/skill_bucket=B1/*/*.parquet"))


def refused(run, kind, match, *more):
    """Going on is refused, by exit code 2 too, and what was saved before is whole."""
    with pytest.raises(kind, match=match):
        going_on(run, *more)
    assert main(arguments(settings(run / "corpus", run / "output", TOKENS, FACTORY, *more))) == 2
    assert checked_steps(run / "output") == [2]


# --- the corpus ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_part_that_is_gone_is_named_and_the_run_goes_on_when_it_is_back(run, split):
    path = part_of(run, split)
    path.rename(run / "aside")
    refused(run, DataError, f"{path.name} is gone")
    (run / "aside").rename(path)
    assert going_on(run).complete


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_part_of_another_size_than_the_manifests_is_named(run, split):
    path = part_of(run, split)
    size = path.stat().st_size
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table, path)
    refused(
        run, DataError, rf"{path.name} has [\d,]+ bytes, but the manifest says {size:,} bytes; run `stillhouse verify"
    )


def test_a_part_that_was_cut_short_is_named(run):
    path = part_of(run)
    path.write_bytes(path.read_bytes()[:-100])
    refused(run, DataError, rf"{path.name} has [\d,]+ bytes, but the manifest says")


def chunk(path, column):
    """First byte and length of a column of the first row group."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    (found,) = (c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.startswith(column))
    return found.dictionary_page_offset or found.data_page_offset, found.total_compressed_size


@pytest.mark.parametrize("column", ["n_tokens", "input_ids", "id"])
def test_a_row_group_whose_bytes_were_overwritten_is_named(run, column):
    path = part_of(run)
    start, length = chunk(path, column)
    data = bytearray(path.read_bytes())
    data[start : start + length] = bytes(length)
    path.write_bytes(data)
    refused(run, DataError, rf"{path.name}, row group 0 is damaged")


@pytest.mark.parametrize("column", ["n_tokens", "input_ids", "spans.list.element.end"])
def test_one_bit_that_turned_in_a_part_is_noticed(run, column):
    path = part_of(run)
    start, length = chunk(path, column)
    data = bytearray(path.read_bytes())
    data[start + length - 8] ^= 1
    path.write_bytes(data)
    refused(run, DataError, rf"{path.name}, row group 0 is damaged")


def test_a_manifest_that_is_damaged_or_gone_is_named(run):
    path = run / "corpus" / "_manifest.json"
    path.write_text(path.read_text()[:-30])
    refused(run, DataError, r"_manifest.json is damaged")
    path.unlink()
    refused(run, DataError, r"is not a committed dataset \(no _manifest.json\)")


def test_the_folder_of_a_run_hints_at_the_corpus_in_it(run):
    (run / "data").mkdir()
    (run / "corpus").rename(run / "data" / "corpus")
    with pytest.raises(DataError, match=r"is not a committed dataset.*; did you mean .*data/corpus\?"):
        going_on(run, f"data.corpus={run / 'data'}")


# --- lengths ---------------------------------------------------------------------------------------------------------


def test_documents_that_are_mostly_too_long_are_refused_before_the_first_step_of_the_run(run):
    stages = [{"name": "fits", "tokens": 400}, {"name": "short", "tokens": 400, "data": {"pack_tokens": 8}}]
    given = settings(run / "corpus", run / "new", FACTORY, f"stages={json.dumps(stages)}")
    assert main(arguments(given)) == 2
    assert not (run / "new" / "metrics.jsonl").exists()
    with pytest.raises(ConfigError, match=r"stage 'short': \d+ of 120 .* data\.max_left_out = 0\.3 allows; raise data"):
        train(configuration(run / "corpus", run / "new", FACTORY, f"stages={json.dumps(stages)}"))


# --- vocabularies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evaluate", ["evaluate.every_tokens=500", "evaluate=null"])
def test_a_student_with_a_smaller_vocabulary_is_refused_before_the_first_step_naming_both_sizes(
    untouched, tmp_path, evaluate
):
    config = configuration(untouched / "corpus", tmp_path, TOKENS, "model.params.vocab=90", evaluate)
    with pytest.raises(ConfigError, match=rf"row group 0 has .* at least {VOCAB} ids, but the student has 90"):
        train(config, lambda record: pytest.fail("a step was taken"))
    assert not list(tmp_path.glob("checkpoints/*"))


def with_teacher(config, vocab):
    """Overrides for a divergence from a teacher of this vocabulary."""
    teacher = {**config.model.model_dump(), "params": {**config.model.params, "vocab": vocab}}
    return [f"teacher={json.dumps(teacher)}", 'stages.0.arms=[{"objective": {"kind": "kl"}}]']


def test_a_teacher_with_another_vocabulary_is_refused_before_the_first_step_naming_both_sizes(untouched, tmp_path):
    given = untouched / "corpus", tmp_path, TOKENS
    more = with_teacher(configuration(*given), 90)
    with pytest.raises(ConfigError, match=rf"student's head has {VOCAB} rows and the teacher's 90"):
        train(configuration(*given, *more), lambda record: pytest.fail("a step was taken"))
    more[1] = 'stages.0.arms=[{"objective": {"kind": "kl", "vocab_size": 90}}]'
    with pytest.raises(ConfigError, match=rf"at least {VOCAB} ids, but the teacher has 90"):
        train(configuration(*given, *more), lambda record: pytest.fail("a step was taken"))
    assert not list(tmp_path.glob("checkpoints/*"))


# --- losses that are not finite ------------------------------------------------------------------------------------


def test_a_run_of_which_every_step_was_skipped_is_no_success_and_says_so(untouched, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(FAULT, "nan,0,1")
    short = [FACTORY, "stages.0.tokens=400", "optimizer.max_skipped_in_a_row=9"]
    given = arguments(settings(untouched / "corpus", tmp_path, *short))
    assert main(given) == 2
    said = capsys.readouterr().err
    assert "each of the 2 steps of the run was skipped, so nothing was trained: the loss of rank 0 is nan" in said
    assert main([*given, "--set", "optimizer.max_skipped_in_a_row=2"]) == 2
    assert "start again, as there is no checkpoint yet" in capsys.readouterr().err
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_steps_with_a_nan_loss_are_skipped_and_counted_and_training_goes_on(run, monkeypatch):
    monkeypatch.setenv(FAULT, f"nan,0,{PACKS_A_STEP + 2},{PACKS_A_STEP}")
    result = going_on(run, "optimizer.max_skipped_in_a_row=3")
    assert result.complete
    assert result.skipped_steps == 2
    skipped = [record for record in records(run / "output") if "fault" in record]
    assert [(record["step"], record["skipped_steps"]) for record in skipped] == [(3, 1), (3, 2)]
    assert "the loss of rank 0 is nan in its micro-batch 1" in skipped[0]["fault"]
    kept = json.loads((run / "output" / "watchdog" / "nan-step-00000003-rank-00000.json").read_text())
    assert len(kept["id_hash_of_packs"]) == PACKS_A_STEP


def test_too_many_of_them_one_after_the_other_end_the_run_and_it_goes_on_from_the_checkpoint(run, monkeypatch):
    monkeypatch.setenv(FAULT, "nan,0,1")
    refused(
        run, DataError, r"step 3: the loss of rank 0 is nan .* 3 steps .* skipped", "optimizer.max_skipped_in_a_row=3"
    )
    monkeypatch.delenv(FAULT)
    assert going_on(run).complete


# --- cells ---------------------------------------------------------------------------------------------------------


def test_a_share_of_a_cell_without_documents_is_refused(untouched, tmp_path):
    config = configuration(untouched / "corpus", tmp_path, TOKENS, 'data.shares={"B1/C1": 0.5, "B2/C1": 0.5}')
    with pytest.raises(
        ConfigError, match=r"'B2/C1' of data.shares matches no remaining cell; the corpus has B1/C1, B3/C1"
    ):
        train(config)


def test_a_share_of_a_cell_with_fewer_documents_than_lanes_is_refused(tmp_path):
    cells = {"split=train/skill_bucket=B1/ctx_bucket=C1": documents(50, 1)}
    cells |= {"split=train/skill_bucket=B2/ctx_bucket=C1": documents(3, 2)}
    write_dataset(str(tmp_path / "corpus"), "layout", "corpus", cells)
    shares = 'data.shares={"B1/C1": 0.5, "B2/C1": 0.5}'
    config = configuration(tmp_path / "corpus", tmp_path / "output", TOKENS, "evaluate=null", shares)
    with pytest.raises(
        ConfigError, match=r"gives 'B2/C1' 0.5 of the tokens, but the corpus has 3 documents .* 4 lanes"
    ):
        train(config)


def test_a_later_stage_that_needs_an_empty_cell_is_refused_before_the_first_is_trained(untouched, tmp_path):
    stages = [
        {"name": "first", "tokens": 500},
        {"name": "second", "tokens": 500, "data": {"shares": {"B2/C1": 0.5, "B1/C1": 0.5}}},
    ]
    config = configuration(untouched / "corpus", tmp_path, f"stages={json.dumps(stages)}")
    with pytest.raises(StillhouseError, match=r"'B2/C1' of data.shares matches no remaining cell"):
        train(config, lambda record: pytest.fail("a step was taken"))
