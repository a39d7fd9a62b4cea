import json
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.training.packs import toy_pack
from training.record.ledger import Ledger, document_counts, merge, write

MATH = ("synth", "B1", "C1", "cc-by-4.0")
CODE = ("nemotron", "B3", "C2", None)
CHAT = (None, "B1", "C1", None)
LABELS = [MATH, CODE, CHAT]


def labelled(lengths, kind_at, labels, pack_tokens=16):
    return toy_pack(lengths, pack_tokens, kind_at, label=np.array(labels, np.int32))


def row(label, documents, tokens, supervised):
    names = ("source_dataset", "skill_bucket", "ctx_bucket", "license", "documents", "tokens", "supervised_tokens")
    return dict(zip(names, (*label, documents, tokens, supervised), strict=True))


def test_packs_are_counted_by_label_without_room():
    ledger = Ledger([])
    ledger.add([labelled([3, 4, 5], {0: 0, 1: 2, 4: 2, 9: 0}, [0, 1, 0]), labelled([], {}, [])], LABELS)
    ledger.add([labelled([2], {0: 3}, [2])], LABELS)
    assert ledger.rows() == [row(CHAT, 1, 2, 1), row(CODE, 1, 4, 1), row(MATH, 2, 8, 3)]


def test_a_full_pack_has_no_room_to_leave_out():
    assert document_counts(labelled([6, 10], {15: 0}, [0, 0])).tolist() == [[1, 6, 0], [1, 10, 1]]


def test_labels_may_grow_between_steps():
    ledger = Ledger([])
    ledger.add([labelled([3], {}, [0])], LABELS[:1])
    ledger.add([labelled([3], {}, [1])], LABELS[:2])
    assert ledger.rows() == [row(CODE, 1, 3, 0), row(MATH, 1, 3, 0)]


documents = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), max_size=4)


@given(st.lists(documents, max_size=6), st.integers(1, 3), st.integers(1, 3), st.integers(0, 6))
def test_ranks_and_a_resume_change_nothing(steps, world_before, world_after, saved_at):
    """Packs dealt to ranks, a checkpoint after `saved_at` of them, then another number of ranks."""
    packs = [
        labelled([size for size, _ in found], {0: 1} if found else {}, [label for _, label in found]) for found in steps
    ]
    before = [Ledger([]) for _ in range(world_before)]
    for number, pack in enumerate(packs[:saved_at]):
        before[number % world_before].add([pack], LABELS)
    saved = json.loads(json.dumps(merge(ledger.rows() for ledger in before)))
    # What the killed run did after the checkpoint.
    before[0].add(packs[saved_at:], LABELS)
    after = [Ledger(saved if rank == 0 else []) for rank in range(world_after)]
    for number, pack in enumerate(packs[saved_at:]):
        after[number % world_after].add([pack], LABELS)
    found = merge(ledger.rows() for ledger in after)
    tokens = Counter()
    for step in steps:
        for size, label in step:
            tokens[LABELS[label]] += size
    assert {
        (r["source_dataset"], r["skill_bucket"], r["ctx_bucket"], r["license"]): r["tokens"] for r in found
    } == tokens
    assert sum(r["documents"] for r in found) == sum(map(len, steps))
    assert sum(r["supervised_tokens"] for r in found) == sum(map(bool, steps))


def test_the_file_is_replaced_whole_with_its_total(tmp_path):
    write(tmp_path / "ledger.json", [row(MATH, 1, 1, 1)])
    write(tmp_path / "ledger.json", [row(CODE, 1, 4, 1), row(MATH, 2, 8, 3)])
    found = json.loads((tmp_path / "ledger.json").read_text())
    assert found["total"] == {"documents": 3, "tokens": 12, "supervised_tokens": 4}
    assert found["rows"][0] == row(CODE, 1, 4, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.json"]
