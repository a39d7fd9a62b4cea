"""Losses against a full forward pass, start tokens, digests, refusals; SmolLM2 itself in the slow test."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from etl.errors import ConfigError
from etl.models.causal_lm import SMOLLM2, CausalLM, model_digest
from tests.etl.models.tiny import MAX_LENGTH, save_tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"), bos_token="<s>", eos_token="</s>")


def naive_mean_loss(folder, prefix, answer):
    """Log-softmax over the logits of every position, then the mean over the answer's tokens."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [*prefix, *answer]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double().numpy()
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -np.mean([logp[at - 1, ids[at]] for at in range(len(prefix), len(ids))])


def test_losses_equal_a_full_forward_pass(folder):
    lm = CausalLM.load(folder)
    pairs = [
        ([1], [3, 4, 6]),
        ([1, 5, 9, 9], [7]),
        ([1, *range(3, 20)], [*range(3, 20)] * 1),
        ([2, 8], [4] * (MAX_LENGTH - 2)),
    ]
    got = lm.mean_losses(pairs)
    assert got.dtype == np.float64
    assert got == pytest.approx([naive_mean_loss(folder, *pair) for pair in pairs], abs=1e-5)


def test_a_score_does_not_depend_on_its_neighbours(folder):
    lm = CausalLM.load(folder)
    pairs = [([1, 4], [5, 6]), ([1], [7, 8, 9]), ([1, 3, 3], [2])]
    alone = [CausalLM.load(folder).mean_losses([pair])[0] for pair in pairs]
    assert lm.mean_losses(pairs).tolist() == alone
    assert lm.mean_losses([]).tolist() == []


def test_text_like_a_control_token_stays_text(folder):
    lm = CausalLM.load(folder)
    assert lm.start_id == 1
    assert lm.encode("the cat </s>")[:2] == [3, 4]
    assert not {1, 2} & set(lm.encode("<s> the cat </s>"))
    assert lm.max_length == MAX_LENGTH


def test_eos_starts_a_text_where_there_is_no_bos(tmp_path):
    assert CausalLM.load(save_tiny_llama(tmp_path, eos_token="</s>")).start_id == 2


def test_a_tokenizer_without_both_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="neither a BOS nor an EOS"):
        CausalLM.load(save_tiny_llama(tmp_path))


def test_the_digest_is_that_of_the_content(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert model_digest(str(copy)) == model_digest(folder)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert model_digest(str(copy)) != model_digest(folder)


def test_what_is_no_model_is_refused(folder, tmp_path):
    for uri in ("HuggingFaceTB/SmolLM2-135M", str(tmp_path)):
        with pytest.raises(ConfigError, match="nothing is downloaded"):
            CausalLM.load(uri)
        with pytest.raises(ConfigError, match="nothing is downloaded"):
            model_digest(uri)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="not a causal LM"):
        CausalLM.load(str(broken))


@pytest.mark.slow
def test_smollm2_finds_fluent_text_likelier_than_shuffled():
    lm = CausalLM.load(SMOLLM2)
    text = next(
        part for part in (Path(__file__).parents[3] / "LICENSE").read_text("utf-8").split("\n\n") if len(part) > 500
    )
    words = text.split()
    shuffled = random.Random(0).sample(words, len(words))
    pairs = [([lm.start_id], lm.encode(" ".join(order))) for order in (words, shuffled)]
    fluent, scrambled = lm.mean_losses(pairs)
    assert fluent + 2 < scrambled
    assert len(model_digest(SMOLLM2)) == 64
