from dataclasses import replace

import numpy as np

from training.data.documents import Documents, TeacherSignal, ranges


def test_ranges_lie_one_behind_the_other():
    assert ranges(np.array([2, 0, 3])).tolist() == [[0, 2], [2, 2], [2, 5]]
    assert ranges(np.empty(0, np.int64)).shape == (0, 2)


def toy():
    """Three documents of 2, 1 and 3 tokens with a span each."""
    return Documents(
        input_ids=np.arange(6, dtype=np.int32),
        span_kind=np.array([0, 1, 2], np.int8),
        span_start=np.zeros(3, np.int32),
        span_end=np.array([2, 1, 3], np.int32),
        tokens=ranges(np.array([2, 1, 3])),
        spans=ranges(np.array([1, 1, 1])),
        id_hash=np.array([10, 11, 12], np.uint64),
        label=np.array([5, 6, 7], np.int32),
        pair=np.array([0, 9, 9]),
        side=np.array([-1, 0, 1], np.int8),
    )


def test_selected_documents_come_in_that_order_and_share_their_tokens():
    documents = toy()
    found = documents.select(np.array([2, 0]))
    assert len(found) == 2
    assert [found.input_ids[start:end].tolist() for start, end in found.tokens] == [[3, 4, 5], [0, 1]]
    assert [found.span_kind[start:end].tolist() for start, end in found.spans] == [[2], [0]]
    assert (found.id_hash.tolist(), found.label.tolist()) == ([12, 10], [7, 5])
    assert (found.pair.tolist(), found.side.tolist()) == ([9, 0], [1, -1])
    assert found.input_ids is documents.input_ids
    assert (found.teacher, found.reference_logp) == (None, None)


def test_what_models_said_goes_along():
    teacher = TeacherSignal(entries=ranges(np.array([1, 0, 2])), logp=np.array([-1, -2, -3], np.float32))
    scored = replace(toy(), teacher=teacher, reference_logp=np.array([-4, np.nan, -6], np.float32))
    found = scored.select(np.array([2, 1]))
    assert [found.teacher.logp[start:end].tolist() for start, end in found.teacher.entries] == [[-2.0, -3.0], []]
    assert found.teacher.topk_ids is None
    np.testing.assert_array_equal(found.reference_logp, [-6, np.nan])
