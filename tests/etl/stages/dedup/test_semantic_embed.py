"""Counts of terms over splits and buckets, and lexical embeddings of live rows."""

import numpy as np
import pyarrow as pa

from etl.dedup.lexical import NUM_SLOTS, count_terms, embed, rarity
from etl.dedup.semantic import SemanticDedup
from etl.dedup.vectors import from_binary
from etl.stages.dedup.semantic_embed import TERM, EmbedLexical, EmitTerms, add_terms
from etl.storage.location import Location
from tests.etl.rows import asked, conversations
from tests.etl.stages.toybatches import ToyRows, rows_in
from tests.etl.storage.builds import commit

CONFIG = SemanticDedup(embedder="lexical", dim=16)
PROMPTS = ["where is the old garden", "the old river", "a dropped prompt about nothing", "where is the garden"]


def split_of(prompts, dropped=()):
    return [conversations([asked(prompt, "yes") for prompt in prompts], dropped)]


def expected_counts(prompts):
    counts = np.zeros(NUM_SLOTS, np.int64)
    count_terms(pa.array(prompts), counts)
    return counts


def summed(rows):
    """Slot to rows, over all splits, as the shuffle by bucket adds them up; and the chunks."""
    table = pa.Table.from_batches([batch for split in rows.splits for batch in EmitTerms(rows, CONFIG)(split)])
    chunks = []
    for bucket in sorted(set(table["bucket"].to_pylist())):
        mine = table.filter(pa.array(table["bucket"].to_numpy() == bucket))
        chunks += add_terms(bucket, iter(mine.to_batches(max_chunksize=1)))
    return chunks


def test_the_slots_of_all_splits_are_added_up_without_empty_ones():
    rows = ToyRows(split_of(PROMPTS[:3], dropped=[2]), split_of(PROMPTS[3:]))
    chunks = summed(rows)
    expected = expected_counts([PROMPTS[0], PROMPTS[1], PROMPTS[3]])
    found = np.zeros(NUM_SLOTS, np.int64)
    for chunk in chunks:
        assert chunk.batch.schema == TERM
        assert min(chunk.batch.column("rows").to_pylist(), default=1) > 0
        found[chunk.batch.column("slot").to_numpy()] = chunk.batch.column("rows").to_numpy()
    assert np.array_equal(found, expected)
    assert rows_in(chunks) == 2 * 8


def test_live_rows_are_embedded_at_their_places(tmp_path):
    rows = ToyRows(split_of(PROMPTS, dropped=[2]))
    terms = commit(Location.of(str(tmp_path / "terms")), TERM, [[chunk.batch for chunk in summed(rows)]], "terms").ref
    (chunk,) = EmbedLexical(rows, terms, 3, CONFIG)(0)
    live = [0, 1, 3]
    expected = embed(
        pa.array([PROMPTS[row] for row in live]), rarity(expected_counts([PROMPTS[row] for row in live]), 3), 16, 0
    )
    column = chunk.batch.column("embedding_int8")
    assert column.is_null().to_pylist() == [False, False, True, False]
    assert np.array_equal(from_binary(column.drop_null()), expected)
    assert chunk.batch.column("verdict").is_valid().to_pylist() == [False, False, True, False]
    assert chunk.rows_in == 4
