"""IFD by each formula against losses computed here, and which rows are left without a score."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaForCausalLM

from etl.mixture.sampling import in_sample, purpose_seed
from etl.models.causal_lm import model_digest
from etl.pipeline import open_steps
from etl.scoring.ifd import IfdStep, ifd
from tests.etl.models.tiny import MAX_LENGTH, WORDS, save_tiny_llama
from tests.etl.rows import asked, conversations, say, verdicts

COLUMNS = ["loss_cond", "loss_uncond", "n_response_tokens", "ifd"]
ROWS = [
    asked("who saw the cat ?", "a dog saw it ."),
    asked("then the dog ran home", "and slept on the mat .", "it ran"),
    [*asked("who sat ?", "the cat ."), *asked("on a mat ?", "on it !")],
    asked("ran ran ran", "home"),
    asked("a mat : the cat , the dog", "who ? it ."),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"), bos_token="<s>", eos_token="</s>")


def run(folder, batch, **fields):
    return IfdStep(model=folder, **fields).open()(batch)


def naive_losses(folder, row, limit):
    """The two losses from separate, full forward passes with torch's own shifted labels."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    number = {word: n + 3 for n, word in enumerate(WORDS)}
    question = [number[w] for m in row if m["role"] == "user" for w in m["content"].split()]
    answer = [number[w] for m in row if m["role"] == "assistant" for w in m["content"].split()][:limit]
    losses = []
    for prefix in ([1, *question], [1]):
        ids = torch.tensor([[*prefix, *answer]])
        labels = ids.clone()
        labels[0, : len(prefix)] = -100
        with torch.no_grad():
            losses.append(round(float(model(ids, labels=labels).loss), 4))
    return *losses, len(answer)


@pytest.mark.parametrize("limit", [512, 2])
def test_losses_and_cherry_ratio(folder, limit):
    batch = run(folder, conversations(ROWS), max_tokens=limit)
    assert batch.schema.names[-4:] == COLUMNS
    expected = [naive_losses(folder, row, limit) for row in ROWS]
    got = [tuple(row.values()) for row in batch.select(COLUMNS).to_pylist()]
    for (cond, uncond, tokens, ratio), (want_cond, want_uncond, want_tokens) in zip(got, expected, strict=True):
        assert (cond, uncond) == pytest.approx((want_cond, want_uncond), abs=1.1e-4)
        assert tokens == want_tokens
        assert ratio == round(cond / uncond, 4)
    values = [("ifd", "ifd_misaligned", f"{row[3]}") if row[3] > 1 else None for row in got]
    assert verdicts(batch) == values
    assert None in values
    assert any(values)


def test_two_models_score_side_by_side(folder, tmp_path):
    """Each column is what its model gives by itself; the second is not asked about rows that the first dropped."""
    other = save_tiny_llama(tmp_path / "other", bos_token="<s>")
    batch = conversations(ROWS)
    done = open_steps([IfdStep(model=folder), IfdStep(model=other, name="other-lm", formula="reciprocal")])(batch)
    columns = [f"other_lm_{name}" for name in COLUMNS]
    assert done.schema.names == [*batch.schema.names, *COLUMNS, *columns]
    assert done.select(COLUMNS).equals(run(folder, batch).select(COLUMNS))
    dropped = [n for n, verdict in enumerate(verdicts(done)) if verdict]
    alone = run(other, conversations(ROWS, dropped=dropped), formula="reciprocal")
    assert [done.column(name).to_pylist() for name in columns] == [alone.column(name).to_pylist() for name in COLUMNS]
    assert done.column("other_lm_loss_cond").to_pylist() != done.column("loss_cond").to_pylist()


def test_formulas():
    cond, uncond = np.array([1.0, 3.0, np.nan, 0.0]), np.array([2.0, 2.0, 1.0, 0.0])
    assert ifd(cond, uncond, "cherry").tolist()[:2] == [0.5, 1.5]
    assert ifd(cond, uncond, "ppl_ratio").tolist()[:2] == [0.3679, 2.7183]
    assert ifd(cond, uncond, "reciprocal").tolist()[:2] == [2.7183, 0.3679]
    assert np.isnan(ifd(cond, uncond, "cherry")).tolist() == [False, False, True, True]
    assert np.isnan(ifd(cond, uncond, "ppl_ratio")).tolist() == [False, False, True, False]


def test_the_ppl_ratio_drops_the_same_rows_and_the_reciprocal_none(folder):
    dropped = {
        formula: [v is not None for v in verdicts(run(folder, conversations(ROWS), formula=formula))]
        for formula in ("cherry", "ppl_ratio", "reciprocal")
    }
    assert dropped["cherry"] == dropped["ppl_ratio"]
    assert dropped["reciprocal"] == [False] * len(ROWS)


def test_rows_that_cannot_be_scored_have_nulls_and_stay(folder):
    long = "the " * MAX_LENGTH
    rows = [
        asked("", "a cat ."),
        asked("who ?", " \n"),
        [say("user", "who ?")],
        asked(long, "it"),
        asked("who ?", "it"),
    ]
    batch = run(folder, conversations([*rows, *rows], dropped=range(5, 10)), formula="reciprocal")
    for name in COLUMNS:
        assert batch.column(name).is_null().to_pylist() == [True, True, True, True, False, *[True] * 5]
    assert verdicts(batch)[:5] == [None] * 5


def test_an_answer_that_is_too_long_is_cut_to_fit_only_by_max_tokens(folder):
    rows = conversations([asked("who ?", "cat " * 3 * MAX_LENGTH)])
    assert run(folder, rows).column("loss_cond").null_count == 1
    assert run(folder, rows, max_tokens=10).column("n_response_tokens").to_pylist() == [10]


def test_only_the_sampled_rows_are_scored(folder):
    batch = conversations([asked("who ?", "it .")] * 40)
    scored = run(folder, batch, fraction=0.3, seed=1, formula="reciprocal").column("ifd").is_valid()
    assert scored.equals(in_sample(batch.column("id"), purpose_seed("ifd", 1), 0.3))
    assert 0 < scored.true_count < 40


def test_slices_and_empty_batches_give_the_same_scores(folder):
    batch = conversations(ROWS)
    whole = run(folder, batch)
    parts = [run(folder, part) for part in (batch.slice(0, 2), batch.slice(2, 0), batch.slice(2))]
    assert pa.Table.from_batches(parts).combine_chunks().equals(pa.table(whole))


def test_identity_names_the_content_and_not_the_place(folder):
    step = IfdStep(model=folder)
    assert step.artefacts() == {"ifd_model": model_digest(folder)}
    assert "model" not in step.identity()
    assert pickle.loads(pickle.dumps(step)) == step
    assert step.slow
