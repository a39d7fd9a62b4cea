"""Numbers and names of cells and clusters, and the live rows of each cell."""

import pyarrow as pa

from etl.schema import CTX_BUCKETS, SKILL_BUCKETS
from etl.stages.dedup.semantic_cells import (
    Cells,
    CountRows,
    cell_of,
    cell_of_cluster,
    cluster_name,
    cluster_numbers,
    name_of,
)
from tests.etl.stages.toybatches import ToyRows, rows_in, rows_of, verdict_column

ALL = [(skill, ctx) for skill in SKILL_BUCKETS for ctx in CTX_BUCKETS]


def cells_of(names, dropped=()):
    skill, ctx = zip(*names, strict=True)
    columns = [pa.array(skill), pa.array(ctx), verdict_column(len(names), dropped)]
    return pa.record_batch(columns, ["skill_bucket", "ctx_bucket", "verdict"])


def test_every_cell_has_a_number_of_its_own_and_its_name_back():
    numbers = cell_of(cells_of(ALL))
    assert sorted(numbers.tolist()) == list(range(len(ALL)))
    assert [name_of(number) for number in numbers.tolist()] == ALL


def test_a_cluster_is_named_by_its_cell_and_the_place_of_its_centroid():
    cells = cell_of(cells_of([(SKILL_BUCKETS[1], "C1"), (SKILL_BUCKETS[0], "C2")]))
    clusters = cluster_numbers(cells, cells * 0 + 17).tolist()
    assert [cell_of_cluster(cluster) for cluster in clusters] == cells.tolist()
    assert [cluster_name(cluster) for cluster in clusters] == [
        f"{SKILL_BUCKETS[1]}-C1-00017",
        f"{SKILL_BUCKETS[0]}-C2-00017",
    ]


def test_live_rows_are_counted_by_row_group():
    one, other = ALL[0], ALL[-1]
    groups = [cells_of([one, other, one, one], dropped=[2]), cells_of([other])]
    chunks = list(CountRows(ToyRows(groups))(0))
    found = [(row["skill_bucket"], row["ctx_bucket"], row["rows"]) for row in rows_of(chunks)]
    assert sorted(found[:2]) == sorted([(*one, 2), (*other, 1)])
    assert found[2:] == [(*other, 1)]
    assert rows_in(chunks) >= 4


def test_the_rows_of_all_cells_add_up():
    assert Cells({3: 5, 8: 2}).total == 7
    assert Cells({}).total == 0
