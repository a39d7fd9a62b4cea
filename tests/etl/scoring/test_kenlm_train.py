"""Training: probabilities that sum to one, the unknown word, the same bytes for the same lines, limits."""

import json
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import hypothesis
import kenlm
import pyarrow as pa
import pytest
from hypothesis import strategies as st

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


class Oracle:
    """Modified interpolated Kneser-Ney over all n-grams of some lines, by the formulas of Chen and Goodman."""

    def __init__(self, lines, order):
        sentences = [("<s>", *line.split(), "</s>") for line in lines]
        grams = [s[i : i + n] for s in sentences for n in range(1, order + 1) for i in range(len(s) - n + 1)]
        raw = Counter(gram for gram in grams if gram != ("<s>",))
        before = Counter(gram[1:] for gram in raw if len(gram) > 1)
        self.counts = {g: c if len(g) == order or g[0] == "<s>" else before[g] for g, c in raw.items()}
        self.words = {gram[-1] for gram in raw}
        self.discounts = {
            n: self.discount([c for g, c in self.counts.items() if len(g) == n]) for n in range(1, order + 1)
        }

    def discount(self, counts):
        t1, t2, t3, t4 = (counts.count(k) for k in (1, 2, 3, 4))
        if not (t1 and t2 and t3):
            return 0.5, 1, 1.5
        y = t1 / (t1 + 2 * t2)
        found = 1 - 2 * y * t2 / t1, 2 - 3 * y * t3 / t2, 3 - 4 * y * t4 / t3
        return found if min(found) > 0 else (0.5, 1, 1.5)

    def probability(self, history, word):
        lower = self.probability(history[1:], word) if history else 1 / (len(self.words) + 1)
        after = {g: c for g, c in self.counts.items() if g[:-1] == history}
        if not after:
            return lower
        taken = [self.discounts[len(history) + 1][min(c, 3) - 1] for c in after.values()]
        count, total = after.get((*history, word), 0), sum(after.values())
        own = count - self.discounts[len(history) + 1][min(count, 3) - 1] if count else 0
        return own / total + sum(taken) / total * lower


def histories(lines, order):
    """Contexts that occur, of every length, and some that do not."""
    seen = {()}
    for line in lines:
        words = ("<s>", *line.split())
        seen |= {words[i:j] for j in range(1, len(words) + 1) for i in range(max(0, j - order + 1), j)}
    return [*seen, ("~",), ("b", "~")][-40:]


SMALL = st.lists(st.lists(st.sampled_from("abcd."), min_size=1, max_size=7).map(" ".join), min_size=1, max_size=12)


@hypothesis.settings(max_examples=60, derandomize=True, deadline=None)
@hypothesis.example(["a"], 5)
@hypothesis.example(["a a a a a a a"], 3)
@hypothesis.example(["a b c d ."] * 7, 4)
@hypothesis.example(["a b", "b c", "c d", "d ."], 2)
@hypothesis.given(SMALL, st.integers(2, 5))
def test_any_small_corpus_gives_finite_ordered_distributions(lines, order):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        model = load(str(train(lines, order, Path(folder) / "model").path))
    oracle = Oracle(lines, order)
    assert model.order == order
    for history in histories(lines, order):
        found = [probability(model, history, word) for word in [*sorted(oracle.words), "~"]]
        assert sum(found) == pytest.approx(1.0, abs=2e-5), history
        known = history[history.index("~") + 1 :] if "~" in history else history
        assert found == pytest.approx([oracle.probability(known, w) for w in [*sorted(oracle.words), "~"]], rel=1e-4)
    foreign = ["\n".join(" ".join("~" * (line.count(" ") + 1)) for line in lines)]
    seen, unseen = perplexities(model, pa.array(["\n".join(lines), *foreign])).to_pylist()
    assert 1 <= seen < unseen < 1e6


def test_estimated_discounts_are_those_of_the_formula(tmp_path, no_lmplz):
    """A corpus that is large enough: no fallback at any order."""
    lines = prose()
    model, oracle = load(str(train(lines, 3, tmp_path / "model").path)), Oracle(lines, 3)
    assert all(found != (0.5, 1, 1.5) for found in oracle.discounts.values())
    for history in [(), ("<s>",), ("of",), ("of", "the"), ("any", "such"), ("<s>", "the")]:
        for word in ("the", "work", "</s>", "~"):
            assert probability(model, history, word) == pytest.approx(oracle.probability(history, word), rel=1e-4)


def test_rows_that_the_model_was_trained_on_are_less_surprising_than_foreign_ones(tmp_path, no_lmplz, shared_data):
    lines = (shared_data / "field_cases/kenlm_tiny/a.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    rows = pa.table({"id": pa.array([bytes([n] * 16) for n in range(len(texts))], ID), "text": pa.array(texts)})
    model = load(str(train(sample_lines(rows.to_batches(), 0, 1.0), 3, tmp_path / "model").path))
    found = perplexities(model, pa.array([*texts, "Der Hund schläft unter dem alten Tisch."])).to_pylist()
    assert max(found[:-1]) < found[-1] < 1e4


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
