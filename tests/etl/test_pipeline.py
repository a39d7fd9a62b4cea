"""Steps in a row: schemas before a row is read, a digest that changes when the output could, one pass."""

from typing import ClassVar, Literal

import pyarrow as pa
import pytest

from etl import conf
from etl.errors import ConfigError, SchemaError
from etl.filters.answers import AnswerStep
from etl.filters.language import LanguageStep
from etl.harmony.step import HarmonyStep
from etl.mixture.buckets import CtxBucketStep
from etl.mixture.cuts import PercentileCut, ShareCut
from etl.pipeline import Pipeline, apply, open_steps
from etl.schema import PROMPT, TOKENIZED_COLUMNS, VERDICT
from etl.scoring.ifd import IfdStep
from etl.scoring.perplexity import PerplexityStep
from etl.step import Step
from tests.etl.rows import asked, conversations, verdicts

BASE = pa.schema([*PROMPT, pa.field("verdict", VERDICT)])


def pipeline(*steps: dict, cuts: tuple[dict, ...] = ()) -> Pipeline:
    return conf.check(Pipeline, {"steps": list(steps), "cuts": list(cuts)}, "toy.yaml")


def percentile(name="cut", column="language_score", **more) -> dict:
    return {"kind": "percentile", "name": name, "column": column, "keep": 0.5, **more}


def test_steps_are_read_by_their_kind():
    read = pipeline({"kind": "answer"}, {"kind": "language", "min_score": 0.3}, cuts=(percentile(),))
    assert read.steps == (AnswerStep(), LanguageStep(min_score=0.3))
    assert read.cuts == (PercentileCut(name="cut", column="language_score", keep=0.5),)


def test_the_output_schema_is_the_input_and_what_steps_add():
    read = Pipeline(steps=(AnswerStep(), LanguageStep(), HarmonyStep(), CtxBucketStep()))
    added = ["detected_language", "language_score", *TOKENIZED_COLUMNS.names, "ctx_bucket"]
    assert read.output_schema(BASE) == pa.schema([*BASE, *read.added])
    assert read.added.names == added
    assert read.reads() == ["messages"]


def test_reads_leaves_out_what_a_step_before_adds():
    assert Pipeline(steps=(CtxBucketStep(), PerplexityStep(model="m"))).reads() == ["n_tokens", "id", "messages"]
    assert Pipeline(steps=(PerplexityStep(model="m"), HarmonyStep(), CtxBucketStep())).reads() == ["id", "messages"]


def test_a_missing_column_is_told_before_a_row_is_read():
    wrong = Pipeline(steps=(CtxBucketStep(), HarmonyStep()))
    with pytest.raises(
        SchemaError, match=r"step 'ctx_bucket' reads \['n_tokens'\].*put the step that adds them earlier"
    ):
        wrong.output_schema(BASE)


def test_a_cut_reads_what_the_steps_have_made():
    cuts = (percentile(within=["detected_language", "source_dataset"]),)
    assert "language_score" in pipeline({"kind": "language"}, cuts=cuts).output_schema(BASE).names
    with pytest.raises(SchemaError, match=r"cut 'cut' reads \['language_score', 'detected_language'\]"):
        pipeline({"kind": "answer"}, cuts=cuts).output_schema(BASE)


@pytest.mark.parametrize(
    "cut",
    [
        percentile(column="detected_language"),
        percentile(within=["messages"]),
        {"kind": "share", "name": "cut", "column": "language_score", "values": ["1"], "share": 0.5},
    ],
)
def test_a_cut_by_a_column_of_another_type_is_told_before_a_row_is_read(cut):
    with pytest.raises(SchemaError, match=r"cut 'cut' .*(number|text)"):
        pipeline({"kind": "language"}, cuts=(cut,)).output_schema(BASE)


@pytest.mark.parametrize(
    ("steps", "cuts", "twice"),
    [
        ([{"kind": "answer"}, {"kind": "answer"}], (), "answer"),
        ([{"kind": "answer"}], (percentile("a"), percentile("a")), "a"),
        ([{"kind": "language"}], (percentile("language"),), "language"),
    ],
)
def test_names_that_stand_twice_are_refused(steps, cuts, twice):
    with pytest.raises(ConfigError, match=rf"\['{twice}'\] stand here more than once"):
        pipeline(*steps, cuts=cuts)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "steps: .*at least 1"),
        ([{"kind": "langauge"}], r"steps\.0\.kind: there is no step 'langauge'; did you mean 'language'\?"),
        (
            [{"kind": "language", "minscore": 1}],
            r"steps\.0: unknown key 'minscore'; did you mean 'min_score'\?",
        ),
        ([{"kind": "language", "min_score": 2}], r"steps\.0\.min_score: must be 1\.0 or less \(got 2\)"),
        ([{"min_score": 1}], r"steps\.0\.kind: is missing; known: answer, language"),
    ],
)
def test_mistakes_name_the_step(steps, message):
    with pytest.raises(ConfigError, match=message):
        pipeline(*steps)


def test_the_digest_changes_with_what_decides_the_output():
    base = Pipeline(steps=(AnswerStep(), LanguageStep()))
    others = [
        Pipeline(steps=(LanguageStep(), AnswerStep())),
        Pipeline(steps=(AnswerStep(),)),
        Pipeline(steps=(AnswerStep(), LanguageStep(min_score=0.5))),
        Pipeline(steps=(AnswerStep(failure_phrases=("no",)), LanguageStep())),
    ]
    assert len({read.digest() for read in [base, *others]}) == len(others) + 1
    assert Pipeline(steps=(AnswerStep(), LanguageStep(min_score=0.0))).digest() == base.digest()


def test_the_digest_does_not_change_with_where_something_lies(tmp_path):
    def digest(name: str, content: bytes, **more) -> str:
        (tmp_path / name).write_bytes(content)
        return Pipeline(steps=(PerplexityStep(model=str(tmp_path / name), **more),)).digest()

    assert digest("a.bin", b"one") == digest("b.bin", b"one")
    assert digest("a.bin", b"one") != digest("c.bin", b"two")
    assert digest("a.bin", b"one") != digest("a.bin", b"one", text="response")


def test_the_digest_changes_with_the_version_of_a_step(monkeypatch):
    before = Pipeline(steps=(AnswerStep(),)).digest()
    monkeypatch.setattr(AnswerStep, "version", AnswerStep.version + 1)
    assert Pipeline(steps=(AnswerStep(),)).digest() != before


def test_cuts_are_no_part_of_the_digest_of_the_steps():
    cut = ShareCut(name="c", column="language", values=("en",), share=0.5)
    assert Pipeline(steps=(AnswerStep(),), cuts=(cut,)).digest() == Pipeline(steps=(AnswerStep(),)).digest()


def test_a_pipeline_with_a_slow_step_is_slow():
    assert not Pipeline(steps=(AnswerStep(),)).slow
    assert Pipeline(steps=(AnswerStep(), IfdStep(model="m"))).slow


def test_steps_run_in_order_over_each_batch():
    rows = [asked("q", "a"), asked("q", "")]
    steps = (AnswerStep(failure_phrases=("a",)), CtxBucketStep())
    batches = [conversations(rows).append_column("n_tokens", pa.array([5, 40_000], pa.int32())) for _ in range(2)]
    done = list(apply(steps, iter(batches)))
    assert len(done) == 2
    assert verdicts(done[1]) == [("answer", "failed_generation", "a"), ("answer", "empty_answer", None)]
    assert done[1].schema.names[-1] == "ctx_bucket"


def test_a_step_that_drops_rows_is_told():
    class Shorten(Step):
        kind: Literal["shorten"] = "shorten"
        adds: ClassVar[pa.Schema] = pa.schema([])

        def open(self):
            return lambda batch: batch.slice(1)

    with pytest.raises(SchemaError, match=r"turned 2 rows into 1; steps mark rows, they never drop"):
        open_steps([Shorten()])(conversations([asked("q", "a")] * 2))
