"""A local teacher against a full forward pass of the same transformers model with its own eager attention."""

import numpy as np
import pytest
import torch
from transformers import GptOssForCausalLM, LlamaConfig, LlamaForCausalLM

from etl.errors import ConfigError
from tests.training.teachers import save_teacher
from training.teacher.local import LocalTeacher
from training.teacher.teacher import LocalTeacherConfig, Request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher"))


def requests(sizes, seed=0):
    generator = np.random.default_rng(seed)
    out = []
    for size in sizes:
        ids = generator.integers(0, 201_088, size).astype(np.int32)
        chosen = np.sort(generator.choice(np.arange(1, size), max(1, size // 2), replace=False))
        out.append(Request(ids, chosen.astype(np.int64)))
    return out


def expected(folder, request, temperature=1.0):
    """float64 [m, V]: log-softmax of the logits before each scored token."""
    model = GptOssForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(request.input_ids.astype(np.int64))[None]).logits[0, request.positions - 1]
    return torch.log_softmax(logits.double() / temperature, 1).numpy()


def open_teacher(folder, temperature=1.0, topk=0, **more):
    return LocalTeacher(LocalTeacherConfig(model=str(folder), **more), temperature, topk, "cpu")


def test_scores_of_packed_rows_equal_a_full_forward_pass_of_each(folder):
    rows = requests([40, 2, 7, 90])
    for request, scores in zip(rows, open_teacher(folder, chunk_tokens=5).score(rows), strict=True):
        whole = expected(folder, request)
        picked = whole[np.arange(len(whole)), request.input_ids[request.positions]]
        assert scores.logp.dtype == np.float32
        np.testing.assert_allclose(scores.logp, picked, atol=1e-4)
        assert scores.topk_ids.shape == scores.topk_logp.shape == (len(whole), 0)


def test_temperature_and_the_most_likely_tokens(folder):
    rows = requests([30, 12])
    for request, scores in zip(rows, open_teacher(folder, 2.5, 3).score(rows), strict=True):
        whole = expected(folder, request, 2.5)
        picked = whole[np.arange(len(whole)), request.input_ids[request.positions]]
        np.testing.assert_allclose(scores.logp, picked, atol=1e-4)
        best = np.argsort(-whole, axis=1)[:, :3]
        assert scores.topk_ids.tolist() == best.tolist()
        np.testing.assert_allclose(scores.topk_logp, np.take_along_axis(whole, best, 1), atol=1e-4)


def test_no_rows_have_no_scores(folder):
    assert open_teacher(folder).score([]) == []


def test_a_model_whose_head_is_its_embedding(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    ids = np.arange(3, 23).astype(np.int32)
    teacher = open_teacher(tmp_path)
    (scores,) = teacher.score([Request(ids, np.arange(1, 20))])
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].double(), 1).numpy()
    np.testing.assert_allclose(scores.logp, logp[np.arange(19), ids[1:]], atol=1e-5)
    assert teacher.max_tokens == 64


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        open_teacher(tmp_path)
