"""Training: probabilities that sum to one, the unknown word, the same bytes for the same lines, limits."""

import random
import shutil
from pathlib import Path

import kenlm
import pyarrow as pa
import pytest

from etl.errors import ConfigError
from etl.schema import ID
from etl.scoring.kenlm_train import TrainedModel, backend, sample_lines, train
from etl.scoring.perplexity import in_kenlm_sample, load, perplexities

CORPUS = ["the cat sat on the mat .", "the dog sat on the cat .", "a dog saw the cat", "the cat saw a dog ."] * 2
VOCABULARY = sorted({word for line in CORPUS for word in line.split()})

needs_lmplz = pytest.mark.skipif(shutil.which("lmplz") is None, reason="lmplz is not built (make kenlm-tools)")


@pytest.fixture
def no_lmplz(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


def prose():
    """Sentences from this repository's own licence text, as lines."""
    text = (Path(__file__).parents[3] / "LICENSE").read_text("utf-8")
    table = pa.table({"id": pa.array([bytes(16)], ID), "text": pa.array([text])})
    return list(sample_lines(table.to_batches(), 0, 1.0))


def probability(model, history, word):
    state, after = kenlm.State(), kenlm.State()
    if history and history[0] == "<s>":
        model.BeginSentenceWrite(state)
    else:
        model.NullContextWrite(state)
    for known in history:
        if known != "<s>":
            model.BaseScore(state, known, after)
            state, after = after, state
    return 10 ** model.BaseScore(state, word, after)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_kaldingram_gives_distributions(tmp_path, no_lmplz, order):
    trained = train(CORPUS, order, tmp_path / "model.arpa")
    assert trained == TrainedModel(
        tmp_path / "model.arpa", trained.sha256, sum(len(x.split()) for x in CORPUS), "kaldingram"
    )
    model = load(str(trained.path))
    assert model.order == order
    for history in [(), ("<s>",), ("the",), ("the", "cat"), ("sat", "on", "the"), ("mat", "dog"), ("unheard", "of")]:
        # "~" is in no line: it stands for <unk>.
        total = sum(probability(model, history, word) for word in [*VOCABULARY, "</s>", "~"])
        assert total == pytest.approx(1.0, abs=2e-5), history


def test_the_unknown_word_has_the_documented_share(tmp_path, no_lmplz):
    trained = train(CORPUS, 2, tmp_path / "model.arpa")
    bigrams = {pair for line in CORPUS for pair in zip(("<s> " + line).split(), (line + " </s>").split(), strict=True)}
    counts = [sum(after == word for _, after in bigrams) for word in [*VOCABULARY, "</s>"]]
    discount = counts.count(1) / (counts.count(1) + 2 * counts.count(2))
    expected = discount * len(counts) / sum(counts) / (len(counts) + 1)
    assert probability(load(str(trained.path)), (), "~") == pytest.approx(expected, rel=1e-5)


def test_fluent_text_is_less_surprising_than_shuffled(tmp_path, no_lmplz):
    lines = prose()
    model = load(str(train(lines[:-20], 3, tmp_path / "model.arpa").path))
    held_out = [line for line in lines[-20:] if line.count(" ") > 5]
    shuffled = [" ".join(random.Random(1).sample(line.split(), line.count(" ") + 1)) for line in held_out]
    fluent, scrambled = perplexities(model, pa.array(["\n".join(held_out), "\n".join(shuffled)])).to_pylist()
    assert fluent < scrambled


def test_two_runs_write_the_same_bytes(tmp_path, no_lmplz):
    one, other = (train(iter(prose()), 3, tmp_path / name) for name in ("one", "other"))
    assert one.path.read_bytes() == other.path.read_bytes()
    assert one.sha256 == other.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]


def test_a_corpus_above_the_limit_is_refused(tmp_path, no_lmplz):
    with pytest.raises(ConfigError, match="make kenlm-tools"):
        train(CORPUS, 3, tmp_path / "model", max_words=20)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("lines", "order", "says"), [([], 3, "no words"), (CORPUS, 1, "2 to 5"), (CORPUS, 6, "2 to 5")]
)
def test_what_cannot_be_trained_is_refused(tmp_path, no_lmplz, lines, order, says):
    with pytest.raises(ConfigError, match=says):
        train(lines, order, tmp_path / "model")


def test_a_broken_lmplz_is_reported(tmp_path, monkeypatch):
    for name in ("lmplz", "build_binary"):
        (tmp_path / name).write_text("#!/bin/sh\necho no room for that >&2\nexit 3\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert backend() == "lmplz"
    with pytest.raises(ConfigError, match=r"lmplz ended with exit code 3: no room for that"):
        train(CORPUS, 3, tmp_path / "model")


@needs_lmplz
def test_lmplz_writes_the_same_bytes_and_ranks_like_kaldingram(tmp_path, monkeypatch):
    lines = prose()
    one, other = (train(lines, 3, tmp_path / name, max_words=1) for name in ("one", "other"))
    assert one.backend == "lmplz"
    assert one.path.read_bytes() == other.path.read_bytes()
    monkeypatch.setenv("PATH", "")
    slow = train(lines, 3, tmp_path / "slow")
    texts = pa.array([lines[40], " ".join(reversed(lines[40].split()))])
    for trained in (one, slow):
        forwards, backwards = perplexities(load(str(trained.path)), texts).to_pylist()
        assert forwards < backwards


def rows(numbers):
    ids = pa.array([n.to_bytes(16, "big") for n in numbers], ID)
    return pa.record_batch([ids, pa.array([f"row {n // 100}\nend" for n in numbers], pa.string())], ["id", "text"])


def test_sampled_lines_do_not_depend_on_the_order_of_batches():
    numbers = list(range(0, 30_000, 100))
    mixed = random.Random(0).sample(numbers, len(numbers))
    expected = list(sample_lines([rows(numbers)], 5, 0.5))
    assert list(sample_lines([rows(mixed[:70]), rows([]), rows(mixed[70:])], 5, 0.5)) == expected
    taken = in_kenlm_sample(rows(numbers).column("id"), 5, 0.5).to_pylist()
    assert len(expected) == 2 * sum(taken)


def test_rows_of_one_id_count_once():
    assert list(sample_lines([rows([7, 7]), rows([7])], 0, 1.0)) == ["row 0", "end"]


def test_no_rows_give_no_lines():
    assert list(sample_lines([], 0, 1.0)) == []
    assert list(sample_lines([rows([])], 0, 1.0)) == []
