import hashlib
from contextlib import closing

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.data.streams import opener, small_stream
from training.data.digest import stream_digest


def test_the_digest_is_that_of_ids_positions_and_kinds_in_order(corpus):
    expected = hashlib.sha256()
    with closing(opener(corpus, small_stream())(0, 1)) as stream:
        for step in range(3):
            local = stream.next_step()
            for slot, pack in zip(local.slots, local.packs, strict=True):
                size = int((pack.document >= 0).sum())
                expected.update(np.array([step, slot, size], np.int64).tobytes())
                for values, kind in ((pack.input_ids, "i4"), (pack.position_ids, "i4"), (pack.target_kind, "i1")):
                    expected.update(values[:size].astype(kind).tobytes())
    assert stream_digest(opener(corpus, small_stream()), 1, 3) == expected.hexdigest()


@settings(max_examples=15, deadline=None)
@given(
    world=st.integers(1, 8),
    workers=st.integers(1, 3),
    resume_at=st.one_of(st.none(), st.integers(0, 30)),
    batch=st.integers(1, 9),
    segment_tokens=st.sampled_from([1, 300, 600, 5000]),
    on_exhausted=st.sampled_from(["stop", "repeat", "redistribute"]),
    shares=st.sampled_from([None, {"B1/*": 1.0, "B3/*": 2.0}]),
)
def test_neither_ranks_nor_workers_nor_a_resume_change_the_digest(
    corpus, world, workers, resume_at, batch, segment_tokens, on_exhausted, shares
):
    config = small_stream(
        global_batch_packs=batch, segment_tokens=segment_tokens, on_exhausted=on_exhausted, shares=shares
    )
    steps = 60 // batch
    one = stream_digest(opener(corpus, config), 1, steps)
    assert stream_digest(opener(corpus, config, workers=workers), world, steps, resume_at) == one


def test_another_seed_or_recipe_has_another_digest(corpus):
    digests = [
        stream_digest(opener(corpus, small_stream()), 2, 5),
        stream_digest(opener(corpus, small_stream()), 2, 4),
        stream_digest(opener(corpus, small_stream(), seed=8), 2, 5),
        stream_digest(opener(corpus, small_stream(lanes=4)), 2, 5),
        stream_digest(opener(corpus, small_stream(weights="uniform")), 2, 5),
    ]
    assert len(set(digests)) == 5
