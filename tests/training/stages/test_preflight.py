"""Sizes and counts before the first step, of stages that would come late; no model."""

import numpy as np
import pytest

from etl.errors import ConfigError, DataError
from tests.training import corpora
from tests.training.corpora import VOCAB, write_corpus
from tests.training.teacher_tables import rows_of, write_teacher
from tests.training.toy_runs import configuration
from training.stages.preflight import Heads, Preflight


def preflight(corpus, *stages, output="unused"):
    """Of a run whose first stage is plain cross-entropy and whose later ones have one arm each."""
    later = [{"name": f"stage {number}", "tokens": 100, "arms": [arm]} for number, arm in enumerate(stages)]
    config = configuration(corpus, output, stages=[{"name": "first", "tokens": 100}, *later])
    return Preflight(config.streams, config.stages)


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A corpus of ids up to 196: every id of the other one and 100 more."""
    folder = tmp_path_factory.mktemp("larger") / "corpus"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "VOCAB", 197)
        write_corpus(folder)
    return str(folder)


def test_what_fits_is_taken(corpus):
    preflight(corpus, {"objective": {"kind": "kl"}}).check_sizes(Heads(VOCAB, VOCAB), [(str(corpus), "validation")])


@pytest.mark.parametrize("where", ["train", "validation"])
def test_a_later_stages_corpus_and_a_held_out_set_fit_the_student(corpus, larger, where):
    arms, sets = ([{"data": {"corpus": larger}}], []) if where == "train" else ([], [(larger, "validation")])
    for heads, model in ((Heads(VOCAB), "the student has 97"), (Heads(500, VOCAB), "the teacher has 97")):
        with pytest.raises(ConfigError, match=rf"split={where}/.* has the token id 19\d, .* {model}"):
            preflight(corpus, *arms).check_sizes(heads, sets)
    preflight(corpus, *arms).check_sizes(Heads(197, 197), sets)


def test_an_objective_compares_every_id_of_its_corpus(corpus, larger):
    arm = {"objective": {"kind": "kl", "vocab_size": 150}}
    preflight(corpus, arm).check_sizes(Heads(200, 200))
    with pytest.raises(ConfigError, match=r"stage 'stage 0', arm 'main' compares 150 ids .*id 19\d, .* at least 19\d"):
        preflight(corpus, {**arm, "data": {"corpus": larger}}).check_sizes(Heads(200, 200))
    with pytest.raises(ConfigError, match=r"vocab_size is 150, but the student's head has 97 rows"):
        preflight(corpus, arm).check_sizes(Heads(VOCAB, 200))
    with pytest.raises(ConfigError, match="student's head has 97 rows and the teacher's 98"):
        preflight(corpus, {"objective": {"kind": "kl"}}).check_sizes(Heads(VOCAB, VOCAB + 1))


def test_a_teachers_likeliest_tokens_are_the_students(corpus, tmp_path):
    write_teacher(tmp_path, rows_of(corpus), 2, top=lambda place, topk: ([place, 96], [-1.0, -1.5]))
    arm = {"objective": {"kind": "topk_kl"}, "data": {"teacher": str(tmp_path)}}
    preflight(corpus, arm).check_sizes(Heads(VOCAB))
    write_teacher(tmp_path / "beyond", rows_of(corpus), 2, top=lambda place, topk: ([place, 97], [-1.0, -1.5]))
    arm["data"]["teacher"] = str(tmp_path / "beyond")
    with pytest.raises(ConfigError, match=r"'stage 0', arm 'main': part.* has the token id 97 .* head has 97 rows"):
        preflight(corpus, arm).check_sizes(Heads(VOCAB))
    plain = {"objective": {"kind": "weighted_ce"}, "data": arm["data"]}
    preflight(corpus, plain).check_sizes(Heads(VOCAB))


@pytest.mark.parametrize(("kind", "key", "column"), [
    ("weighted_ce", "teacher", "logp"), ("topk_kl", "teacher", "topk_logp"), ("ce", "reference", "logp"),
])  # fmt: skip
def test_a_log_probability_above_0_is_refused(corpus, tmp_path, kind, key, column):
    arm = {"objective": {"kind": kind}, "data": {key: str(tmp_path)}}
    best = 0.25 if column == "topk_logp" else -0.25
    of = {"top": lambda place, topk: ([1, 2], [best, -9.0]), "logp": lambda row, place: -0.25 if best > 0 else 0.25}
    write_teacher(tmp_path, rows_of(corpus)[:9], 2, **of)
    with pytest.raises(
        DataError, match=rf"row group 0 of .* the log-probability 0\.25 in {column}, but none may be above"
    ):
        preflight(corpus, arm).check_sizes(Heads(VOCAB))


def test_rates_are_those_of_each_corpus(corpus, larger):
    """A preference loss has none."""
    rates = preflight(corpus, {"data": {"corpus": larger}}).span_rates()
    assert set(rates) == {("first", "main"), ("stage 0", "main")}
    rows = rows_of(corpus)
    total = sum(row["n_tokens"] for row in rows)
    spans = [span for row in rows for span in row["spans"]]
    expected = [sum(s["end"] - s["start"] for s in spans if s["kind"] == kind) for kind in ("analysis", "final")]
    found = rates["first", "main"].expected(total)
    np.testing.assert_allclose(found, [expected[0], 0, expected[1], 0, len(rows), 0, len(rows), 0], rtol=1e-12)
