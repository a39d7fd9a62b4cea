import numpy as np

from tests.training.data.streams import index_of, stream
from training.data.cell_packs import packs_by_cell

CELLS = ("B1/C1", "B2/C1", "B3/C1")


def drawn(index, max_packs=8, seed=0, pack_tokens=10):
    data = stream(pack_tokens=pack_tokens)
    return {
        cell: [pack.tolist() for pack in packs] for cell, packs in packs_by_cell(index, CELLS, data, max_packs, seed)
    }


def test_each_document_that_fits_is_in_one_pack_of_its_own_cell():
    index = index_of([4, 6, 3, 11, 7, 5], cell=[0, 2, 0, 0, 2, 0])
    found = drawn(index)
    documents = {cell: sorted(np.concatenate(packs).tolist()) for cell, packs in found.items()}
    assert documents == {"B1/C1": [0, 2, 5], "B3/C1": [1, 4]}
    assert all(index.num_tokens[pack].sum() <= 10 for packs in found.values() for pack in packs)


def test_a_cell_whose_documents_are_all_too_long_is_left_out():
    assert drawn(index_of([11, 12, 3], cell=[0, 0, 1])) == {"B2/C1": [[2]]}


def test_packs_are_bounded_and_the_first_of_all_of_them():
    index = index_of([10] * 20)
    whole = drawn(index, max_packs=20)["B1/C1"]
    assert drawn(index, max_packs=3) == {"B1/C1": whole[:3]}


def test_the_order_is_a_function_of_the_seed():
    index = index_of([10] * 20)
    orders = [np.concatenate(drawn(index, 20, seed)["B1/C1"]).tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(20))
