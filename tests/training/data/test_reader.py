import numpy as np
import pyarrow as pa
import pytest

from etl.errors import DataError, SchemaError
from etl.storage.dataset import write_dataset
from tests.training.corpora import documents, write_corpus
from training.data.plan import Unit
from training.data.reader import CorpusReader

CELL = "split=train/skill_bucket=B1/ctx_bucket=C1"


def test_gather_gives_the_tokens_and_spans_of_the_rows_in_the_order_asked_for(tmp_path):
    write_corpus(tmp_path, num_train=20)
    reader = CorpusReader(str(tmp_path), "train")
    table = pa.concat_tables([documents(15, 1), documents(5, 2)]).to_pylist()
    index = reader.read_index(reader.whole, seed=0)
    assert index.num_tokens.tolist() == [row["n_tokens"] for row in table]
    chosen = np.array([17, 3, 0, 19, 3])
    found = reader.gather(index, chosen)
    for number, row in enumerate(chosen):
        first, last = found.tokens[number]
        assert found.input_ids[first:last].tolist() == table[row]["input_ids"]
        spans = range(*found.spans[number])
        assert [(found.span_start[s], found.span_end[s], found.span_kind[s]) for s in spans] == [
            (span["start"], span["end"], {"analysis": 0, "final": 2}[span["kind"]]) for span in table[row]["spans"]
        ]


def test_strided_units_read_their_own_rows(tmp_path):
    write_corpus(tmp_path, num_train=20)
    reader = CorpusReader(str(tmp_path), "train")
    index = reader.read_index([Unit(1, 0, 2, 1, 1.0), Unit(0, 0, 4, 2, 1.0)], seed=0)
    assert list(zip(index.part.tolist(), index.row.tolist(), strict=True)) == [
        (0, 2), (0, 6), (0, 10), (0, 14), (1, 1), (1, 3),
    ]  # fmt: skip


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
    with pytest.raises(DataError, match="row 1: n_tokens or spans contradict"):
        reader.gather(reader.read_index(reader.whole, 0), np.arange(3))


def test_a_corpus_without_the_columns_is_refused(tmp_path):
    write_dataset(str(tmp_path), "layout", "corpus", {CELL: documents(3, 0).drop_columns(["spans"])})
    with pytest.raises(SchemaError, match="'spans'"):
        CorpusReader(str(tmp_path), "train")


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a committed dataset"):
        CorpusReader(str(tmp_path), "train")
