"""What every step inherits: verdicts that are given once, columns that are declared, an identity."""

import pickle
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from etl.errors import SchemaError
from etl.harmony.step import HarmonyStep
from etl.mixture.buckets import CtxBucketStep
from etl.pipeline import open_steps
from etl.schema import SKILL_BUCKETS, VERDICT, encoding_of
from etl.step import Offer, Step, append, drop, live

EARLIER = {"step": "earlier", "reason": "x", "value": None}


class Halve(Step):
    """Adds half of `n`."""

    kind: Literal["halve"] = "halve"
    version: ClassVar[int] = 3
    reads: ClassVar[tuple[str, ...]] = ("n",)
    adds: ClassVar[pa.Schema] = pa.schema([("half", pa.float32())])
    located: ClassVar[frozenset[str]] = frozenset({"place"})
    by: int = 2
    place: str = "here"

    def artefacts(self) -> dict[str, str]:
        return {"table": "ab" * 32}


def batch(*verdicts, **columns) -> pa.RecordBatch:
    arrays = {name: pa.array(values) for name, values in columns.items()}
    return pa.record_batch([*arrays.values(), pa.array(verdicts, VERDICT)], [*arrays, "verdict"])


def test_rows_without_a_verdict_live():
    assert live(batch(None, EARLIER, None)).to_pylist() == [True, False, True]
    assert live(batch()).to_pylist() == []


def test_drop_gives_a_verdict_to_living_rows_where_the_mask_is_true():
    rows = batch(None, EARLIER, None, None, n=[1, 2, 3, 4])
    got = drop(rows, "halve", pa.array([True, True, None, False]), "odd", rows.column("n"))
    assert got.column("verdict").to_pylist() == [{"step": "halve", "reason": "odd", "value": "1"}, EARLIER, None, None]
    assert got.column("verdict").type == VERDICT
    assert got.schema.names == ["n", "verdict"]
    assert rows.column("verdict").null_count == 3


def test_drop_keeps_the_place_of_the_column_and_takes_null_values():
    rows = batch(None, n=[1]).select(["verdict", "n"])
    got = drop(rows, "s", pa.array([True]), "r", pa.nulls(1))
    assert got.schema.names == ["verdict", "n"]
    assert got.column("verdict").to_pylist() == [{"step": "s", "reason": "r", "value": None}]


def test_drop_of_a_slice_and_of_nothing():
    rows = batch(EARLIER, None, None, EARLIER, n=[1, 2, 3, 4]).slice(1, 2)
    got = drop(rows, "s", pa.array([False, True]), "r", rows.column("n"))
    assert got.column("verdict").to_pylist() == [None, {"step": "s", "reason": "r", "value": "3"}]
    empty = batch(n=pa.array([], pa.int64()))
    assert drop(empty, "s", pa.array([], pa.bool_()), "r", empty.column("n")).num_rows == 0


def test_the_first_verdict_stays():
    rows = batch(None, n=[1])
    once = drop(rows, "a", pa.array([True]), "r", rows.column("n"))
    assert drop(once, "b", pa.array([True]), "r", rows.column("n")).equals(once)


def test_append_casts_to_the_declared_types():
    got = append(batch(None, n=[1]), Halve.adds, [pa.array([0.5], pa.float64())])
    assert got.schema.names == ["n", "verdict", "half"]
    assert got.schema.field("half").type == pa.float32()
    with pytest.raises(ValueError, match="zip"):
        append(batch(None, n=[1]), Halve.adds, [])


def test_identity_is_what_decides_the_output():
    assert Halve(place="there").identity() == {"kind": "halve", "version": 3, "artefacts": {"table": "ab" * 32}}
    assert Halve(by=4).identity()["by"] == 4


def test_output_schema():
    schema = pa.schema([("n", pa.int64())])
    assert Halve().output_schema(schema) == pa.schema([("n", pa.int64()), ("half", pa.float32())])
    with pytest.raises(SchemaError, match=r"step 'halve' reads \['n'\], but only \['m'\] exist"):
        Halve().output_schema(pa.schema([("m", pa.int64())]))
    with pytest.raises(SchemaError, match=r"step 'halve' adds \['half'\], which an earlier step has added"):
        Halve().output_schema(Halve().output_schema(schema))


def test_a_name_is_the_label_and_begins_the_columns():
    plain, named = Halve(), Halve(name="late-wiki")
    assert (plain.label, named.label) == ("halve", "late-wiki")
    assert (plain.added.names, named.added.names) == (["half"], ["late_wiki_half"])
    assert named.adds.names == ["half"]
    assert named.identity() == {**plain.identity(), "name": "late-wiki"}
    schema = pa.schema([("n", pa.int64())])
    assert named.output_schema(plain.output_schema(schema)).names == ["n", "half", "late_wiki_half"]
    with pytest.raises(SchemaError, match=r"step 'a-b' adds \['a_b_half'\].*`name`, which"):
        Halve(name="a-b").output_schema(Halve(name="a_b").output_schema(schema))


@pytest.mark.parametrize("name", ["", "1a", "_a", "a b", "a/b", "a.b", "ä", "a\n"])
def test_a_name_is_good_for_a_column_and_a_folder(name):
    with pytest.raises(ValidationError, match="name"):
        Halve(name=name)


def test_metadata_of_a_column_stays_under_its_other_name():
    (field,) = (field for field in HarmonyStep(name="x").added if field.name == "x_input_ids")
    assert encoding_of(field) == "byte_stream_split"


def test_a_step_of_a_foreign_kind_is_called_as_its_class():
    assert Foreign().label == "Foreign"
    assert Foreign(name="x").label == "x"


class Foreign(Step):
    kind: str = "package.module:Foreign"


def test_a_named_step_reads_from_its_namesake_what_another_kind_adds():
    assert CtxBucketStep().needed == ("n_tokens",)
    step = CtxBucketStep(name="chat")
    assert step.inputs == {"chat_n_tokens": "n_tokens"}
    assert (step.label, step.added.names) == ("chat-ctx_bucket", ["chat_ctx_bucket"])
    with pytest.raises(SchemaError, match=r"step 'chat-ctx_bucket' reads \['chat_n_tokens'\]"):
        step.output_schema(pa.schema(HarmonyStep().added))


def test_a_step_asks_for_nothing_unless_it_says_so():
    assert Halve().asks() == ()
    assert Halve().given({"kenlm": Offer("m", "ab", 0.5, 1)}) == Halve()


class Size(Step):
    """Adds `size` of `n` (big or small) and `all`; drops what is above `most`, whatever the row's verdict says."""

    kind: Literal["size"] = "size"
    reads: ClassVar[tuple[str, ...]] = ("n",)
    adds: ClassVar[pa.Schema] = pa.schema([("size", pa.list_(pa.struct([("of", pa.string())]))), ("all", pa.bool_())])
    most: int = 5

    def open(self):
        def run(batch):
            n = batch.column("n")
            size = [[{"of": "big" if number > 3 else "small"}] for number in n.to_pylist()]
            alive = live(batch).to_pylist()
            size = [value if lives else None for value, lives in zip(size, alive, strict=True)]
            batch = drop(batch, self.label, pc.greater(n, self.most), "above_most", n)
            # As a step may that flags all rows, dropped ones too.
            return append(batch, self.adds, [pa.array(size, self.adds.field("size").type), pa.repeat(True, len(n))])

        return run


FATES = st.sampled_from([None, EARLIER])
ROWS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from("abc"), st.sampled_from([None, "B1", "B2", "B5"]), FATES), max_size=12
)
SOME = st.sampled_from([None, ("a",), ("a", "c"), ("missing",)])


@given(ROWS, SOME, st.sampled_from([None, ("B1",), ("B1", "B5")]))
def test_selected_rows_get_what_a_run_over_them_alone_gives_and_the_others_nothing(rows, sources, skills):
    numbers, names, buckets, fates = zip(*rows, strict=True) if rows else ((),) * 4
    columns = {
        "id": pa.array([bytes([n]) for n in range(len(rows))], pa.binary()),
        "n": pa.array(numbers, pa.int64()),
        "source_dataset": pa.array(names, pa.string()),
        "skill_bucket": pa.array(buckets, pa.string()),
        "verdict": pa.array(fates, VERDICT),
    }
    batch = pa.record_batch(columns)
    step = Size(name="x", sources=sources, skill_buckets=skills)
    done = open_steps([step])(batch)
    inside = pa.array(
        [
            (sources is None or name in sources) and (skills is None or bucket in skills)
            for name, bucket in zip(names, buckets, strict=True)
        ],
        pa.bool_(),
    )
    assert done.filter(inside).equals(open_steps([Size(name="x")])(batch.filter(inside)))
    others = done.filter(pc.invert(inside))
    assert others.select(batch.schema.names).equals(batch.filter(pc.invert(inside)))
    assert all(others.column(name).null_count == others.num_rows for name in ("x_size", "x_all"))


def test_a_selection_needs_its_columns_and_is_in_the_identity_only_where_there_is_one():
    step = Size(skill_buckets=("B2", "B1"), sources=["web"])
    assert step.needed == ("n", "source_dataset", "skill_bucket")
    assert step.identity() == {**Size().identity(), "sources": ["web"], "skill_buckets": ["B1", "B2"]}
    with pytest.raises(SchemaError, match=r"step 'size' reads \['source_dataset', 'skill_bucket'\]"):
        step.output_schema(pa.schema([("n", pa.int64())]))


def test_sources_are_those_of_the_recipe():
    step = Size(sources=("web", "boks"))
    step.check_sources({"web", "boks"})
    Size().check_sources({"web"})
    with pytest.raises(ValueError, match=r"'size': there is no source 'boks'; did you mean 'books'.*are books, web"):
        step.check_sources({"web", "books"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": []}, "empty list selects no row"),
        ({"skill_buckets": []}, "empty list selects no row"),
        ({"skill_buckets": ["B6"]}, "skill_buckets"),
    ],
)
def test_a_selection_of_nothing_is_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        Size(**options)


def test_every_skill_bucket_can_be_selected():
    assert Size(skill_buckets=SKILL_BUCKETS).skill_buckets == SKILL_BUCKETS


def test_a_step_pickles_and_hashes():
    assert pickle.loads(pickle.dumps(Halve(by=3))) == Halve(by=3)
    assert hash(Halve(by=3)) == hash(Halve(by=3))


def test_a_step_must_say_what_it_does():
    with pytest.raises(NotImplementedError, match="Halve"):
        Halve().open()
