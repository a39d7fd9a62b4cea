"""Packs of single cells (skill x context bucket), drawn once, on which held-out loss is measured."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from etl.arrays import I64
from training.data.stream.packing import once, pack
from training.data.stream.plan import DocumentIndex, StreamConfig, left_out, uniform


def packs_by_cell(
    index: DocumentIndex, cells: Sequence[str], data: StreamConfig, max_packs: int, seed: int
) -> Iterator[tuple[str, list[I64]]]:
    """Of each cell, in the order of `cells`, at most `max_packs` packs, each the numbers of its documents.

    The documents come in an order drawn by the seed; a cell without one that fits in a pack is left out.
    """
    out, _ = left_out(index, index.num_tokens, data.pack_tokens)
    for code in np.unique(index.cell):
        usable = np.flatnonzero((index.cell == code) & ~out)
        order = np.argsort(uniform(index.id_hash[usable], seed, 0, 0), kind="stable")
        packs = pack(iter([once(usable[order])]), index.num_tokens, data.pack_tokens, data.lookahead_docs)
        chosen = list(islice(packs, max_packs))
        if chosen:
            yield cells[int(code)], chosen
