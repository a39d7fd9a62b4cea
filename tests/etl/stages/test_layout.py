"""The corpus: folders, files, rows and what its manifest reports."""

import uuid
from collections import Counter

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from etl import sorting
from etl.errors import SchemaError
from etl.harmony.step import HarmonyStep
from etl.hashing import hash_array
from etl.mixture.sampling import in_sample, purpose_seed
from etl.schema import CORPUS, CTX_BUCKETS
from etl.stages import layout
from etl.stages.layout import SCHEMA_V0, FilePlan, Layout
from tests.etl.stages.toys import (
    make_recipe,
    mixed_rows,
    plain_rows,
    read,
    row,
    run,
    stage,
    text_recipe,
    whole_recipe,
    write_jsonl,
    write_parquet,
)

CELL = ("split", "skill_bucket", "ctx_bucket")


@pytest.fixture(scope="module")
def made(tmp_path_factory, ngram_model):
    """A run of every stage over two sources; do not write to it."""
    folder = tmp_path_factory.mktemp("made")
    write_parquet(folder / "in" / "a.parquet", mixed_rows(220))
    write_jsonl(folder / "in" / "b.jsonl", mixed_rows(60, seed=1))
    sources = {"a": folder / "in" / "a.parquet", "b": folder / "in" / "b.jsonl"}
    run(whole_recipe(folder / "out", sources, ngram_model))
    return folder / "out"


def joined(output):
    """id (hex) to everything that the aligned tables say of the row, by Python dictionaries."""
    rows = {item["id"].hex(): dict(item) for item in read(stage(output, "ingest"))}
    for name in ("filter", "english_share", "exact", "near", "score", "strange", "tokenize", "split"):
        for item in read(stage(output, name)):
            rows[item["id"].hex()] |= item
    return rows


def corpus_rows(output):
    return pq.read_table(output / "corpus").to_pylist()


def test_rows_are_complete_and_there_once(made):
    alive = {str(uuid.UUID(key)) for key, item in joined(made).items() if item["verdict"] is None}
    ids = [item["id"] for item in corpus_rows(made)]
    assert len(ids) == len(set(ids))
    assert set(ids) == alive
    assert stage(made, "corpus").manifest.rows_out == len(ids)


def test_rows_say_what_the_aligned_tables_say(made):
    expected = joined(made)
    for item in corpus_rows(made):
        origin = expected[uuid.UUID(item["id"]).hex]
        for name in ("messages", "input_ids", "spans", "n_tokens", "prompt_tokens", "n_analysis", "n_final", "language",
                     "source_dataset", "source_example_id", "license", "split_key", "meta_json", "detected_language",
                     "language_score", "perplexity", "token_digest", "reasoning_effort"):  # fmt: skip
            assert item[name] == origin[name], name
        assert item["skill_bucket"] == origin["skill_bucket"]
        assert item["ctx_bucket"] == origin["ctx_bucket"]
        cluster = origin["cluster_id"]
        assert item["cluster_id"] == (str(uuid.UUID(bytes=cluster)) if cluster else None)
        assert item["sampling_weight"] == 1.0
        assert item["prompt_tokens_est"] == origin["prompt_tokens"]


def test_span_columns_name_the_spans(made):
    for item in corpus_rows(made):
        spans = {span["kind"]: {"start": span["start"], "end": span["end"]} for span in item["spans"]}
        assert item["final_span"] == spans["final"]
        assert item["analysis_span"] == spans.get("analysis")


def test_every_file_has_schema_v0_and_lies_in_its_cell(made):
    manifest = stage(made, "corpus").manifest
    for part in manifest.parts:
        file = pq.ParquetFile(made / "corpus" / part.path)
        schema = file.schema_arrow.remove_metadata()
        assert [schema.field(name).type for name in SCHEMA_V0.names] == SCHEMA_V0.types
        assert not set(CELL) & set(schema.names)
        assert [piece.partition("=")[0] for piece in part.path.split("/")[:-1]] == list(CELL)
        table = file.read()
        assert part.rows == len(table)
        assert part.tokens == pc.sum(table["n_tokens"]).as_py()
        assert part.row_groups == tuple(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups))


def test_rows_lie_in_their_cell(made):
    held_out = purpose_seed("split", 0)
    skills = {item["id"].hex(): item["skill_bucket"] for item in read(stage(made, "ingest"))}
    for item in corpus_rows(made):
        assert item["skill_bucket"] == skills[uuid.UUID(item["id"]).hex]
        validation = in_sample(pa.array([item["split_key"]]), held_out, 0.15)[0].as_py()
        assert item["split"] == ("validation" if validation else "train")
        assert item["ctx_bucket"] == next(name for name, most in CTX_BUCKETS.items() if item["n_tokens"] <= most)


def test_duckdb_and_pyarrow_read_the_rows_of_the_manifest(made):
    manifest = stage(made, "corpus").manifest
    counted = duckdb.sql(f"select count(*), count(distinct id) from read_parquet('{made}/corpus/**/*.parquet')")
    assert counted.fetchall() == [(manifest.rows_out, manifest.rows_out)]
    hive = pyarrow.dataset.dataset(made / "corpus", partitioning="hive", format="parquet")
    assert hive.count_rows() == manifest.rows_out
    assert set(CELL) <= set(hive.schema.names)


def test_every_table_is_read_by_duckdb_and_pyarrow(made):
    for path in sorted(made.rglob("_manifest.json")):
        folder = path.parent
        dataset = stage(made, str(folder.relative_to(made)))
        if not dataset.manifest.parts:
            continue
        rows = duckdb.sql(f"from read_parquet('{folder}/**/part-*.parquet')").fetchall()
        assert len(rows) == dataset.manifest.rows_out, folder
        assert pq.read_table(folder).num_rows == dataset.manifest.rows_out, folder


def test_distributions_equal_what_duckdb_counts(made):
    told = stage(made, "corpus").manifest.distributions
    duckdb.sql(f"create or replace temp view corpus as from read_parquet('{made}/corpus/**/*.parquet')")
    cells = duckdb.sql(
        "select split, skill_bucket, ctx_bucket, count(*), sum(n_tokens)::bigint,"
        " sum(n_analysis + n_commentary + n_final + n_text)::bigint from corpus group by all"
    ).fetchall()
    expected: dict = {}
    for split, skill, ctx, rows, tokens, supervised in cells:
        cell = {"rows": rows, "tokens": tokens, "supervised_tokens": supervised}
        expected.setdefault(split, {}).setdefault(skill, {})[ctx] = cell
    assert told["cells"] == expected
    for key, column in (("sources", "source_dataset"), ("languages", "detected_language")):
        counts = duckdb.sql(f"select {column}, count(*), sum(n_tokens)::bigint from corpus group by all").fetchall()
        assert told[key] == {name: {"rows": rows, "tokens": tokens} for name, rows, tokens in counts}
    kinds = ("analysis", "commentary", "final", "text")
    sums = duckdb.sql(f"select {', '.join(f'sum(n_{kind})::bigint' for kind in kinds)} from corpus").fetchall()
    assert told["spans"] == dict(zip(kinds, sums[0], strict=True))
    for split in expected:
        for kind in kinds:
            (found,) = duckdb.sql(
                f"select sum(n_{kind})::bigint, count(*) filter (n_{kind} > 0) from corpus where split = '{split}'"
            ).fetchall()
            assert told["supervised"][split][kind] == dict(zip(("tokens", "documents"), found, strict=True))
    lengths = duckdb.sql(
        "select (2 ** ceil(log2(n_tokens)))::bigint::varchar, count(*) from corpus group by all"
    ).fetchall()
    assert told["tokens_up_to"] == dict(lengths)


def test_the_preamble_travels_from_tokenize_to_the_corpus(tmp_path):
    said = {"system": "You.", "developer": "Be brief.", "reasoning_effort": "high",
            "conversation_start_date": "2025-06-28", "knowledge_cutoff": None}  # fmt: skip
    rows = write_jsonl(tmp_path / "rows.jsonl", plain_rows(3))
    short = {"kind": "tokenize", "name": "short", "harmony": {"reasoning_effort": "low"}}
    recipe = make_recipe(tmp_path / "out", {"a": rows}, stages=["tokenize", short, "layout"], harmony=said)
    run(recipe)
    brief = {**HarmonyStep().model_dump(include=set(said)), "reasoning_effort": "low"}
    assert stage(tmp_path / "out", "tokenize").manifest.findings == {"preambles": {"input_ids": said}}
    told = {"preambles": {"input_ids": said, "short_input_ids": brief}}
    assert stage(tmp_path / "out", "corpus").manifest.findings == told


def test_a_corpus_of_raw_text_has_no_preamble(tmp_path):
    recipe = text_recipe(tmp_path / "out", {"a": [{"id": "1", "text": "A text."}]}, stages=["tokenize", "layout"])
    run(recipe)
    corpus = stage(tmp_path / "out", "corpus").manifest
    assert (corpus.rows_out, corpus.findings) == (1, {})


def test_dropped_is_what_is_not_in_the_corpus(made):
    rows = joined(made)
    lost = {key: item["verdict"] for key, item in rows.items() if item["verdict"]}
    stages = {"ingest": "ingest", "answer": "filter", "language": "filter", "english_share": "filter",
              "exact": "dedup", "near": "dedup", "strange": "score", "split": "split"}  # fmt: skip
    told = read(stage(made, "dropped"))
    assert len(told) == len(lost)
    names = ("source_dataset", "source_example_id", "file", "position")
    assert {item["id"].replace("-", ""): item for item in told} == {
        key: {
            "id": str(uuid.UUID(key)), "stage": stages[verdict["step"]], **verdict,
            **{name: rows[key][name] for name in names},
        }
        for key, verdict in lost.items()
    }  # fmt: skip
    assert {"filter", "dedup", "score"} <= {item["stage"] for item in told}
    assert len(told) + stage(made, "corpus").manifest.rows_out == stage(made, "ingest").manifest.rows_out


def test_rows_of_a_file_are_in_the_order_of_the_hash_of_their_id(made):
    for part in stage(made, "corpus").manifest.parts:
        ids = pq.read_table(made / "corpus" / part.path, columns=["id"], partitioning=None)["id"].combine_chunks()
        order = hash_array(ids, layout._ORDER_SEED)
        assert (order[1:] >= order[:-1]).all()


def toy_corpus(tmp_path, rows, **options):
    write_parquet(tmp_path / "in.parquet", rows, row_group_size=64)
    recipe = make_recipe(
        tmp_path / "out", {"toy": tmp_path / "in.parquet"}, stages=["tokenize", "layout"],
        layout={"validation_fraction": 0.0} | options,
    )  # fmt: skip
    return run(recipe).corpus


def test_number_of_files_is_bound_by_size_and_cells(tmp_path):
    rows = [item | {"exercise": ("code", "editing")[n % 8 == 0]} for n, item in enumerate(plain_rows(900))]
    corpus = toy_corpus(tmp_path, rows, target_bytes=1 << 16).manifest
    tokens = {skill: cell["C1"]["tokens"] for skill, cell in corpus.distributions["cells"]["train"].items()}
    files = Counter(part.path.split("/")[1].removeprefix("skill_bucket=") for part in corpus.parts)
    assert files["B3"] > 3
    assert files == {skill: -(-int(count * layout.BYTES_PER_TOKEN) // (1 << 16)) for skill, count in tokens.items()}
    assert len(corpus.parts) <= layout.BYTES_PER_TOKEN * sum(tokens.values()) / (1 << 16) + len(tokens)
    # A hash deals the rows out, so files of a cell differ only by chance (5 standard deviations).
    rows_by_file = [part.rows for part in corpus.parts if "B3" in part.path]
    mean = sum(rows_by_file) / len(rows_by_file)
    assert max(abs(count - mean) for count in rows_by_file) < 5 * mean**0.5


def test_row_groups_hold_about_a_sixteenth_of_their_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "LEAST_ROW_GROUP_TOKENS", 100)
    corpus = toy_corpus(tmp_path, plain_rows(400)).manifest
    (part,) = corpus.parts
    assert 15 <= len(part.row_groups) <= 18
    assert sum(part.row_groups) == 400


def test_small_cells_have_one_row_group_and_large_ones_have_row_groups_of_a_million_tokens(tmp_path):
    (part,) = toy_corpus(tmp_path, plain_rows(20)).manifest.parts
    assert part.row_groups == (20,)
    found = [layout.row_group_tokens(tokens) for tokens in (0, 8192, 131_072, 1_600_000, 1 << 24, 1 << 40)]
    assert found == [8192, 8192, 8192, 100_000, 1 << 20, 1 << 20]


@pytest.mark.parametrize("batch_rows", [1, 3, 1000])
def test_row_groups_end_where_tokens_pass_a_multiple(batch_rows):
    tokens = [30, 60, 9, 1, 250, 0, 40, 10, 99, 1, 500]
    rows = pa.table({"n_tokens": pa.array(tokens, pa.int32())})
    found = [
        batch["n_tokens"].to_pylist() for batch in layout.row_groups(rows.to_batches(max_chunksize=batch_rows), 100)
    ]
    assert found == expected_groups(tokens)


def expected_groups(tokens):
    groups: dict = {}
    passed = 0
    for count in tokens:
        passed += count
        groups.setdefault(passed // 100, []).append(count)
    return list(groups.values())


def test_held_rows_are_flushed_without_loss(tmp_path, monkeypatch):
    """Rows leave in several slices a file when they are more than a task may hold."""
    whole = toy_corpus(tmp_path, mixed_rows(150)).manifest
    for module in (layout, sorting):
        monkeypatch.setattr(module, "held_bytes", lambda: 1 << 14)
    monkeypatch.setattr(layout, "_SLICE_BYTES", 1 << 12)
    (tmp_path / "again").mkdir()
    again = toy_corpus(tmp_path / "again", mixed_rows(150)).manifest
    assert again == whole


def test_longer_than_the_largest_bucket_is_dropped(tmp_path):
    words = "one two three four five six seven eight nine ten "
    rows = [row(n, "count", words * times) for n, times in enumerate((10, 500, 1000, 2000, 5000))]
    corpus = toy_corpus(tmp_path, rows)
    found = {item["source_example_id"]: item["ctx_bucket"] for item in corpus_rows(tmp_path / "out")}
    assert found == {"r0": "C1", "r1": "C2", "r2": "C3", "r3": "C4"}
    assert corpus.manifest.accounting["toy"]["ctx_bucket"]["longer_than_max_tokens"] == 1
    (lost,) = read(stage(tmp_path / "out", "dropped"))
    assert (lost["stage"], lost["step"], lost["reason"]) == ("tokenize", "ctx_bucket", "longer_than_max_tokens")
    assert int(lost["value"]) > CTX_BUCKETS["C4"]


# --- train and validation ------------------------------------------------------------------------------------------


def test_validation_fraction_of_many_rows(tmp_path):
    rows = plain_rows(2000)
    toy_corpus(tmp_path, rows, validation_fraction=0.1)
    held_out = Counter(item["split"] for item in corpus_rows(tmp_path / "out"))["validation"]
    assert abs(held_out - 200) < 5 * (2000 * 0.1 * 0.9) ** 0.5


def test_file_plan_gives_every_bucket_a_folder():
    cells = {("train", "B1", "C1"): (0, 2), ("train", "B3", "C4"): (2, 1), ("validation", "B5", "C2"): (3, 3)}
    plan = FilePlan(cells, {}, ())
    assert plan.num_buckets == 6
    folders = [plan.folder(bucket) for bucket in range(6)]
    assert folders[1] == "split=train/skill_bucket=B1/ctx_bucket=C1"
    assert folders[2] == "split=train/skill_bucket=B3/ctx_bucket=C4"
    assert folders[3:] == ["split=validation/skill_bucket=B5/ctx_bucket=C2"] * 3


def test_empty_cells_and_sides_make_no_folder(tmp_path):
    corpus = toy_corpus(tmp_path, plain_rows(10))
    assert {path.name for path in (tmp_path / "out" / "corpus").iterdir() if not path.name.startswith("_")} == {
        "split=train"
    }
    assert len(corpus.manifest.parts) == 1


def test_a_column_that_the_training_record_has_as_another_type_is_refused():
    schema = pa.schema([*CORPUS, ("ctx_bucket", pa.string())])
    assert Layout().output_schema(schema) == schema
    other = schema.set(schema.get_field_index("utility_score"), pa.field("utility_score", pa.string()))
    with pytest.raises(SchemaError, match="'utility_score' is string, but the training record has it as double; give"):
        Layout().output_schema(other)
