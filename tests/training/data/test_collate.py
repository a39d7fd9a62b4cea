import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.data.collate import UNSUPERVISED, collate
from training.data.documents import Documents, TeacherSignal, ranges

NO_DOCUMENTS = Documents(
    input_ids=np.empty(0, np.int32),
    span_kind=np.empty(0, np.int8),
    span_start=np.empty(0, np.int32),
    span_end=np.empty(0, np.int32),
    tokens=np.empty((0, 2), np.int64),
    spans=np.empty((0, 2), np.int64),
    id_hash=np.empty(0, np.uint64),
    label=np.empty(0, np.int32),
    pair=np.empty(0, np.int64),
    side=np.empty(0, np.int8),
)


def two_documents(spans, **more):
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
        label=np.array([3, 0], np.int32),
        **{"pair": np.zeros(2, np.int64), "side": np.full(2, -1, np.int8), **more},
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


@st.composite
def some_documents(draw):
    """Documents with spans in order, taken out of order from flat arrays that hold others between them."""
    count = draw(st.integers(0, 6))
    lengths = [draw(st.integers(1, 12)) for _ in range(count)]
    spans = []
    for number, length in enumerate(lengths):
        cuts = sorted(draw(st.lists(st.integers(0, length), max_size=4)))
        spans += [(number, place % 4, *ends) for place, ends in enumerate(zip(cuts[::2], cuts[1::2], strict=False))]
    num_spans = np.bincount([span[0] for span in spans], minlength=count)[:count]
    order = np.array(draw(st.permutations(range(count))), np.int64)
    return Documents(
        input_ids=np.arange(100, 100 + sum(lengths), dtype=np.int32),
        span_kind=np.array([span[1] for span in spans], np.int8),
        span_start=np.array([span[2] for span in spans], np.int32),
        span_end=np.array([span[3] for span in spans], np.int32),
        tokens=ranges(np.array(lengths, np.int64)),
        spans=ranges(num_spans.astype(np.int64)),
        id_hash=np.arange(count, dtype=np.uint64),
        label=np.arange(count, dtype=np.int32),
        pair=np.zeros(count, np.int64),
        side=np.full(count, -1, np.int8),
    ).select(order)


def reference(documents, pack_tokens):
    """Columns of the rows of a pack, one row at a time."""
    rows = []
    for number in range(len(documents)):
        first, last = documents.tokens[number]
        ids = documents.input_ids[first:last].tolist()
        kinds = [-1] * len(ids)
        for span in range(*documents.spans[number]):
            for token in range(documents.span_start[span], documents.span_end[span]):
                if token:
                    kinds[token - 1] = int(documents.span_kind[span])
        for at, token in enumerate(ids):
            rows.append((token, at, token if kinds[at] < 0 else ids[at + 1], kinds[at], number))
    return rows + [(0, at, 0, -1, -1) for at in range(pack_tokens - len(rows))]


@given(some_documents(), st.integers(0, 9))
def test_a_pack_is_that_of_a_simple_program(documents, room):
    lengths = documents.tokens[:, 1] - documents.tokens[:, 0]
    pack_tokens = max(int(lengths.sum()) + room, 1)
    pack = collate(documents, pack_tokens)
    columns = (pack.input_ids, pack.position_ids, pack.targets, pack.target_kind, pack.document)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == reference(documents, pack_tokens)
    borders = [0, *np.cumsum(lengths).tolist()]
    assert pack.cu_seqlens.tolist() == (borders if borders[-1] == pack_tokens else [*borders, pack_tokens])
    assert pack.label.tolist() == pack.id_hash.tolist() == documents.id_hash.tolist()
    dtypes = [array.dtype for array in (*columns, pack.cu_seqlens, pack.label)]
    assert dtypes == [np.int64, np.int64, np.int64, np.int8, np.int32, np.int32, np.int32]
    assert (pack.pair, pack.side, pack.teacher_logp, pack.topk_ids, pack.reference_logp) == (None,) * 5


@pytest.mark.parametrize(
    ("pairs", "sides", "expected"),
    [
        ([5, 5], [0, 1], [0, 0]),
        ([5, 5], [1, 0], [0, 0]),
        ([5, 6], [0, 1], [-1, -1]),
        ([5, 5], [0, 0], [-1, -1]),
        ([5, 0], [0, -1], [-1, -1]),
    ],
)
def test_pairs_are_numbered_when_both_sides_are_there(pairs, sides, expected):
    documents = two_documents([], pair=np.array(pairs, np.int64), side=np.array(sides, np.int8))
    pack = collate(documents, 9)
    assert pack.pair.tolist() == expected
    assert pack.side.tolist() == sides


def test_pairs_that_stand_twice_in_a_pack_are_told_apart():
    documents = two_documents([], pair=np.array([5, 5], np.int64), side=np.array([0, 1], np.int8))
    assert collate(documents.select(np.array([0, 1, 0, 1])), 20).pair.tolist() == [0, 0, 1, 1]
    assert collate(documents.select(np.array([0, 0, 1])), 20).pair.tolist() == [0, -1, 0]


def test_tensors_are_the_arrays_with_a_batch_dimension_on_ids_and_positions():
    entries = np.array([[0, 2], [2, 2]])
    teacher = TeacherSignal(
        entries, np.array([-1.0, -2.0], np.float32), np.array([[4, 5], [6, 7]], np.int32), np.zeros((2, 2), np.float32)
    )
    documents = two_documents(
        [(0, 0, 2, 4), (1, 2, 1, 2)],
        teacher=teacher,
        pair=np.array([9, 9]),
        side=np.array([0, 1], np.int8),
        reference_logp=np.array([-3.0, np.nan], np.float32),
    )
    pack = collate(documents, 10)
    tensors = pack.tensors(torch.device("cpu"))
    assert tensors.input_ids.shape == tensors.position_ids.shape == (1, 10)
    assert tensors.target_kind.dtype == torch.int64
    assert tensors.in_document.tolist() == [True] * 8 + [False] * 2
    assert np.flatnonzero(~np.isnan(pack.teacher_logp)).tolist() == [1, 2]
    for name in ("input_ids", "position_ids", "cu_seqlens", "targets", "target_kind", "document", "teacher_logp",
                 "topk_ids", "topk_logp", "pair", "side", "reference_logp"):  # fmt: skip
        np.testing.assert_array_equal(
            getattr(tensors, name).numpy().reshape(getattr(pack, name).shape), getattr(pack, name)
        )
    assert collate(two_documents([]), 10).tensors(torch.device("cpu")).teacher_logp is None
