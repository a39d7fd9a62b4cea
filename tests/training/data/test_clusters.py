"""From a recipe with the stage `semantic` to what the trainer reads."""

from collections import Counter
from contextlib import closing

import numpy as np
import pytest

from etl.hashing import hash_array
from etl.storage.dataset import Dataset
from tests.etl.stages.toys import make_recipe, plain_rows, run, write_jsonl
from tests.training.data.streams import SEED, opener
from training.data.stream.plan import StreamConfig


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """120 rows in ten clusters."""
    folder = tmp_path_factory.mktemp("clusters")
    semantic = {"embedder": "lexical", "dim": 32, "rows_per_cluster": 12, "threshold": None}
    recipe = make_recipe(
        folder / "out", {"toy": write_jsonl(folder / "in.jsonl", plain_rows(120))},
        stages=["tokenize", "semantic", "layout"], semantic=semantic,
    )  # fmt: skip
    run(recipe)
    return str(folder / "out" / "corpus")


def read_documents(corpus, **changes):
    """Hashes of the ids of all documents that a stream gives out before it is over."""
    config = StreamConfig(
        corpus=corpus, pack_tokens=512, global_batch_packs=2, lanes=4, segment_tokens=4096, lookahead_docs=8, **changes
    )
    found = []
    with closing(opener(corpus, config)(0, 1)) as stream:
        while (step := stream.next_step()).lanes_left:
            found += [int(value) for pack in step.packs for value in pack.id_hash]
    return found


def clusters_of(corpus):
    """Hash of the id to (cluster, size, rank) of each training document."""
    found = {}
    for batch in Dataset.open(corpus).read():
        names = ("semantic_cluster_id", "semantic_cluster_size", "semantic_cluster_rank")
        rows = zip(*(batch.column(name).to_pylist() for name in names), strict=True)
        found |= dict(zip(hash_array(batch.column("id"), SEED).tolist(), rows, strict=True))
    return found


def test_an_epoch_has_the_first_ranks_of_each_cluster_and_no_others(corpus):
    place = clusters_of(corpus)
    everything = read_documents(corpus)
    assert len(everything) == len(set(everything)) > 90
    capped = read_documents(corpus, clusters={"cap": 3})
    assert sorted(capped) == sorted(document for document in everything if place[document][2] < 3)
    counts = Counter(place[document][0] for document in capped)
    assert len(counts) >= 8
    assert max(counts.values()) == 3
    assert np.mean([place[document][1] for document in everything]) > 5
