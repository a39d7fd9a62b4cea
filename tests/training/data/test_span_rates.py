import numpy as np
import pyarrow as pa
import pytest

from etl.schema import SPAN_KINDS
from tests.datasets import write_dataset
from tests.training.corpora import documents, write_corpus
from tests.training.teacher_tables import append_columns
from training.data.span_rates import SpanRates, counted, told
from training.data.stream.plan import split_parts

ANALYSIS, FINAL = SPAN_KINDS.index("analysis"), SPAN_KINDS.index("final")


def by_hand(rows):
    """Tokens and documents by kind, and all tokens."""
    tokens, found = np.zeros(4, int), np.zeros(4, int)
    for row in rows:
        own = np.zeros(4, int)
        for span in row["spans"]:
            own[SPAN_KINDS.index(span["kind"])] += span["end"] - span["start"]
        tokens, found = tokens + own, found + (own > 0)
    return [*tokens, *found, sum(row["n_tokens"] for row in rows)]


def test_spans_and_narrow_columns_count_the_same(tmp_path):
    table = documents(30, 1)
    table = table.set_column(3, "spans", pa.array([[], *table["spans"].to_pylist()[1:]], table["spans"].type))
    rows = table.to_pylist()
    narrow = {
        f"n_{kind}": [sum(s["end"] - s["start"] for s in row["spans"] if s["kind"] == kind) for row in rows]
        for kind in SPAN_KINDS
    }
    for name, own in (("spans", table), ("columns", append_columns(table, **narrow))):
        corpus = write_dataset(str(tmp_path / name), "layout", "corpus", {"split=train/a": own})
        assert counted(corpus, corpus.manifest.parts).tolist() == by_hand(rows)


def test_parts_add_up(tmp_path):
    corpus = write_corpus(tmp_path)
    parts = split_parts(corpus.manifest.parts, "train")
    assert len(parts) == 2
    assert (counted(corpus, parts[:1]) + counted(corpus, parts[1:])).tolist() == counted(corpus, parts).tolist()


def manifest(corpus, supervised, supervised_tokens):
    cells = {"train": {"B1": {"C1": {"rows": 1, "tokens": 100, "supervised_tokens": supervised_tokens}}}}
    return corpus.manifest.model_copy(update={"distributions": {"cells": cells, "supervised": supervised}})


def test_a_manifest_is_believed_if_it_counts_all_rows(tmp_path):
    corpus = write_corpus(tmp_path)
    of_train = {"analysis": {"documents": 2, "tokens": 30}, "final": {"documents": 3, "tokens": 12}}
    found = told(manifest(corpus, {"train": of_train}, 42), "train")
    assert found.tolist() == [30, 0, 12, 0, 2, 0, 3, 0]
    # A build that was begun before the kinds were counted has receipts without them.
    assert told(manifest(corpus, {"train": of_train}, 43), "train") is None
    assert told(manifest(corpus, {"validation": of_train}, 42), "train") is None
    assert told(corpus.manifest, "train") is None


def test_what_a_step_brings_on_average_grows_with_its_tokens():
    counts = np.array([300, 1, 99, 0, 10, 1, 10, 0])
    rates = SpanRates.of(counts, 800)
    assert rates.expected(800).tolist() == pytest.approx(counts.tolist())
    assert rates.expected(80).tolist() == pytest.approx((counts / 10).tolist())
