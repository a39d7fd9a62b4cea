"""Fields: what text, JSON and columns become, equal in every format; what does not parse is null and counted."""

import gzip
import json
import math
import re

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etl import conf
from etl.errors import ConfigError, SourceError
from etl.schema import PROMPT
from etl.sources.fields import SourceField, parse, union
from etl.sources.files import cut, list_files
from etl.sources.raw import Tally
from etl.sources.read import read_split
from etl.sources.row_groups import Limits
from etl.sources.shapes.columns import ColumnsShape
from etl.sources.spec import Description, Source

MAX = (1 << 63) - 1


def field(kind="double", **more):
    return SourceField(type=kind, **more)


def found(values, kind, **more):
    """What values become, `...` where they do not parse."""
    parsed = parse(values, field(kind, **more))
    assert parsed.values.type == field(kind).arrow_type
    assert not any(parsed.failed[row] and value is not None for row, value in enumerate(parsed.values.to_pylist()))
    return [... if failed else value for value, failed in zip(parsed.values.to_pylist(), parsed.failed, strict=True)]


# --- what text and numbers say -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "as_int", "as_double", "as_bool"),
    [
        ("1.0", 1, 1.0, True), ("1", 1, 1.0, True), ("0", 0, 0.0, False), ("-0.0", 0, 0.0, False),
        (" +3\t", 3, 3.0, ...), ("007", 7, 7.0, ...), ("3.5", ..., 3.5, ...), (".5", ..., 0.5, ...),
        ("5.", 5, 5.0, ...), ("3E2", 300, 300.0, ...), ("1e400", ..., ..., ...), ("1e-400", 0, 0.0, False),
        ("1,000", ..., ..., ...),
        ("0x10", ..., ..., ...), ("1_0", ..., ..., ...), ("50%", ..., ..., ...), ("١", ..., ..., ...),
        (f"{MAX}", MAX, float(MAX), ...), (f"{MAX + 1}", ..., float(MAX), ...),
        (f"-{MAX + 1}", -MAX - 1, -2.0**63, ...),
        (f"-{MAX + 2}", ..., -2.0**63, ...), (f"{MAX}.00", MAX, float(MAX), ...),
        ("inf", ..., math.inf, ...), ("-Infinity", ..., -math.inf, ...),
        ("yes", ..., ..., True), ("No", ..., ..., False), ("TRUE", ..., ..., True), ("f", ..., ..., False),
        ("off", ..., ..., False), ("maybe", ..., ..., ...),
        *((nothing, None, None, None) for nothing in ("", "  ", "n/a", "N/A", "NaN", "null", "None", "-", "nil", "?")),
    ],
)  # fmt: skip
def test_what_text_says(text, as_int, as_double, as_bool):
    for values in ([text], pa.array([text]), pa.array([text], pa.large_string())):
        assert found(values, "int") == [as_int]
        assert found(values, "double") == [as_double]
        assert found(values, "bool") == [as_bool]
        assert found(values, "string") == [text]


@pytest.mark.parametrize(
    ("value", "as_int", "as_double", "as_bool", "as_string"),
    [
        (1, 1, 1.0, True, "1"), (0, 0, 0.0, False, "0"), (7, 7, 7.0, ..., "7"),
        (-MAX - 1, -MAX - 1, -2.0**63, ..., str(-MAX - 1)),
        (MAX + 1, ..., 2.0**63, ..., str(MAX + 1)), (10**30, ..., 1e30, ..., str(10**30)),
        (1.0, 1, 1.0, True, "1.0"), (0.5, ..., 0.5, ..., "0.5"),
        (2.0**53, 1 << 53, 2.0**53, ..., "9.007199254740992e+15"),
        (2.0**54, ..., 2.0**54, ..., "1.8014398509481984e+16"), (math.inf, ..., math.inf, ..., "inf"),
        (math.nan, None, None, None, None), (None, None, None, None, None),
        (True, ..., ..., True, "true"), (False, ..., ..., False, "false"),
        ([1, "ä"], ..., ..., ..., '[1,"ä"]'), ({"a": 10**30}, ..., ..., ..., '{"a":' + str(10**30) + "}"),
    ],
)  # fmt: skip
def test_what_json_says(value, as_int, as_double, as_bool, as_string):
    assert found([value], "int") == [as_int]
    assert found([value], "double") == [as_double]
    assert found([value], "bool") == [as_bool]
    assert found([value], "string") == [as_string]


def test_values_of_several_types_are_parsed_each_by_itself():
    values = [1, "1.0", None, 2.5, "n/a", True, "x", [1]]
    assert found(values, "double") == [1.0, 1.0, None, 2.5, None, ..., ..., ...]
    assert found(values, "string") == ["1", "1.0", None, "2.5", "n/a", "true", "x", "[1]"]


def by_hand(text):
    """A decimal number as Python reads it, None where it means no value, `...` where it is no number."""
    word = text.strip().lower()
    if word in ("", "-", "--", "?", "#n/a", "<na>", "n/a", "na", "nan", "nil", "none", "null"):
        return None
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?inf(inity)?", word):
        return ...
    value = float(word)
    return ... if math.isinf(value) and "inf" not in word else value


NUMBERS = st.one_of(
    st.floats().map(repr),
    st.integers().map(str),
    st.integers(-(1 << 65), 1 << 65).map(str),
    st.from_regex(r"[ +-]?[0-9]{0,21}\.?[0-9]{0,3}([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.text("0123456789.eE+- nai/\u0661", max_size=8),
)


@given(st.lists(NUMBERS, max_size=8))
@example(["9223372036854775807", "-9223372036854775808", "-9223372036854775809", "00.0", "-", "+", "."])
def test_numbers_are_those_that_python_reads(texts):
    assert found(texts, "double") == [by_hand(text) for text in texts]
    for text, value, number in zip(texts, found(texts, "int"), map(by_hand, texts), strict=True):
        digits = re.fullmatch(r"\s*([+-]?[0-9]+)(\.0*)?\s*", text)
        if digits:
            whole = int(digits[1])
            assert value == (whole if -MAX - 1 <= whole <= MAX else ...)
        elif number in (None, ...):
            assert value is number
        else:
            assert value == (int(number) if abs(number) <= 2**53 and number == int(number) else ...)


@given(st.lists(st.one_of(st.none(), st.booleans(), st.integers(-(1 << 63), MAX), st.floats()), max_size=6))
def test_columns_and_json_values_say_the_same(values):
    for kind in ("string", "bool", "int", "double"):
        for python_type, arrow_type in ((bool, pa.bool_()), (int, pa.int64()), (float, pa.float64())):
            chosen = [value if type(value) is python_type else None for value in values]
            assert found(chosen, kind) == found(pa.array(chosen, arrow_type), kind)


def test_columns_of_every_width():
    for kind in (pa.int8(), pa.uint8(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()):
        assert found(pa.array([0, 100, None], kind), "double") == [0.0, 100.0, None]
        assert found(pa.array([0, 100, None], kind), "int") == [0, 100, None]
    assert found(pa.array([(1 << 64) - 1], pa.uint64()), "int") == [...]
    # As it was written, not as the nearest double of a float32.
    assert found(pa.array([0.7, 1, math.nan], pa.float32()), "double") == [0.7, 1.0, None]
    assert found(pa.array([0.7, 1, math.nan], pa.float32()), "string") == ["0.7", "1.0", None]
    assert found(pa.nulls(2), "int") == [None, None]


# --- lists ---------------------------------------------------------------------------------------------------------

LISTS = [[True, False], [True, None], [False, "no"], ["yes", 1], [], None, "n/a", "[true, 1]", 3, ["x", True], ["x", 0]]


@pytest.mark.parametrize(
    ("of", "kind", "expected"),
    [
        ("any", "bool", [True, True, False, True, False, None, None, True, ..., True, ...]),
        ("all", "bool", [False, None, False, True, True, None, None, True, ..., ..., False]),
        ("count", "int", [2, 1, 2, 2, 0, None, None, 2, ..., 2, 2]),
        (0, "bool", [True, True, False, True, None, None, None, True, ..., ..., ...]),
        (-1, "bool", [False, None, False, True, None, None, None, True, ..., True, False]),
        (5, "string", [None, None, None, None, None, None, None, None, ..., None, None]),
    ],
)
def test_what_is_taken_of_lists(of, kind, expected):
    assert found(LISTS, kind, of=of) == expected


def test_lists_of_columns_and_several_stars():
    assert found(pa.array([[1.5, 2], [], None], pa.list_(pa.float32())), "double", of=-1) == [2.0, None, None]
    assert found([[[True, True], [False]], [[], [True]], [None]], "bool", column="a.*.b.*.c", of="all") == [
        False, True, True
    ]  # fmt: skip


# --- descriptions --------------------------------------------------------------------------------------------------


def described(tmp_path, text):
    (tmp_path / "toy.yaml").write_text(f"shape: columns\nuser: q\nfinal: a\nskill_bucket: math\nfields:\n{text}")
    return conf.read(Description, str(tmp_path / "toy.yaml"), "sources").root


def test_short_and_long_forms(tmp_path):
    shape = described(tmp_path, "  one: integer\n  two: {type: bool, column: extra.*.ok, of: all, strict: true}\n")
    assert shape.fields == {
        "one": SourceField(type="int"),
        "two": SourceField(type="bool", column="extra.*.ok", of="all", strict=True),
    }
    assert shape.field_columns == {"one": "one", "two": "extra.*.ok"}
    assert shape.columns == ("q", "a", "one", "extra.*.ok")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  s: doubel", "fields.s: 'doubel' is not known; did you mean 'double'"),
        ("  s: {column: x}", "fields.s.type: is missing"),
        ("  a-b: int", "fields.a-b: must match"),
        ("  language: string", r"every table already has a column 'language'; .*{type: string, column: language}"),
        ("  Input_IDs: string", "every table already has a column 'Input_IDs'"),
        ("  split: string", "every table already has a column 'split'"),
        ("  s: int\n  S: int", "'s' and 'S' differ only in letter case"),
        ("  s: {type: double, of: count}", "`of: count` gives values of type int, not double"),
        ("  s: {type: int, of: any}", "`of: any` gives values of type bool, not int"),
        ("  s: {type: int, of: some}", "fields.s.of"),
        ("  s: {type: bool, column: t.*.ok}", r"'t\.\*\.ok' is a list of values"),
        ("  s: {type: int, colum: x}", "did you mean 'column'"),
    ],
)
def test_mistakes_in_a_description(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        described(tmp_path, text)


def test_a_description_without_fields_keeps_its_fingerprint():
    shape = ColumnsShape(shape="columns", user="q", final="a", skill_bucket={"default": "B1"})
    assert "fields" not in shape.fingerprinted()
    more = shape.model_copy(update={"fields": {"s": SourceField(type="int")}})
    assert more.fingerprinted()["fields"] == {"s": {"type": "int"}}


def test_fields_of_several_sources():
    fields = {"a": {"x": field("int"), "y": field("bool")}, "b": {}, "c": {"z": field(), "x": field("int", column="q")}}
    assert union(fields) == pa.schema([("x", pa.int64()), ("y", pa.bool_()), ("z", pa.float64())])
    with pytest.raises(ConfigError, match="the field 'x' has the type double in the source 'b' and int in 'a'"):
        union({"a": {"x": field("int")}, "b": {"x": field()}})
    with pytest.raises(ConfigError, match="the field 'X' of the source 'b' and 'x' of 'a' differ only in letter case"):
        union({"a": {"x": field("int")}, "b": {"X": field("int")}})


# --- formats -------------------------------------------------------------------------------------------------------

ROWS = [
    {"q": "q0", "a": "a", "score": 1.5, "level": 3, "ok": True, "tag": "x", "n": 1, "more": {"ids": [4, 5]}},
    {"q": "q1", "a": "a", "score": 2.0, "level": 4, "ok": False, "tag": None, "n": None, "more": None},
    {"q": "q2", "a": "a", "score": None, "level": None, "ok": None, "tag": "", "n": 12, "more": {"ids": []}},
]
FIELDS = {
    "score": field(),
    "level": field("int"),
    "ok": field("bool"),
    "tag": field("string"),
    "text_of_n": field("string", column="n"),
    "last_id": field("int", column="more.ids", of=-1),
    "first_id": field("int", column="more.ids.0"),
    "absent": field("double"),
}
EXPECTED = {
    "score": [1.5, 2.0, None],
    "level": [3, 4, None],
    "ok": [True, False, None],
    "tag": ["x", None, ""],
    "text_of_n": ["1", None, "12"],
    "last_id": [5, None, None],
    "first_id": [4, None, None],
    "absent": [None, None, None],
}


def shape_of(fields, **more):
    return ColumnsShape(shape="columns", user="q", final="a", skill_bucket={"default": "B1"}, fields=fields, **more)


def read(path, shape, split_bytes=1 << 30):
    """Rows, bad rows and counts of what did not parse, of all splits."""
    source, rows, bad, tally = Source(spec="toy", path=str(path)), [], [], Tally()
    for split in cut("toy", source, list_files("toy", source, {}), split_bytes, {}):
        for batch, lost in read_split(source, shape, split, {}, Limits(), tally):
            kinds = [(name, given.arrow_type) for name, given in shape.fields.items()]
            assert batch.schema == pa.schema([*PROMPT, *kinds])
            rows += batch.to_pylist()
            bad += lost
    return rows, bad, dict(tally.unparsed)


def write(path, rows):
    if path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.name.endswith(".arrow"):
        pa.feather.write_feather(pa.Table.from_pylist(rows), path)
    elif path.name.endswith(".csv"):
        texts = [
            {key: json.dumps(value) if isinstance(value, dict) else value for key, value in row.items()} for row in rows
        ]
        pa.csv.write_csv(pa.Table.from_pylist(texts), path)
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.parquet", "x.arrow", "x.csv"])
def test_every_format_gives_the_same(tmp_path, name):
    write(tmp_path / name, ROWS)
    rows, bad, counts = read(tmp_path / name, shape_of(FIELDS))
    # CSV does not distinguish null from the empty text.
    expected = EXPECTED | ({"tag": ["x", "", ""], "text_of_n": ["1", "", "12"]} if name == "x.csv" else {})
    assert {key: [row[key] for row in rows] for key in FIELDS} == expected
    assert (bad, counts) == ([], {})


def test_a_field_may_be_read_from_what_the_shape_reads(tmp_path):
    fields = {
        "question": field("string", column="q"),
        "kept": field("int", column="n"),
        "id_as_number": field("int", column="n"),
    }
    for name in ("x.jsonl", "x.parquet"):
        write(tmp_path / name, ROWS)
        rows, _, _ = read(tmp_path / name, shape_of(fields, meta=("n",)))
        assert [row["question"] for row in rows] == ["q0", "q1", "q2"]
        assert [row["kept"] for row in rows] == [row["id_as_number"] for row in rows] == [1, None, 12]
        assert [row["meta_json"] for row in rows] == ['{"n":1}', "{}", '{"n":12}']


def test_fields_are_not_in_the_id(tmp_path):
    write(tmp_path / "x.jsonl", ROWS)
    with_fields, _, _ = read(tmp_path, shape_of(FIELDS))
    without, _, _ = read(tmp_path, shape_of({}))
    assert [row["id"] for row in with_fields] == [row["id"] for row in without]


def test_json_in_text_is_opened_by_a_path(tmp_path):
    inner = json.dumps({"index": 7, "tests": [{"passed": True}, {"passed": "no"}]})
    write(tmp_path / "x.parquet", [{"q": "q", "a": "a", "extra_info": inner}, {"q": "r", "a": "a", "extra_info": "{"}])
    fields = {
        "index": field("int", column="extra_info.index"),
        "passed": field("bool", column="extra_info.tests.*.passed", of="any"),
        "num_tests": field("int", column="extra_info.tests", of="count"),
    }
    rows, _, _ = read(tmp_path, shape_of(fields))
    assert [[row[name] for name in fields] for row in rows] == [[7, True, 2], [None, None, None]]


def test_whole_numbers_beyond_64_bits_keep_their_digits_as_text(tmp_path):
    big = 123456789012345678901234567890
    write(
        tmp_path / "x.jsonl", [{"q": "q", "a": "a", "big": big, "list": [big, 1.5]}, {"q": "q", "a": "a", "big": 1e30}]
    )
    fields = {
        "text": field("string", column="big"), "number": field(column="big"), "whole": field("int", column="big"),
        "item": field("string", column="list", of=0), "items": field("string", column="list"),
    }  # fmt: skip
    rows, _, counts = read(tmp_path, shape_of(fields))
    assert [rows[0][name] for name in fields] == [str(big), float(big), None, str(big), f"[{big},1.5]"]
    assert [rows[1][name] for name in fields] == ["1e+30", 1e30, None, None, None]
    assert counts == {"whole": 2}


# --- what does not parse -------------------------------------------------------------------------------------------

ODD = [
    {"q": "q0", "a": "a", "score": "1.0"}, {"q": "q1", "a": "a", "score": "high"},
    {"q": "q2", "a": "a", "score": "n/a"},
    {"q": "q3", "score": "worse"}, {"q": "q4", "a": "a", "score": "0x1" + "0" * 200},
]  # fmt: skip


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_what_does_not_parse_is_null_and_counted_among_the_rows_that_are_read(tmp_path, name):
    write(tmp_path / name, ODD)
    rows, bad, counts = read(tmp_path / name, shape_of({"score": field()}))
    assert [row["score"] for row in rows] == [1.0, None, None, None]
    assert [row.reason for row in bad] == ["missing_a"]
    assert counts == {"score": 2}


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "x.csv"])
def test_a_strict_field_quarantines_the_row_as_it_was(tmp_path, name):
    write(tmp_path / name, [{**row, "a": "a"} for row in ODD])
    fields = {"score": field(strict=True), "other": field("int", column="q")}
    rows, bad, counts = read(tmp_path / name, shape_of(fields))
    assert [(row["messages"][0]["content"], row["score"]) for row in rows] == [("q0", 1.0), ("q2", None)]
    assert [row.reason for row in bad] == ["bad_field"] * 3
    assert bad[0].detail == "field 'score': high is not of type double"
    assert json.loads(bad[0].raw) == {"q": "q1", "a": "a", "score": "high"}
    assert bad[2].detail == f"field 'score': 0x1{'0' * 77}… is not of type double"
    assert counts == {"other": 2}


def test_a_column_without_a_form_is_an_error_that_names_it(tmp_path):
    union_type = pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])])
    table = pa.table({"q": ["q", "r"], "a": ["a", "b"], "u": union_type})
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), table.schema) as file:
        file.write_table(table)
    with pytest.raises(SourceError, match=r"column 'u' is .*remove it from the source's `fields`"):
        read(tmp_path, shape_of({"u": field("string")}))


def test_text_that_is_not_utf8_is_a_bad_row(tmp_path):
    table = pa.table({"q": ["q", "r"], "a": ["a", "b"], "tag": pa.array([b"x", b"\xff"], pa.binary())})
    pq.write_table(table, tmp_path / "x.parquet")
    rows, bad, _ = read(tmp_path, shape_of({"tag": field("string")}))
    assert [row["tag"] for row in rows] == ["x"]
    assert [row.reason for row in bad] == ["invalid_utf8"]


def test_a_long_text_of_a_field_is_too_long(tmp_path):
    write(tmp_path / "x.parquet", [{"q": "q", "a": "a", "tag": "x" * 100}, {"q": "r", "a": "a", "tag": "x"}])
    source = Source(spec="toy", path=str(tmp_path))
    (split,) = cut("toy", source, list_files("toy", source, {}), 1 << 30, {})
    ((batch, (bad,)),) = read_split(source, shape_of({"tag": field("string")}), split, {}, Limits(row_bytes=99))
    assert (batch.num_rows, bad.reason, bad.raw) == (1, "too_long", b"x" * 100)


# --- real rows -----------------------------------------------------------------------------------------------------


def test_fields_of_native_samples(shared_data):
    samples = shared_data / "native_samples"
    chosen = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "skill_bucket": "chat"}
    description = {"shape": "preference", **chosen, "fields": {"score_chosen": "double", "score_rejected": "double"}}
    rows, bad, counts = read(samples / "ultrafeedback_binarized.jsonl", Description.model_validate(description).root)
    native = list(map(json.loads, (samples / "ultrafeedback_binarized.jsonl").read_bytes().splitlines()))
    assert (bad, counts) == ([], {})
    assert [row["score_chosen"] for row in rows] == [row["score_chosen"] for row in native]
    assert [row["score_rejected"] for row in rows] == [row["score_rejected"] for row in native]

    description = {
        "shape": "verifiable", "user": "question", "tests": "test_cases", "skill_bucket": "code",
        "fields": {
            "num_tests": {"type": "int", "column": "test_cases", "of": "count"},
            "first_pass_rate": {"type": "double", "column": "inferences.*.pass_rate", "of": 0},
        },
    }  # fmt: skip
    ((row,), _, counts) = read(samples / "acecode_verifiable.jsonl", Description.model_validate(description).root)
    assert (row["num_tests"], row["first_pass_rate"], counts) == (19, 1.0, {})

    description = {
        "shape": "verifiable", "user": "prompt", "answer": "reward_model.ground_truth", "skill_bucket": "math",
        "fields": {"index": {"type": "int", "column": "extra_info.index"}, "ability": "string"},
    }  # fmt: skip
    rows, _, _ = read(samples / "verl_nested_parquet.parquet", Description.model_validate(description).root)
    assert [(row["index"], row["ability"]) for row in rows[:2]] == [(0, "math"), (400, "math")]
