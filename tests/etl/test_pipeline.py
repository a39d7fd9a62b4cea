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
from etl.scoring.kenlm_train import train
from etl.scoring.perplexity import PerplexityStep
from etl.step import BatchFn, Offer, Step, append, live
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
    assert read.reads() == ["messages", "tools", "conversation_id"]


def test_reads_leaves_out_what_a_step_before_adds():
    assert Pipeline(steps=(CtxBucketStep(), PerplexityStep(model="m"))).reads() == ["n_tokens", "id", "messages"]
    assert Pipeline(steps=(PerplexityStep(model="m"), HarmonyStep(), CtxBucketStep())).reads() == [
        "id",
        "messages",
        "tools",
        "conversation_id",
    ]


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
    with pytest.raises(ConfigError, match=rf"\['{twice}'\] occur more than once"):
        pipeline(*steps, cuts=cuts)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "a pass needs at least 1 of `steps` or `cuts`"),
        ([{"kind": "langauge"}], r"steps\.0\.kind: there is no step 'langauge'; did you mean 'language'\?"),
        (
            [{"kind": "language", "minscore": 1}],
            r"steps\.0: unknown key 'minscore'; did you mean 'min_score'\?",
        ),
        ([{"kind": "language", "min_score": 2}], r"steps\.0\.min_score: must be 1\.0 or less \(got 2\)"),
        ([{"min_score": 1}], r"steps\.0\.kind: is missing; known: answer, language"),
        ([{"kind": "answer", "skill_buckets": ["B6"]}], r"skill_buckets\.0: 'B6' is not known; did you mean 'B5'\?"),
        ([{"kind": "answer", "name": "a b"}], r"steps\.0\.name: must match \^\[A-Za-z\]"),
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
    assert Pipeline(steps=(AnswerStep(), LanguageStep(min_score=None))).digest() == base.digest()


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


class Doing(Step):
    """Appends whatever its function returns."""

    kind: Literal["doing"] = "doing"
    reads: ClassVar[tuple[str, ...]] = ("messages",)
    adds: ClassVar[pa.Schema] = pa.schema([("n", pa.int32())])
    does: ClassVar[BatchFn]

    def open(self):
        return type(self).does


def doing(function) -> Doing:
    return type("DoingThis", (Doing,), {"does": staticmethod(function), "__module__": __name__})()


def test_a_step_that_drops_rows_is_told():
    with pytest.raises(SchemaError, match=r"'doing' turned 2 rows into 1; steps mark rows and must not remove any"):
        open_steps([doing(lambda batch: batch.slice(1))])(conversations([asked("q", "a")] * 2))


NUMBERS = pa.array([1, 2], pa.int32())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda batch: batch, "must return 'n' as int32 but returned a batch without it; append"),
        (
            lambda batch: batch.append_column("n", NUMBERS.cast(pa.int64())),
            "'n' as int32 but returned a batch as int64",
        ),
        (
            lambda batch: batch.append_column("n", NUMBERS).append_column("m", NUMBERS),
            r"returned columns \['m'\], which it does",
        ),
        (lambda batch: pa.record_batch({"n": NUMBERS}), "'verdict' as struct<.* but returned a batch without it"),
    ],
)
def test_a_step_that_appends_something_else_than_it_declares_is_told(function, message):
    with pytest.raises(SchemaError, match=f"step 'doing' .*{message}"):
        open_steps([doing(function)])(conversations([asked("q", "a")] * 2))


def test_a_step_is_shown_what_it_reads_and_nothing_is_copied_that_is_passed_on():
    shown = []

    def look(batch):
        shown.append(batch)
        return append(batch, Doing.adds, [NUMBERS])

    batch = conversations([asked("q", "a")] * 2).append_column("big", pa.array(["x" * 100, "y"]))
    done = open_steps([doing(look)])(batch)
    assert shown[0].schema.names == ["id", "verdict", "messages"]
    assert done.schema.names == [*batch.schema.names, "n"]
    for name in batch.schema.names:
        before, after = (each.column(name).buffers() for each in (batch, done))
        assert [buffer and buffer.address for buffer in after] == [buffer and buffer.address for buffer in before]
    assert open_steps([doing(look)])(batch.select(["verdict", "messages"])).schema.names[-1] == "n"
    batch = batch.append_column("source_dataset", pa.array(["a", "b"]))
    limited = open_steps([doing(look).model_copy(update={"sources": ("a",)})])(batch)
    assert shown[-1].schema.names == ["id", "verdict", "messages"]
    assert live(shown[-1]).to_pylist() == [True, False]
    for name in ("id", "messages", "big", "source_dataset"):
        before, after = (each.column(name).buffers()[-1] for each in (batch, limited))
        assert before.address == after.address


@pytest.fixture(scope="module")
def models(tmp_path_factory, ngram_model) -> tuple[str, str]:
    other = train(["a b c d e f g", "g f e d c b a"], 2, tmp_path_factory.mktemp("ngram") / "model", 1_000_000)
    return str(ngram_model), str(other.path)


def test_steps_of_one_kind_stand_side_by_side_under_names(models):
    """Each column is what the step gives by itself, without a name; the verdicts name the step that gave them."""
    rows = [asked("What is that?", "That is water in a garden."), asked("Was ist das?", "Das ist der Garten und nicht")]
    alone = [PerplexityStep(model=models[0]), PerplexityStep(model=models[1]), LanguageStep(), HarmonyStep()]
    together = Pipeline(
        steps=(
            alone[0],
            alone[1].model_copy(update={"name": "late-wiki"}),
            alone[2],
            LanguageStep(name="strict", keep=("en",)),
            HarmonyStep(),
            CtxBucketStep(),
            HarmonyStep(name="short", developer="Be brief."),
            CtxBucketStep(name="short"),
        )
    )
    schema = together.output_schema(BASE)
    assert together.labels[1:4] == ("late-wiki", "language", "strict")
    assert together.labels[-2:] == ("short", "short-ctx_bucket")
    assert together.reads() == ["id", "messages", "tools", "conversation_id"]
    batch = conversations(rows)
    done = open_steps(together.steps)(batch)
    assert [name for name in schema.names if name not in BASE.names] == done.schema.names[3:]
    assert done.schema.names[3:6] == ["perplexity", "in_kenlm_sample", "late_wiki_perplexity"]
    for step, prefix in zip(alone, ("", "late_wiki_", "strict_", ""), strict=True):
        # The German row is dropped by `strict`, so tokens are compared only on the first.
        for name in step.adds.names:
            expected = open_steps([step])(batch).column(name)
            assert done.column(prefix + name)[0] == expected[0], name
    assert done.column("short_n_tokens")[0].as_py() > done.column("n_tokens")[0].as_py()
    assert [verdict and verdict[0] for verdict in verdicts(done)] == [None, "strict"]
    assert done.column("short_ctx_bucket").to_pylist() == ["C1", None]


def test_a_named_bucket_judges_the_tokens_of_its_namesake():
    batch = conversations([asked("q", "a")] * 2)
    batch = batch.append_column("n_tokens", pa.array([1, 50_000], pa.int32()))
    batch = batch.append_column("x_y_n_tokens", pa.array([50_000, 5000], pa.int32()))
    done = open_steps([CtxBucketStep(name="x-y")])(batch)
    assert done.column("x_y_ctx_bucket").to_pylist() == [None, "C2"]
    assert verdicts(done) == [("x-y-ctx_bucket", "longer_than_max_tokens", "50000"), None]


def test_a_name_is_part_of_the_digest():
    assert Pipeline(steps=(LanguageStep(name="x"),)).digest() != Pipeline(steps=(LanguageStep(),)).digest()


def test_models_of_the_same_run_are_given_to_the_steps_that_ask():
    read = Pipeline(steps=(PerplexityStep(model="run:kenlm"), PerplexityStep(model="m", name="x"), AnswerStep()))
    assert read.asks() == ("kenlm",)
    given = read.given({"kenlm": Offer("trained", "ab", 0.5, 3)})
    assert [step.model for step in given.steps[:2]] == ["trained", "m"]
    assert given.steps[1:] == read.steps[1:]


def test_sources_of_steps_and_cuts_are_checked_together():
    read = pipeline({"kind": "answer", "sources": ["a"]}, cuts=(percentile(sources=["b"]),))
    read.check_sources(["a", "b"])
    with pytest.raises(ValueError, match="'cut': there is no source 'b'"):
        read.check_sources(["a"])
    assert read.reads() == ["messages", "source_dataset"]


def test_a_pass_of_cuts_alone():
    read = pipeline(cuts=(percentile(column="n"),))
    assert (read.steps, read.labels, read.reads(), read.slow) == ((), ("cut",), [], False)
    schema = pa.schema([*BASE, ("n", pa.int32())])
    assert read.output_schema(schema) == schema
    with pytest.raises(SchemaError, match="cut 'cut' reads"):
        read.output_schema(BASE)
