"""The loader benchmark without its peers: everybody is given the same tokens, and ours gives all of them."""

import numpy as np
import pytest

from tests.benchmarks import bench_loader
from tests.benchmarks.bench_loader import (
    Run,
    decode_alone,
    drain,
    read_documents,
    times,
    times_by_clock,
    write_corpus,
)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_loader, "ROW_GROUP_TOKENS", 60_000)
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(0, 200_000, 50_000).astype(np.int32))
    return write_corpus(tmp_path, "corpus", 300_000)


def test_every_token_of_the_corpus_is_counted_once(corpus):
    tokens = corpus.manifest.num_tokens
    assert 100_000 < tokens < 600_000
    assert len(corpus.manifest.parts[0].row_groups) > 1
    assert read_documents(str(corpus.folder)).tokens == tokens
    for cache_gib in (0.0, 1.0):
        found = drain(str(corpus.folder), 0, cache_gib)
        assert found.tokens == tokens
        assert 0.5 < found.full <= 1


def test_times_are_compared_round_by_round():
    base, own = ([Run(tokens, 1.0, 1.0) for tokens in rates] for rates in ([20, 90, 80], [10, 30, 20]))
    assert times(base, own) == 3.0


def test_decoding_alone_reads_every_token_once(corpus):
    assert decode_alone(str(corpus.folder)).tokens == corpus.manifest.num_tokens


def test_times_by_the_clock_are_of_rates():
    base, own = ([Run(tokens, 9.0, 2.0) for tokens in rates] for rates in ([20, 90, 80], [10, 30, 20]))
    assert times_by_clock(base, own) == 3.0
