"""Fields of sources in a recipe: cuts, steps and the corpus have them, and what is wrong with one is said at once."""

import contextlib

import pyarrow as pa
import pytest
import yaml

from etl.engines.local import LocalEngine
from etl.errors import ConfigError, SchemaError
from etl.run.plan import plan_recipe
from etl.run.recipe import Recipe
from etl.run.run import check, run_recipe
from etl.schema import PROMPT, PROMPT_CONTENT
from etl.stages.layout import SCHEMA_V0
from etl.storage.catalog import statements
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.toys import read, stage, write_jsonl

WEB = {"score": "double", "level": "int", "kind": "string"}
BOOKS = {"level": "int", "checked": {"type": "bool", "column": "tests.*.ok", "of": "all"}}


def write_sources(folder):
    web = [
        {"id": f"w{n}", "q": f"What is the number {n}?", "a": f"The number is {n}.", "level": n % 5,
         "score": "n/a" if n % 10 == 0 else "bad" if n % 10 == 1 else f"{n / 10}", "kind": "ab"[n % 2]}
        for n in range(40)
    ]  # fmt: skip
    books = [
        {"id": f"b{n}", "q": f"Which book is on shelf {n}?", "a": f"Book {n}.", "level": f"{n}.0",
         "tests": [{"ok": True}, {"ok": n % 2 == 0}]}
        for n in range(20)
    ]  # fmt: skip
    write_jsonl(folder / "web.jsonl", web)
    write_jsonl(folder / "books.jsonl", books)


def recipe_of(folder, output="out", web=WEB, books=BOOKS, **sections):
    columns = {"shape": "columns", "example_id": "id", "user": "q", "final": "a", "skill_bucket": "chat"}
    for name, fields in (("web", web), ("books", books)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(columns | {"fields": fields}, sort_keys=False))
    sources = {
        name: {"spec": str(folder / f"{name}.yaml"), "path": str(folder / f"{name}.jsonl")} for name in ("web", "books")
    }
    tree = {"name": "toy", "output": str(folder / output), "sources": sources, "stages": []}
    return Recipe.model_validate(tree | sections)


CUTS = [
    {"kind": "threshold", "name": "good", "column": "score", "min": 1.5, "sources": ["web"]},
    {"kind": "threshold", "name": "checked_books", "column": "checked", "equals": True, "sources": ["books"]},
    {"kind": "share", "name": "kinds", "column": "kind", "values": ["a"], "share": 0.25, "sources": ["web"]},
    {"kind": "percentile", "name": "easy", "column": "level", "keep": 0.9},
]
STAGES = [{"kind": "filter", "cuts": CUTS}, {"kind": "dedup", "survivor": {"score": "level"}}]


def run(recipe, engine=None):
    lines = []
    return run_recipe(recipe, engine or InProcessEngine(), lines.append), lines


def test_rows_have_the_fields_of_all_sources(tmp_path):
    write_sources(tmp_path)
    result, lines = run(recipe_of(tmp_path))
    rows = {row["source_example_id"]: row for row in read(stage(tmp_path / "out", "ingest"))}
    names = ["score", "level", "kind", "checked"]
    assert [rows["w3"][name] for name in names] == [0.3, 3, "b", None]
    assert [rows["w10"][name] for name in names] == [None, 0, "a", None]
    assert [rows["b2"][name] for name in names] == [None, 2, None, True]
    assert [rows["b3"][name] for name in names] == [None, 3, None, False]
    manifest = stage(tmp_path / "out", "ingest").manifest
    assert manifest.findings["inputs"]["web"]["unparsed"] == {"score": 4}
    assert "unparsed" not in manifest.findings["inputs"]["books"]
    (line,) = [line for line in lines if "web" in line and "40 rows" in line]
    assert line.endswith("; did not parse, so null: score 4")
    assert result.rows.schema.names == [*PROMPT.names[:-1], *names, "verdict"]


def test_cuts_and_survivors_by_fields_on_the_local_engine(tmp_path):
    write_sources(tmp_path)
    sections = {
        "stages": [*STAGES, {"kind": "tokenize"}, {"kind": "layout", "validation_fraction": 0.0}],
    }
    with contextlib.closing(LocalEngine()) as engine:
        result, _ = run(recipe_of(tmp_path, **sections), engine)
    corpus = read(Dataset.open(tmp_path / "out" / "corpus"))
    kept = {row["source_example_id"]: row for row in corpus}
    web = {n for n in range(15, 40) if n % 10 > 1}
    books = set(range(0, 20, 2))
    assert result.accounting["web"]["good"]["kept"] == len(web)
    assert result.accounting["web"]["good"]["unscored"] == 8
    assert result.accounting["books"]["checked_books"]["kept"] == len(books)
    kinds = [row["kind"] for row in corpus if row["source_dataset"] == "web"]
    assert 0 < kinds.count("a") < kinds.count("b")
    assert kept["b2"]["level"] == 2
    assert all(row["checked"] for row in corpus if row["source_dataset"] == "books")
    assert {name for name in kept if name.startswith("w")} <= {f"w{n}" for n in web}
    schema = Dataset.open(tmp_path / "out" / "corpus").schema
    place = [name for name in PROMPT_CONTENT if name not in SCHEMA_V0.names and name != "skill_bucket"]
    assert schema.names[: len(SCHEMA_V0) + len(place) + 4] == [
        *SCHEMA_V0.names,
        *place,
        "score",
        "level",
        "kind",
        "checked",
    ]
    assert [schema.field(name).type for name in ("score", "level", "kind", "checked")] == [
        pa.float64(), pa.int64(), pa.string(), pa.bool_()
    ]  # fmt: skip


def test_rows_of_one_id_that_differ_in_a_field(tmp_path):
    write_sources(tmp_path)
    rows = [{"id": "w", "q": "What?", "a": "This.", "level": level} for level in (3, 1, 2)]
    for number, order in enumerate((rows, rows[::-1])):
        write_jsonl(tmp_path / "web.jsonl", order)
        recipe = recipe_of(tmp_path, f"out-{number}", stages=[{"kind": "dedup", "near": None}])
        run(recipe)
    one, other = ({row["level"] for row in survivors(tmp_path / f"out-{number}")} for number in (0, 1))
    assert len(one) == 1
    assert one == other


def survivors(output):
    base, marks = stage(output, "ingest"), stage(output, "exact")
    return [
        row
        for row, mark in zip(read(base), read(marks), strict=True)
        if row["source_dataset"] == "web" and mark["verdict"] is None
    ]


def test_the_plan_knows_the_fields_and_a_change_of_one(tmp_path):
    write_sources(tmp_path)
    recipe = recipe_of(tmp_path, stages=STAGES)
    assert {one.action for one in plan_recipe(recipe).stages} == {"run"}
    run(recipe)
    assert {one.action for one in plan_recipe(recipe).stages} == {"keep"}
    changed = recipe_of(tmp_path, stages=STAGES, web={**WEB, "level": {"type": "int", "strict": True}})
    first = plan_recipe(changed).stages[0]
    assert (first.stage, first.action) == ("ingest", "run")
    assert first.reasons == ("sources.web.shape.fields.level.strict: absent -> True",)


def test_the_order_of_fields_is_that_of_the_columns(tmp_path):
    write_sources(tmp_path)
    run(recipe_of(tmp_path))
    turned = recipe_of(tmp_path)
    (tmp_path / "web.yaml").write_text(
        "{shape: columns, example_id: id, user: q, final: a, skill_bucket: chat, "
        "fields: {kind: string, level: int, score: double}}"
    )
    assert plan_recipe(turned).stages[0].reasons == ("fields[0]: 'score' -> 'kind'", "fields[2]: 'kind' -> 'score'")


@pytest.mark.parametrize(
    ("web", "books", "message"),
    [
        (
            {"level": "double"},
            {"level": "int"},
            "the field 'level' has the type int in the source 'books' and double in 'web'",
        ),
        (
            {"perplexity": "double"},
            {},
            "source 'web': the field 'perplexity' has the name of a column of the step 'perpl",
        ),
        ({}, {"Cluster_Size": "int"}, "every table already has a column 'Cluster_Size'"),
        (
            {},
            {"semantic_cluster_id": "string"},
            "source 'books': .* of the stage 'semantic'; give the field another na",
        ),
        ({"wiki_perplexity": "double"}, {}, "'wiki_perplexity' has the name of a column of the stage 'score'"),
    ],
)
def test_names_and_types_that_cannot_be(tmp_path, web, books, message):
    write_sources(tmp_path)
    step = {"kind": "perplexity", "name": "wiki", "model": "run:kenlm"}
    stages = [{"kind": "kenlm"}, {"kind": "score", "steps": [step]}]
    with pytest.raises(ConfigError, match=message):
        check(recipe_of(tmp_path, web=web, books=books, stages=stages))


def test_a_column_that_nobody_gives(tmp_path):
    write_sources(tmp_path)
    cut = {"kind": "threshold", "name": "good", "column": "scores", "min": 1}
    with pytest.raises(
        SchemaError, match=r"cut 'good' reads \['scores'\].*'score', 'level', 'kind', 'checked'.*`fields`"
    ):
        check(recipe_of(tmp_path, stages=[{"kind": "filter", "cuts": [cut]}]))
    wrong = cut | {"column": "kind"}
    with pytest.raises(SchemaError, match="column 'kind' is string"):
        check(recipe_of(tmp_path, stages=[{"kind": "filter", "cuts": [wrong]}]))


def test_the_catalog_has_the_fields(tmp_path):
    write_sources(tmp_path)
    run(recipe_of(tmp_path))
    text = "\n".join(statements(Location.of(tmp_path / "out"), "spark"))
    assert all(
        f"`{name}` {kind}" in text for name, kind in [("score", "DOUBLE"), ("level", "BIGINT"), ("checked", "BOO")]
    )
