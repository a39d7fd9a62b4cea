"""Ranks against sorting bytes."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.clusters import rank_clusters


@given(
    st.lists(
        st.tuples(st.integers(-2, 2), st.binary(min_size=16, max_size=16)),
        max_size=12,
        unique_by=lambda r: r[1],
    )
)
def test_the_smallest_id_of_a_cluster_survives(rows: list[tuple[int, bytes]]) -> None:
    ids = pa.array([b"\xff" * 16] + [i for _, i in rows], pa.binary(16)).slice(1)
    cluster_id, size, rank = rank_clusters(np.array([label for label, _ in rows], np.int64), ids)
    for k, (label, own) in enumerate(rows):
        members = sorted(i for other, i in rows if other == label)
        assert cluster_id[k].as_py() == members[0]
        assert size[k].as_py() == len(members)
        assert rank[k].as_py() == members.index(own)
    assert (cluster_id.type, size.type, rank.type) == (pa.binary(16), pa.int32(), pa.int32())


def test_rows_with_equal_ids_rank_in_row_order() -> None:
    ids = pa.array([b"b" * 16, b"a" * 16, b"a" * 16], pa.binary(16))
    _, _, rank = rank_clusters(np.zeros(3, np.int64), ids)
    assert rank.to_pylist() == [2, 0, 1]
