"""Rescoring: what is stored equals the model on rows rendered for their effort, however the run is cut or killed."""

import json
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from etl import conf
from etl.engines.local import LocalEngine
from etl.errors import ConfigError, DataError, SourceError
from etl.harmony.step import HarmonyStep
from etl.schema import SPAN_KINDS, TEACHER_LOGP, VERDICT
from etl.storage.batches import LIMITS, load_batch
from etl.storage.dataset import CHECKPOINTS
from etl.storage.location import Location
from etl.storage.manifest import accounting_gaps
from tests.datasets import write_dataset
from tests.engines.inprocess import IdleEngine
from tests.training.teacher_server import serving
from tests.training.teachers import documents, save_teacher, write_corpus
from training.data.teacher_table import TeacherTable, completion_digests
from training.teacher import rescore as rescoring
from training.teacher.local import LocalTeacher
from training.teacher.rescore import RescoreConfig
from training.teacher.stats import LEAST_LOGP
from training.teacher.teacher import LocalTeacherConfig, Request, Scores

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ALL = ["subset.fraction=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher and a corpus."""
    root = tmp_path_factory.mktemp("rescore")
    save_teacher(root / "teacher")
    write_corpus(root / "corpus")
    return root


@pytest.fixture(scope="module")
def large(folder):
    """Ten times the rows and the same teacher, for runs in which nothing is asked of the teacher's model."""
    root = folder.parent / "large"
    write_corpus(root / "corpus", 80)
    (root / "teacher").symlink_to(folder / "teacher")
    return root


@pytest.fixture(scope="module")
def model(folder):
    return LocalTeacher(LocalTeacherConfig(model=str(folder / "teacher")), 1.0, 5, "cpu")


def configuration(folder, output, *overrides):
    places = [f"corpus={folder}/corpus", f"teacher.model={folder}/teacher", f"output={output}"]
    return conf.load(RescoreConfig, "demo", "rescore", [*places, "teacher.batch_tokens=600", *overrides])


def rescore(config, teacher=None, **limits):
    """With the teacher of the configuration, or one that is here already."""
    given = {} if teacher is None else {"open_teacher": lambda config: teacher}
    return rescoring.rescore(config, LocalEngine(), limits=replace(LIMITS, **limits), **given)


def table_of(dataset):
    return pa.Table.from_batches(dataset.read(), TEACHER_LOGP)


@pytest.fixture(scope="module")
def by_mode(folder, tmp_path_factory):
    """Every row of the corpus scored with each effort: TEACHER_LOGP tables."""
    output = tmp_path_factory.mktemp("modes")
    return {
        mode: table_of(rescore(configuration(folder, output / mode, *ALL, f"modes={{{mode}: 1.0}}")))
        for mode in ("low", "medium", "high")
    }


def corpus_rows(seeds=((8, 1), (4, 2), (2, 3))):
    """Rows of the training split by id."""
    return {row["id"]: row for num, seed in seeds for row in documents(num, seed).to_pylist()}


def render(messages, effort):
    batch = pa.RecordBatch.from_arrays([pa.array([messages]), pa.nulls(1, VERDICT)], ["messages", "verdict"])
    batch = pa.RecordBatch.from_arrays(
        [batch.column(0).cast(documents(1, 0).schema.field("messages").type), batch.column(1)], ["messages", "verdict"]
    )
    return pa.Table.from_batches([HarmonyStep(reasoning_effort=effort).open()(batch)]).to_pylist()[0]


def supervised(row):
    return [at for span in row["spans"] for at in range(max(span["start"], 1), span["end"])]


@pytest.mark.parametrize("mode", ["low", "medium", "high"])
def test_scores_are_the_models_of_the_row_rendered_for_the_mode(by_mode, model, mode):
    rows = corpus_rows()
    stored = by_mode[mode].to_pylist()
    assert {row["id"] for row in stored} == set(rows)
    for row in stored:
        source = rows[row["id"]]
        raw = source["messages"][0]["role"] == "text"
        rendered = source if raw else render(source["messages"], mode)
        at = supervised(rendered)
        ids = np.array(rendered["input_ids"], np.int32)
        (expected,) = model.score([Request(ids, np.array(at))])
        # Half a unit in the last place of a float16 near 16, and what a batch changes.
        np.testing.assert_allclose(row["logp"], expected.logp, atol=8e-3)
        assert row["logp"] == np.array(row["logp"], np.float16).tolist()
        assert (row["reasoning_mode"], row["prefix_tokens"]) == (None if raw else mode, at[0])
        completion = np.array([source["input_ids"][place] for place in supervised(source)], np.int32)
        digest = completion_digests(completion, np.array([0, len(completion)])).astype(">u8").tobytes()
        assert row["completion_digest"] == digest
        assert (row["temperature"], row["topk_ids"]) == (1.0, None)


def test_a_row_aligns_token_by_token_over_all_modes(by_mode):
    low, medium, high = (by_mode[mode].sort_by("id") for mode in ("low", "medium", "high"))
    for name in ("id", "completion_digest", "prompt_digest", "teacher_digest"):
        assert low[name].equals(medium[name])
        assert medium[name].equals(high[name])
    lengths = [[len(logp) for logp in table["logp"].to_pylist()] for table in (low, medium, high)]
    assert lengths[0] == lengths[1] == lengths[2]
    rendered = [mode is not None for mode in low["reasoning_mode"].to_pylist()]
    same = [a == b for a, b in zip(low["logp"].to_pylist(), high["logp"].to_pylist(), strict=True)]
    assert same == [not some for some in rendered]
    assert len(set(low["prompt_digest"].to_pylist())) > 1


def test_the_effort_that_a_corpus_was_rendered_with_does_not_matter(folder, by_mode, tmp_path):
    write_corpus(tmp_path / "corpus", effort="high")
    found = rescore(configuration(folder, tmp_path / "out", f"corpus={tmp_path}/corpus", *ALL))
    assert table_of(found).sort_by("id").equals(by_mode["medium"].sort_by("id"))


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    return rescore(configuration(folder, tmp_path_factory.mktemp("whole"), "topk=2"))


def test_the_manifest_reports_what_was_chosen_and_the_teachers_statistics(whole):
    manifest = whole.manifest
    assert accounting_gaps(manifest.accounting) == []
    lost = sum(account["teacher_logp"]["not_in_the_subset"] for account in manifest.accounting.values())
    assert (manifest.rows_in, manifest.rows_out) == (14, 14 - lost)
    cells = manifest.thresholds["subset"]
    assert set(cells) == {"B1/C1", "B2/C1", "B2/C2"}
    sizes = {row["id"]: row["n_tokens"] for row in corpus_rows().values()}
    table = table_of(whole)
    assert sum(cell["chosen_tokens"] for cell in cells.values()) == sum(sizes[id_] for id_ in table["id"].to_pylist())
    assert sum(cell["budget_tokens"] for cell in cells.values()) == pytest.approx(0.2 * sum(sizes.values()), abs=2)
    for cell in cells.values():
        assert abs(cell["chosen_tokens"] - cell["budget_tokens"]) <= max(sizes.values())
    flat = np.concatenate([np.array(logp, np.float64) for logp in table["logp"].to_pylist()])
    found = manifest.findings
    assert found["mean_logp"] == pytest.approx(flat.mean(), abs=1e-12)
    assert (found["tokens"], found["modes"]["medium"]["rows"]) == (len(flat), table.num_rows)
    assert sum(kind["tokens"] for kind in found["spans"].values()) == len(flat)
    (one,) = {key for key in found["modes"] if key != "none"}
    means = [np.mean(logp) for logp in table["logp"].to_pylist()]
    assert found["examples"]["mean_logp"] == pytest.approx(np.mean(means), abs=5e-3)
    assert one == "medium"
    analysis = found["spans"]["analysis"]["quantiles"]
    assert list(analysis.values()) == sorted(analysis.values())


def test_quantiles_are_those_of_the_span(whole):
    rows = corpus_rows()
    finals = []
    for row in table_of(whole).to_pylist():
        source = rows[row["id"]]
        kinds = [s["kind"] for s in source["spans"] for _ in range(max(s["start"], 1), s["end"])]
        finals += [logp for logp, kind in zip(row["logp"], kinds, strict=True) if kind == "final"]
    found = whole.manifest.findings["spans"]["final"]
    assert found["tokens"] == len(finals)
    assert found["mean_logp"] == pytest.approx(np.mean(finals), abs=1e-12)
    for quantile, value in found["quantiles"].items():
        assert value == pytest.approx(np.quantile(finals, float(quantile), method="inverted_cdf"), rel=0.017)


def test_the_reader_and_duckdb_read_the_dataset(whole):
    table = TeacherTable(whole.folder)
    stored = table_of(whole)
    rows = table.gather(stored["id"].combine_chunks())
    assert rows.logp.tolist() == [value for logp in stored["logp"].to_pylist() for value in logp]
    assert rows.topk_ids.shape == (len(rows.logp), 2)
    assert (rows.topk_logp[:, 0] >= rows.topk_logp[:, 1]).all()
    assert table.mean_logp == whole.manifest.findings["mean_logp"]
    path = f"{whole.folder}/*.parquet"
    (answer,) = duckdb.sql(f"select count(*), sum(list_sum(logp)) from '{path}'").fetchall()
    assert answer == (len(table), pytest.approx(rows.logp.sum(dtype=np.float64)))


class PulledPlugError(Exception):
    pass


class Cheap:
    """Scores that depend on all tokens up to the scored one; counts what it is asked, and fails at a given time."""

    max_tokens, batch_tokens = 4096, 600

    def __init__(self, fails_at=None):
        self.fails_at, self.asked = fails_at, []

    def score(self, requests):
        if len(self.asked) == self.fails_at:
            raise PulledPlugError
        self.asked.append(len(requests))
        return [self.one(request) for request in requests]

    def one(self, request):
        sums = np.cumsum(request.input_ids, dtype=np.int64)[request.positions]
        none = np.empty((len(sums), 0), np.int32)
        return Scores((-(sums % 97) / 8).astype(np.float32), none, none.astype(np.float32))


class Wrong(Cheap):
    """Gives one value that is no log-probability."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def one(self, request):
        score = super().one(request)
        score.logp[0] = self.value
        return score


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf"), float("-inf")])
def test_a_teacher_whose_log_probabilities_are_none_is_refused_with_the_row(folder, tmp_path, value):
    with pytest.raises(DataError, match=rf"row [0-9a-f-]{{36}}: the teacher gives a log-probability of {value:g}, "):
        rescore(configuration(folder, tmp_path, *ALL), Wrong(value))


def test_a_rounding_above_0_is_stored_as_0(folder, tmp_path):
    found = table_of(rescore(configuration(folder, tmp_path, *ALL), Wrong(0.0009)))
    assert {row[0].as_py() for row in found["logp"]} == {0.0}


def test_a_killed_run_resumes_and_gives_the_same_dataset(large, tmp_path):
    steady = Cheap()
    unbroken = rescore(configuration(large, tmp_path / "unbroken", *ALL), steady, seconds=0.0)
    assert len(steady.asked) > 20
    assert not (tmp_path / "unbroken" / "teacher_logp" / CHECKPOINTS).exists()
    config = configuration(large, tmp_path / "killed", *ALL)
    asked = 0
    for fails_at in (3, 5, 1, 4):
        dying = Cheap(fails_at)
        with pytest.raises(PulledPlugError):
            rescore(config, dying, seconds=0.0)
        asked += len(dying.asked)
        assert not (tmp_path / "killed" / "teacher_logp" / "_manifest.json").exists()
    last = Cheap()
    resumed = rescore(config, last, seconds=0.0)
    assert asked + len(last.asked) == len(steady.asked)
    assert resumed.manifest == unbroken.manifest


def test_a_checkpoint_is_due_by_rows_or_by_the_clock(large, tmp_path):
    whole = Cheap()
    rescore(configuration(large, tmp_path / "whole", *ALL), whole)

    def stored(name, fails_at, **limits):
        """Rows of each checkpoint that a run leaves when it is killed at a request."""
        with pytest.raises(PulledPlugError):
            rescore(configuration(large, tmp_path / name, *ALL), Cheap(fails_at), **limits)
        folder = Location.of(str(tmp_path / name / "teacher_logp" / CHECKPOINTS))
        return [load_batch(folder / path).num_rows for path in sorted(path for path, _ in folder.walk())]

    assert stored("1000 rows", len(whole.asked) - 1) == [80, 40]
    by_rows = stored("7 rows", 20, rows=7)
    assert len(by_rows) > 10
    assert max(by_rows) <= 7
    assert stored("0 s", 5, seconds=0.0) == whole.asked[:5]


def test_a_finished_run_is_found_done(folder, whole):
    output = Path(str(whole.folder)).parent
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.parquet")}
    assert rescoring.rescore(configuration(folder, output, "topk=2"), IdleEngine()).manifest == whole.manifest
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.parquet")} == before


def test_an_edited_configuration_in_the_same_output_scores_anew(folder, tmp_path):
    first = rescore(configuration(folder, tmp_path, "topk=2"))
    second = rescore(configuration(folder, tmp_path, "topk=3"))
    assert (first.manifest.findings["topk"], second.manifest.findings["topk"]) == (2, 3)
    assert all(len(row["topk_ids"]) == 3 * len(row["logp"]) for row in table_of(second).to_pylist())


def test_other_splits_and_batches_give_the_same_rows(large, tmp_path):
    one = rescore(configuration(large, tmp_path / "a", "subset.fraction=0.5"), Cheap())
    other = Cheap()
    other.batch_tokens = 90
    small = rescore(configuration(large, tmp_path / "b", "subset.fraction=0.5", "split_tokens=1"), other)
    assert (small.manifest.content_digest, small.manifest.accounting) == (
        one.manifest.content_digest, one.manifest.accounting,
    )  # fmt: skip
    assert small.manifest.findings == one.manifest.findings


def test_modes_are_dealt_by_id_and_a_column_wins(large, tmp_path):
    mix = "modes={low: 0.5, high: 0.5}"
    dealt = table_of(rescore(configuration(large, tmp_path / "mix", *ALL, mix), Cheap()))
    modes = [mode for mode in dealt["reasoning_mode"].to_pylist() if mode]
    assert set(modes) == {"low", "high"}
    assert 0.3 < modes.count("low") / len(modes) < 0.7
    own = configuration(large, tmp_path / "own", *ALL, mix, "mode_column=reasoning_effort")
    assert set(table_of(rescore(own, Cheap()))["reasoning_mode"].to_pylist()) == {"medium", None}
    wrong = configuration(large, tmp_path / "wrong", *ALL, "mode_column=source_dataset")
    with pytest.raises(DataError, match="'source-0'; it must be low, medium, high or null"):
        rescore(wrong, Cheap())


def test_rows_that_cannot_be_scored_have_their_reason(folder, tmp_path):
    table = documents(12, 5)
    ids, spans = table["input_ids"].to_pylist(), table["spans"].to_pylist()
    ids[1][ids[1].index(289)] = 13  # "ing" of "Reasoning".
    spans[2] = []
    for name, values in (("input_ids", ids), ("spans", spans)):
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    write_dataset(str(tmp_path / "c"), "corpus", "CORPUS", {"split=train/skill_bucket=B1/ctx_bucket=C1": table})
    short = Cheap()
    sizes = table["n_tokens"].to_pylist()
    short.max_tokens = max(size for row, size in enumerate(sizes) if row not in (1, 2)) - 1
    dataset = rescore(configuration(folder, tmp_path / "out", *ALL, f"corpus={tmp_path}/c"), short)
    totals = {}
    for account in dataset.manifest.accounting.values():
        for reason, rows in account["teacher_logp"].items():
            totals[reason] = totals.get(reason, 0) + rows
    assert totals == {
        "in": 12, "made": 0, "kept": 9, "no_reasoning_line": 1, "no_supervised_token": 1,
        "longer_than_the_teacher_takes": 1,
    }  # fmt: skip
    left_out = {reason: rows for reason, rows in totals.items() if reason not in ("in", "made", "kept")}
    assert dataset.manifest.findings["left_out"] == left_out
    assert [line.split() for line in rescoring.summary(dataset) if "left out" in line] == [
        f"{reason} {rows} of 12 rows left out".split() for reason, rows in sorted(left_out.items())
    ]


def test_rows_below_the_least_supervised_tokens_are_told_from_those_beyond_the_budget(folder, tmp_path):
    least = f"subset.min_supervised_tokens={10**6}"
    with pytest.raises(DataError, match="chooses no row"):
        rescore(configuration(folder, tmp_path / "none", *ALL, least), Cheap())
    sizes = [sum(row[f"n_{kind}"] for kind in SPAN_KINDS) for row in corpus_rows().values()]
    least = sorted(sizes)[len(sizes) // 2]
    config = configuration(folder, tmp_path / "out", *ALL, f"subset.min_supervised_tokens={least}")
    manifest = rescore(config, Cheap()).manifest
    assert manifest.findings["left_out"] == {"too_few_supervised_tokens": sum(size < least for size in sizes)}
    assert manifest.rows_out == sum(size >= least for size in sizes)


def test_tokens_without_a_score_and_those_of_no_probability_are_counted(folder, tmp_path):
    class Sure(Cheap):
        def one(self, request):
            scores = super().one(request)
            scores.logp[0] = LEAST_LOGP
            return scores

    dataset = rescore(configuration(folder, tmp_path, *ALL), Sure())
    found, rows = dataset.manifest.findings, corpus_rows().values()
    from_the_start = sum(row["spans"][0]["start"] == 0 for row in rows)
    assert from_the_start > 0
    assert (found["unpredicted"], found["floored"]) == (from_the_start, len(rows))
    assert f"{from_the_start} tokens have no score: nothing predicts a row's first token" in rescoring.summary(dataset)


def test_a_server_says_what_the_model_says(folder, model, by_mode, tmp_path):
    with serving(model) as server:
        teacher = {"kind": "server", "url": server.url, "model": "m", "digest": "d", "max_tokens": 4096}
        config = RescoreConfig(
            corpus=str(folder / "corpus"), output=str(tmp_path / "out"), teacher=teacher, subset={"fraction": 1.0}
        )
        remote = table_of(rescore(config)).sort_by("id")
        server.spoil = lambda number, _: (400, b"no")
        assert table_of(rescore(config)).num_rows == remote.num_rows
    local = by_mode["medium"].sort_by("id")
    assert remote["completion_digest"].equals(local["completion_digest"])
    assert set(remote["teacher_digest"].to_pylist()) == {"d"}
    for theirs, ours in zip(remote["logp"].to_pylist(), local["logp"].to_pylist(), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1.6e-2)
    with pytest.raises(SourceError, match="no answer in 1 attempts"):
        rescore(config.model_copy(update={"output": str(tmp_path / "b"), "teacher": gone(config.teacher)}))


def gone(teacher):
    return teacher.model_copy(update={"attempts": 1})


def test_a_teacher_of_another_tokenizer_is_refused_before_anything_is_written(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"vocab_size": 3}')
    (other / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}}}))
    with pytest.raises(ConfigError, match=r"has 3 tokens, that of the corpus .*201,088"):
        rescore(configuration(folder, tmp_path / "out", f"teacher.model={other}"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [("teacher.model=/none", "not a folder with a config.json"), ("modes={low: 0.5}", "add up to 1")],
)
def test_what_is_wrong_is_said(folder, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        rescore(configuration(folder, tmp_path, override))


def test_a_process_opens_its_teacher_once_and_lets_go_of_it_after_the_run(folder, tmp_path):
    config = configuration(folder, tmp_path, *ALL)
    first = rescoring.open_teacher(config)
    assert rescoring.open_teacher(config) is first
    rescore(config)
    assert rescoring.open_teacher(config) is not first


@pytest.mark.spark
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_spark_gives_the_rows_of_the_local_engine(folder, whole, spark, tmp_path):
    from etl.engines.spark import SparkEngine

    found = rescoring.rescore(configuration(folder, tmp_path, "topk=2"), SparkEngine(spark)).manifest
    assert found == whole.manifest
