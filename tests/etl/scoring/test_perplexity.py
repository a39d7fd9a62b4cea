"""Perplexity per row against the formula written out with KenLM's own scores."""

import pickle
from pathlib import Path

import kenlm
import numpy as np
import pyarrow as pa
import pytest

from etl.digests import file_sha256
from etl.errors import ConfigError
from etl.mixture.sampling import in_sample, purpose_seed
from etl.scoring.kenlm_train import train
from etl.scoring.perplexity import PerplexityStep
from etl.step import Offer
from tests.etl.rows import asked, conversations, verdicts


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    lines = ["the cat sat on the mat .", "the dog sat on the cat .", "who saw the 0 cats ?"]
    return str(train(lines, 3, tmp_path_factory.mktemp("kenlm") / "model").path)


def test_lines_are_scored_one_by_one_and_their_lengths_added(model_path):
    batch = PerplexityStep(model=model_path).open()(conversations([asked("Who saw\nthe 9 cats?", "The DOG.\n\n")]))
    config = kenlm.Config()
    config.show_progress = False
    model = kenlm.Model(model_path, config)
    lines = ["who saw", "the 0 cats ?", "the dog ."]
    score = sum(model.score(line) for line in lines)
    expected = 10 ** (-score / sum(len(line.split()) + 1 for line in lines))
    assert batch.column("perplexity").to_pylist() == [pytest.approx(expected, abs=6e-5)]
    assert batch.column("perplexity")[0].as_py() == round(batch.column("perplexity")[0].as_py(), 4)
    assert verdicts(batch) == [None]


def test_which_messages_are_scored(model_path):
    row = asked("the cat sat on the mat .", "zzz", "the dog sat on the cat .")
    scored = {}
    for text, alike in [
        ("instruction", asked(row[0]["content"], "")),
        ("response", asked("", "zzz", row[1]["content"])),
    ]:
        one = PerplexityStep(model=model_path, text=text).open()(conversations([row])).column("perplexity")
        other = PerplexityStep(model=model_path).open()(conversations([alike])).column("perplexity")
        assert one.equals(other)
        scored[text] = one[0].as_py()
    assert scored["instruction"] < scored["response"]


def test_nulls_and_the_sample_flag(model_path):
    rows = conversations([asked("the cat", "sat"), asked("", " \n "), asked("a", "b")] * 100, dropped=[0])
    batch = PerplexityStep(model=model_path, sample_fraction=0.5, sample_seed=3).open()(rows)
    assert batch.column("perplexity").to_pylist()[:2] == [None, None]
    assert batch.column("perplexity").null_count == 101
    expected = in_sample(rows.column("id"), purpose_seed("kenlm", 3), 0.5)
    assert batch.column("in_kenlm_sample").equals(expected)
    assert 0 < np.mean(expected.to_numpy(zero_copy_only=False)) < 1


def test_an_empty_batch(model_path):
    batch = PerplexityStep(model=model_path).open()(conversations([]))
    assert batch.schema.field("perplexity").type == pa.float64()


def test_digest_and_identity(model_path, tmp_path):
    digest = file_sha256(model_path)
    step = PerplexityStep(model=model_path, sha256=digest)
    assert step.artefacts() == {"kenlm": digest}
    moved = tmp_path / "elsewhere"
    moved.write_bytes(Path(model_path).read_bytes())
    assert PerplexityStep(model=str(moved)).identity() == step.identity()
    assert pickle.loads(pickle.dumps(step)) == step


def test_a_wrong_digest_or_file_is_refused(model_path, tmp_path):
    with pytest.raises(ConfigError, match="sha256"):
        PerplexityStep(model=model_path, sha256="0" * 64).open()
    (tmp_path / "text").write_text("not a model")
    with pytest.raises(ConfigError, match="not a model that KenLM reads"):
        PerplexityStep(model=str(tmp_path / "text")).open()


def test_a_model_of_the_same_run_is_asked_for_and_given(model_path):
    asked_for = PerplexityStep(model="run:late-kenlm", name="late", text="response")
    assert asked_for.asks() == ("late-kenlm",)
    offer = Offer(model_path, file_sha256(Path(model_path)), 0.25, 7)
    given = asked_for.given({"kenlm": Offer("other", "", 0.5, 1), "late-kenlm": offer})
    assert given == PerplexityStep(
        model=model_path, sha256=offer.sha256, name="late", text="response", sample_fraction=0.25, sample_seed=7
    )
    assert given.asks() == ()
    assert given.given({}) == given
