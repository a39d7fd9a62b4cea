import numpy as np

from training.data.collate import UNSUPERVISED, collate
from training.data.reader import Documents

NO_DOCUMENTS = Documents(
    input_ids=np.empty(0, np.int32),
    span_kind=np.empty(0, np.int8),
    span_start=np.empty(0, np.int32),
    span_end=np.empty(0, np.int32),
    tokens=np.empty((0, 2), np.int64),
    spans=np.empty((0, 2), np.int64),
    id_hash=np.empty(0, np.uint64),
)


def two_documents(spans):
    """Tokens 10..14 and 20..22, spans (document, kind, start, end) sorted by document."""
    counts = np.bincount([span[0] for span in spans], minlength=2)
    ends = np.cumsum(counts)
    return Documents(
        input_ids=np.array([10, 11, 12, 13, 14, 20, 21, 22], np.int32),
        span_kind=np.array([span[1] for span in spans], np.int8),
        span_start=np.array([span[2] for span in spans], np.int32),
        span_end=np.array([span[3] for span in spans], np.int32),
        tokens=np.array([[0, 5], [5, 8]]),
        spans=np.stack([ends - counts, ends], axis=1),
        id_hash=np.array([7, 8], np.uint64),
    )


def test_a_span_is_predicted_from_the_row_before_each_of_its_tokens():
    pack = collate(two_documents([(0, 0, 2, 4), (0, 2, 4, 5), (1, 3, 0, 3)]), 10)
    assert pack.input_ids.tolist() == [10, 11, 12, 13, 14, 20, 21, 22, 0, 0]
    assert pack.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1]
    assert pack.cu_seqlens.tolist() == [0, 5, 8, 10]
    assert pack.document.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, -1, -1]
    # The text span from 0 covers a document's first token, which is never a target; no row predicts across the border.
    assert pack.target_kind.tolist() == [-1, 0, 0, 2, -1, 3, 3, -1, -1, -1]
    supervised = pack.target_kind != UNSUPERVISED
    assert pack.targets[supervised].tolist() == [12, 13, 14, 21, 22]
    assert pack.span_counts().tolist() == [2, 0, 1, 2]
    assert pack.num_tokens == 8


def test_empty_and_one_token_spans_at_the_start_supervise_nothing():
    pack = collate(two_documents([(0, 0, 0, 1), (0, 0, 3, 3), (1, 2, 0, 0)]), 8)
    assert pack.span_counts().tolist() == [0, 0, 0, 0]
    assert pack.cu_seqlens.tolist() == [0, 5, 8]


def test_a_pack_without_documents_is_all_room():
    pack = collate(NO_DOCUMENTS, 6)
    assert pack.cu_seqlens.tolist() == [0, 6]
    assert pack.num_tokens == 0
    assert pack.span_counts().tolist() == [0, 0, 0, 0]
    assert pack.document.tolist() == [-1] * 6
