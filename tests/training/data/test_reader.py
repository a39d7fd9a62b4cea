import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.errors import ConfigError, DataError, SchemaError
from etl.schema import SPAN
from etl.storage import location
from etl.storage.build import Build, Chunk, Job
from etl.storage.location import Location
from tests.datasets import write_dataset
from tests.training.corpora import documents, write_corpus
from tests.training.teacher_tables import append_columns, rows_of, targets_of, toy_logp, write_teacher
from training.data import reader as reader_module
from training.data.collate import collate
from training.data.reader import CorpusReader, ReadConfig
from training.data.row_group import Teachers, decode
from training.data.stream.plan import Unit

CELL = "split=train/skill_bucket=B1/ctx_bucket=C1"


def table_of(found):
    """Documents as Python values: tokens and spans of each."""
    return [
        (
            found.input_ids[slice(*found.tokens[number])].tolist(),
            [(found.span_start[s], found.span_end[s], found.span_kind[s]) for s in range(*found.spans[number])],
        )
        for number in range(len(found))
    ]


def test_gather_gives_the_tokens_and_spans_of_the_rows_in_the_order_asked_for(tmp_path):
    write_corpus(tmp_path, num_train=20)
    reader = CorpusReader(str(tmp_path), "train")
    table = pa.concat_tables([documents(15, 1), documents(5, 2)]).to_pylist()
    index = reader.read_index(reader.whole, seed=0)
    assert index.num_tokens.tolist() == [row["n_tokens"] for row in table]
    chosen = np.array([17, 3, 0, 19, 3])
    found = table_of(reader.gather(index, chosen))
    for number, row in enumerate(chosen):
        tokens, spans = found[number]
        assert tokens == table[row]["input_ids"]
        assert spans == [
            (span["start"], span["end"], {"analysis": 0, "final": 2}[span["kind"]]) for span in table[row]["spans"]
        ]


def test_units_read_their_own_rows(tmp_path):
    write_corpus(tmp_path, num_train=20)
    reader = CorpusReader(str(tmp_path), "train")
    index = reader.read_index([Unit(1, 0, 3, 5), Unit(0, 0, 9, 10), Unit(0, 0, 2, 4)], seed=0)
    places = list(zip(index.part.tolist(), index.row.tolist(), strict=True))
    assert places == [(0, 2), (0, 3), (0, 9), (1, 3), (1, 4)]


def test_no_chosen_document_is_no_document(tmp_path):
    write_corpus(tmp_path, num_train=20)
    reader = CorpusReader(str(tmp_path), "train")
    assert len(reader.gather(reader.read_index(reader.whole, 0), np.empty(0, np.int64))) == 0


def test_a_null_weight_counts_as_one(tmp_path):
    table = documents(3, 0)
    weights = pa.array([None, 2.5, None], pa.float64())
    write_dataset(str(tmp_path), "layout", "corpus", {CELL: table.set_column(4, "sampling_weight", weights)})
    reader = CorpusReader(str(tmp_path), "train")
    assert reader.read_index(reader.whole, 0).weight.tolist() == [1.0, 2.5, 1.0]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("n_tokens", pa.array([5, 99, 5], pa.int32())),
        ("spans", [[], [{"kind": "final", "turn": 0, "start": 1, "content_start": 1, "end": 6}], []]),
        ("spans", [[], [{"kind": "thought", "turn": 0, "start": 1, "content_start": 1, "end": 2}], []]),
    ],
)
def test_a_row_that_contradicts_itself_is_named(tmp_path, column, values):
    table = documents(3, 0)
    rows = table.set_column(1, "input_ids", pa.array([[1, 2, 3, 4, 5]] * 3, pa.list_(pa.int32())))
    rows = rows.set_column(2, "n_tokens", pa.array([5, 5, 5], pa.int32()))
    rows = rows.set_column(3, "spans", pa.array([[]] * 3, table.schema.field("spans").type))
    field = rows.schema.field(column)
    rows = rows.set_column(rows.schema.get_field_index(column), field, pa.array(values, field.type))
    write_dataset(str(tmp_path), "layout", "corpus", {CELL: rows})
    reader = CorpusReader(str(tmp_path), "train")
    with pytest.raises(DataError, match="row group 0, row 1: n_tokens or spans contradict"):
        reader.gather(reader.read_index(reader.whole, 0), np.arange(3))


def test_a_corpus_without_the_columns_is_refused(tmp_path):
    write_dataset(str(tmp_path), "layout", "corpus", {CELL: documents(3, 0).drop_columns(["spans"])})
    with pytest.raises(SchemaError, match="'spans'"):
        CorpusReader(str(tmp_path), "train")


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a committed dataset"):
        CorpusReader(str(tmp_path), "train")


def test_a_part_that_is_not_the_manifests_is_refused_when_it_is_opened(tmp_path):
    write_corpus(tmp_path, num_train=20)
    reader = CorpusReader(str(tmp_path), "train")
    path = tmp_path / reader.parts[1].path
    data = path.read_bytes()
    path.write_bytes(data + b"more")
    assert len(reader.read_index([unit for unit in reader.whole if unit.part == 0], 0)) == 15
    with pytest.raises(
        DataError, match=rf"{path.name} has {len(data) + 4:,} bytes, but the manifest says {len(data):,}"
    ):
        reader.read_index(reader.whole, 0)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name} is gone"):
        CorpusReader(str(tmp_path), "train").read_index(reader.whole, 0)


def test_the_largest_token_id_must_have_a_place_in_each_vocabulary(tmp_path):
    largest = max(max(row["input_ids"]) for row in documents(15, 1).to_pylist())
    write_corpus(tmp_path, num_train=20)
    fits = CorpusReader(str(tmp_path), "train", vocab_sizes={"the student": largest + 1})
    assert len(fits.read_index(fits.whole, 0)) == 20
    vocab_sizes = {"the student": largest + 1, "the teacher": largest}
    too_small = CorpusReader(str(tmp_path), "train", vocab_sizes=vocab_sizes)
    with pytest.raises(
        ConfigError, match=rf"id {largest}, .* at least {largest + 1} ids, but the teacher has {largest}"
    ):
        too_small.read_index(too_small.whole, 0)


def test_token_ids_that_the_footer_does_not_know_are_damage(tmp_path):
    write_corpus(tmp_path, num_train=20)
    reader = CorpusReader(str(tmp_path), "train")
    with pytest.raises(DataError, match=r"row group 0 is damaged: it has the token ids 0 to 96, .* says 0 to 95"):
        decode(
            pq.read_table(tmp_path / reader.parts[0].path, partitioning=None), Teachers(None, None), "row group 0", 95
        )


def test_a_row_group_without_tokens_has_no_largest_id(tmp_path):
    table = documents(3, 0)
    rows = table.set_column(1, table.schema.field("input_ids"), pa.array([[]] * 3, pa.list_(pa.int32())))
    rows = rows.set_column(2, table.schema.field("n_tokens"), pa.array([0] * 3, pa.int32()))
    rows = rows.set_column(3, table.schema.field("spans"), pa.array([[]] * 3, table.schema.field("spans").type))
    write_dataset(str(tmp_path), "layout", "corpus", {CELL: rows})
    reader = CorpusReader(str(tmp_path), "train", vocab_sizes={"the student": 2})
    assert len(reader.gather(reader.read_index(reader.whole, 0), np.arange(3)).input_ids) == 0


def test_a_cache_folder_that_is_not_there_is_refused(tmp_path):
    write_corpus(tmp_path / "corpus", num_train=20)
    with pytest.raises(ConfigError, match=r"read\.cache_folder"):
        CorpusReader(str(tmp_path / "corpus"), "train", ReadConfig(cache_folder=str(tmp_path / "absent")))


# --- the columns of the index --------------------------------------------------------------------------------------


def index_of(tmp_path, table):
    write_dataset(str(tmp_path), "layout", "corpus", {CELL: table})
    reader = CorpusReader(str(tmp_path), "train")
    return reader, reader.read_index(reader.whole, 0)


def test_supervised_tokens_come_from_the_counts_or_else_from_the_spans(tmp_path):
    table = documents(5, 0)
    expected = [sum(span["end"] - span["start"] for span in row["spans"]) for row in table.to_pylist()]
    _, index = index_of(tmp_path / "spans", table)
    assert index.supervised.tolist() == expected
    values = dict(zip(reader_module.SUPERVISED_COLUMNS, (1, 2, 4, None), strict=True))
    counts = {name: pa.array([value] * 5, pa.int32()) for name, value in values.items()}
    _, index = index_of(tmp_path / "counts", append_columns(table, **counts))
    assert index.supervised.tolist() == [7] * 5


def test_the_two_sides_of_a_pair_have_one_number_and_others_have_none(tmp_path):
    table = append_columns(
        documents(5, 0),
        pair_id=["a", None, "b", "a", "b"],
        side=["rejected", None, "chosen", "chosen", "rejected"],
    )
    reader, index = index_of(tmp_path, table)
    assert reader.has_pairs
    assert index.pair[[0, 1, 2]].tolist() == [index.pair[3], 0, index.pair[4]]
    assert len({0, index.pair[0], index.pair[2]}) == 3
    assert index.side.tolist() == [1, -1, 0, 0, 1]
    found = reader.gather(index, np.array([3, 1, 0]))
    assert found.pair.tolist() == index.pair[[3, 1, 0]].tolist()
    assert found.side.tolist() == [0, -1, 1]


def test_labels_say_where_documents_come_from(tmp_path):
    origins = {"source_dataset": ["one", "two", "one", "one"], "license": ["mit", None, "mit", "cc0"]}
    table = append_columns(documents(4, 0), **origins)
    cells = {CELL: table, "split=train/skill_bucket=B3/ctx_bucket=C2": table.slice(0, 1)}
    write_dataset(str(tmp_path), "layout", "corpus", cells)
    reader = CorpusReader(str(tmp_path), "train")
    found = reader.gather(reader.read_index(reader.whole, 0), np.array([3, 4, 1, 0, 2]))
    assert [reader.labels[number] for number in found.label] == [
        ("one", "B1", "C1", "cc0"), ("one", "B3", "C2", "mit"), ("two", "B1", "C1", None),
        ("one", "B1", "C1", "mit"), ("one", "B1", "C1", "mit"),
    ]  # fmt: skip
    assert len(reader.labels) == len(set(reader.labels)) == 4


def test_a_corpus_that_does_not_say_has_one_label_a_cell(tmp_path):
    reader, index = index_of(tmp_path, documents(4, 0))
    assert reader.gather(index, np.arange(4)).label.tolist() == [0] * 4
    assert reader.labels == [(None, "B1", "C1", None)]


# --- what is read --------------------------------------------------------------------------------------------------

GROUPS = 12
ROWS = 40
TOKENS = 900


def write_large(url):
    """A corpus of half a million random tokens in two parts of six row groups, and a column that nobody reads."""
    generator = np.random.default_rng(0)
    size = ROWS * TOKENS
    kinds = {"kind": "final", "turn": 0, "start": 100, "content_start": 100, "end": TOKENS}
    batches = []
    for number in range(GROUPS):
        ids = pa.array(generator.integers(0, 200_000, size), pa.int32())
        table = {
            "id": pa.array([str(uuid.UUID(int=number * ROWS + row)) for row in range(ROWS)]),
            "input_ids": pa.ListArray.from_arrays(np.arange(0, size + 1, TOKENS, dtype=np.int32), ids),
            "n_tokens": pa.array([TOKENS] * ROWS, pa.int32()),
            "spans": pa.array([[kinds]] * ROWS, pa.list_(SPAN)),
            "sampling_weight": pa.array([1.0] * ROWS),
            "messages": pa.array([generator.bytes(4000) for _ in range(ROWS)]),
        }
        batches.append(pa.RecordBatch.from_pydict(table))
    build = Build(Job(Location.of(url), "layout", "corpus", batches[0].schema, {}))
    plan = build.plan([0, 1])
    for split in range(2):
        own = batches[split * GROUPS // 2 : (split + 1) * GROUPS // 2]
        build.writer(plan).write(split, (Chunk(batch, ROWS, partition=CELL) for batch in own))
    return build.commit(plan)


@pytest.fixture(scope="module")
def large():
    """In fsspec's memory, which is read as an object store is."""
    folder = Location.of(f"memory://{uuid.uuid4().hex}")
    write_large(folder)
    yield folder.url
    folder.remove_tree()


@pytest.fixture
def num_read(monkeypatch):
    """Bytes that were asked of the store, by object."""
    found: list[int] = []
    fetcher = location._RangeReader._fetcher

    def counting(self, info):
        fetch = fetcher(self, info)

        def counted(start, end):
            found.append(end - start)
            return fetch(start, end)

        return counted

    monkeypatch.setattr(location._RangeReader, "_fetcher", counting)
    return found


def selected_bytes(url):
    """Stored bytes of the columns that training reads, and of the footers, of which at least 64 KB are read."""
    columns = footers = 0
    dataset = CorpusReader(url, "train", ReadConfig(cache_gib=0)).dataset
    for part in dataset.manifest.parts:
        metadata = dataset.part_location(part).open_parquet().metadata
        footers += max(metadata.serialized_size + 8, 64 << 10)
        for group in range(metadata.num_row_groups):
            chunks = [metadata.row_group(group).column(place) for place in range(metadata.num_columns)]
            columns += sum(c.total_compressed_size for c in chunks if not c.path_in_schema.startswith("messages"))
    return columns, footers


def segments(reader):
    """Three segments that each pick documents of all row groups."""
    index = reader.read_index(reader.whole, 0)
    generator = np.random.default_rng(1)
    return [reader.gather(index, generator.permutation(len(index))[: len(index) // 2]) for _ in range(3)]


@pytest.fixture(scope="module")
def expected(large):
    return [table_of(found) for found in segments(CorpusReader(large, "train", ReadConfig(workers=1, cache_gib=0)))]


def test_with_a_spool_every_row_group_is_read_once_in_a_run(large, expected, num_read):
    columns, footers = selected_bytes(large)
    num_read.clear()
    reader = CorpusReader(large, "train")
    assert [table_of(found) for found in segments(reader)] == expected
    reader.close()
    # The spans are read twice, since this corpus has no counts of supervised tokens; the schema takes a footer.
    assert sum(num_read) <= 1.02 * columns + 1.5 * footers


def test_without_a_spool_every_segment_reads_its_row_groups_again(large, expected, num_read):
    columns, _ = selected_bytes(large)
    num_read.clear()
    reader = CorpusReader(large, "train", ReadConfig(cache_gib=0))
    assert [table_of(found) for found in segments(reader)] == expected
    assert 2.9 * columns < sum(num_read) < 3.3 * columns


@pytest.mark.parametrize("kept", [0, 5])
def test_a_spool_that_is_too_small_keeps_what_fits(large, expected, num_read, kept):
    reading = ReadConfig(cache_gib=(kept + 0.5) * (ROWS * TOKENS * 4 + 4096) / 2**30)
    columns, footers = selected_bytes(large)
    reader = CorpusReader(large, "train", reading)
    num_read.clear()
    assert [table_of(found) for found in segments(reader)] == expected
    share = (kept + 3 * (GROUPS - kept)) / GROUPS
    assert share * 0.95 * columns < sum(num_read) < share * 1.05 * columns + 1.5 * footers


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("cache_gib", [0, 1])
def test_any_number_of_threads_gives_the_same_documents(large, expected, workers, cache_gib):
    reader = CorpusReader(large, "train", ReadConfig(workers=workers, cache_gib=cache_gib))
    assert [table_of(found) for found in segments(reader)] == expected
    reader.close()


def test_documents_outlive_the_reader(large, expected):
    reader = CorpusReader(large, "train")
    found = segments(reader)
    reader.close()
    assert [table_of(segment) for segment in found] == expected


def test_a_part_that_is_gone_is_named(tmp_path):
    write_corpus(tmp_path, num_train=20)
    reader = CorpusReader(str(tmp_path), "train")
    index = reader.read_index([unit for unit in reader.whole if unit.part == 1], 0)
    (tmp_path / reader.parts[0].path).unlink()
    with pytest.raises(DataError, match=r"B1/ctx_bucket=C1/.* is gone"):
        reader.read_index(reader.whole, 0)
    assert len(reader.gather(index, np.arange(len(index)))) == 5


# --- teachers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path):
    """The rows of a corpus in `corpus`, a document of raw text that is supervised from its first token among them."""
    table = documents(12, 1)
    text = table.slice(4, 1).to_pylist()[0]
    size = text["n_tokens"]
    text["spans"] = [{"kind": "text", "turn": -1, "start": 0, "content_start": 0, "end": size}]
    table = pa.concat_tables([table.slice(0, 4), pa.Table.from_pylist([text], table.schema), table.slice(5)])
    write_dataset(str(tmp_path / "corpus"), "layout", "corpus", {CELL: table})
    return rows_of(tmp_path / "corpus")


@pytest.mark.parametrize("cache_gib", [0, 1])
def test_teacher_logp_of_each_target_reaches_its_row_of_the_pack(tmp_path, rows, cache_gib):
    write_teacher(tmp_path / "teacher", [rows[number] for number in (7, 4, 0, 9)], topk=3)
    reader = CorpusReader(str(tmp_path / "corpus"), "train", ReadConfig(cache_gib=cache_gib), str(tmp_path / "teacher"))
    index, scored = reader.read_scored_index(reader.whole, 0, list(reader.side_tables.values()))
    assert np.flatnonzero(scored[0]).tolist() == [0, 4, 7, 9]
    chosen = [9, 1, 4, 4, 2]
    for _ in range(2):
        pack = collate(reader.gather(index, np.array(chosen)), 5 * 40 + 3)
    for number, place in enumerate(chosen):
        own = np.flatnonzero((pack.document == number) & (pack.target_kind >= 0))
        assert pack.targets[own].tolist() == targets_of(rows[place])
        if place in (4, 9):
            assert pack.teacher_logp[own].tolist() == [toy_logp(rows[place], at) for at in range(len(own))]
            assert pack.topk_ids[own].tolist() == [[100 * at, 100 * at + 1, 100 * at + 2] for at in range(len(own))]
            np.testing.assert_array_equal(pack.topk_logp[own], -0.5 * pack.topk_ids[own])
        else:
            assert np.isnan(pack.teacher_logp[own]).all()
            assert (pack.topk_ids[own] == -1).all()
    rest = pack.target_kind < 0
    assert np.isnan(pack.teacher_logp[rest]).all()
    assert np.isnan(pack.topk_logp[rest]).all()


def test_a_table_without_topk_gives_none(tmp_path, rows):
    write_teacher(tmp_path / "teacher", rows)
    reader = CorpusReader(str(tmp_path / "corpus"), "train", teacher=str(tmp_path / "teacher"))
    pack = collate(reader.gather(reader.read_index(reader.whole, 0), np.arange(3)), 130)
    assert (pack.topk_ids, pack.topk_logp) == (None, None)
    assert (np.isnan(pack.teacher_logp) == (pack.target_kind < 0)).all()


def test_without_a_teacher_there_is_no_signal(tmp_path, rows):
    reader = CorpusReader(str(tmp_path / "corpus"), "train")
    index = reader.read_index(reader.whole, 0)
    assert reader.side_tables == {}
    assert reader.gather(index, np.arange(3)).teacher is None


def test_a_table_of_other_tokens_is_refused_naming_the_row(tmp_path, rows):
    changed = [row | {"input_ids": [*row["input_ids"][:-1], 96 - row["input_ids"][-1]]} for row in rows]
    write_teacher(tmp_path / "teacher", [*rows[:3], changed[3]])
    reader = CorpusReader(str(tmp_path / "corpus"), "train", teacher=str(tmp_path / "teacher"))
    index = reader.read_index(reader.whole, 0)
    with pytest.raises(DataError, match=rf"row group 0, row 3 \(id {rows[3]['id']}\).* other supervised tokens"):
        reader.gather(index, np.arange(1))


def test_the_reference_model_says_one_number_a_document(tmp_path, rows):
    write_teacher(tmp_path / "reference", rows[:6])
    reader = CorpusReader(str(tmp_path / "corpus"), "train", reference=str(tmp_path / "reference"))
    found = reader.gather(reader.read_index(reader.whole, 0), np.array([5, 8, 4]))
    sums = [sum(toy_logp(rows[place], at) for at in range(len(targets_of(rows[place])))) for place in (5, 4)]
    np.testing.assert_allclose(found.reference_logp[[0, 2]], sums, rtol=1e-6)
    assert np.isnan(found.reference_logp[1])
    np.testing.assert_array_equal(collate(found, 130).reference_logp, found.reference_logp)
    assert found.teacher is None
