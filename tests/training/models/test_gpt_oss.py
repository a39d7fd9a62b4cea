import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GptOssForCausalLM

from etl.errors import ConfigError
from etl.schema import SPAN_KINDS
from tests.training.corpora import VOCAB, documents
from training.data.collate import collate
from training.data.documents import Documents
from training.engine import TrainingModule
from training.models import attention
from training.models.factory import ModelConfig, build_student

PARAMS = {
    "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "intermediate": 16, "experts": 4,
    "experts_per_token": 2, "vocab": VOCAB, "sliding_window": 6, "init_std": 0.2,
}  # fmt: skip
CONFIG = ModelConfig(factory="training.models.gpt_oss:build", params=PARAMS)


@pytest.fixture(autouse=True)
def small_query_blocks(monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 7)


def packed(num_documents, pack_tokens=100):
    rows = documents(num_documents, 5, max_tokens=30).to_pylist()
    lengths = np.array([row["n_tokens"] for row in rows], np.int64)
    spans = [span for row in rows for span in row["spans"]]
    ends, span_ends = np.cumsum(lengths), np.arange(1, len(rows) + 1) * 2
    flat = Documents(
        input_ids=np.concatenate([[], *(row["input_ids"] for row in rows)]).astype(np.int32),
        span_kind=np.array([SPAN_KINDS.index(span["kind"]) for span in spans], np.int8),
        span_start=np.array([span["start"] for span in spans], np.int32),
        span_end=np.array([span["end"] for span in spans], np.int32),
        tokens=np.stack([ends - lengths, ends], axis=1),
        spans=np.stack([span_ends - 2, span_ends], axis=1),
        id_hash=np.arange(len(rows), dtype=np.uint64),
        label=np.zeros(len(rows), np.int32),
        pair=np.zeros(len(rows), np.int64),
        side=np.full(len(rows), -1, np.int8),
    )
    return rows, collate(flat, pack_tokens)


def oracle_of(student):
    """transformers' own model, eager attention, one document at a time; also checks the names of the weights."""
    config = copy.deepcopy(student.model.config)  # _from_config writes the attention's name into it
    oracle = GptOssForCausalLM._from_config(config, attn_implementation="eager")
    oracle.load_state_dict(student.state_dict())
    return oracle


def test_packed_losses_and_gradients_equal_those_of_documents_on_their_own():
    rows, pack = packed(4)
    student = build_student(CONFIG, seed=3)
    tensors = pack.tensors(torch.device("cpu"))
    coefficients = torch.tensor([0.3, 0.0, 0.7, 0.0], dtype=torch.float64)
    module = TrainingModule(student, chunk_tokens=5)
    loss, sums, load = module(**vars(tensors), coefficients=coefficients)
    loss.backward()

    oracle = oracle_of(student)
    expected_sums = torch.zeros(4, dtype=torch.float64)
    expected = torch.zeros(())
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        nll = cross_entropy(oracle(ids, use_cache=False).logits[0, :-1], ids[0, 1:], reduction="none")
        for span in row["spans"]:
            kind = SPAN_KINDS.index(span["kind"])
            tokens = nll[span["start"] - 1 : span["end"] - 1]
            expected_sums[kind] += tokens.detach().double().sum()
            expected = expected + float(coefficients[kind]) * tokens.sum()
    expected.backward()
    torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=1e-5)
    theirs = dict(oracle.named_parameters())
    for name, parameter in student.named_parameters():
        assert parameter.grad.any(), name
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-5)
    assert load.sum(dim=1).tolist() == [2 * pack.num_tokens] * 2


def test_per_token_losses_are_the_same_packed_and_alone():
    _, pack = packed(4)
    student = build_student(CONFIG, seed=3)
    oracle = oracle_of(student)
    tensors = pack.tensors(torch.device("cpu"))
    with torch.no_grad():
        hidden, _ = student(tensors.input_ids, tensors.position_ids, tensors.cu_seqlens)
        ours = student.lm_head.weight @ hidden.T
        for first, last in zip(pack.cu_seqlens[:-2], pack.cu_seqlens[1:-1], strict=True):
            theirs = oracle(tensors.input_ids[:, first:last], use_cache=False).logits[0]
            targets = tensors.input_ids[0, first + 1 : last]
            torch.testing.assert_close(
                cross_entropy(ours.T[first : last - 1], targets, reduction="none"),
                cross_entropy(theirs[:-1], targets, reduction="none"),
                rtol=1e-5,
                atol=1e-5,
            )


def test_no_gradient_crosses_documents_or_comes_from_unsupervised_tokens():
    _, pack = packed(3)
    student = build_student(CONFIG, seed=3)
    tensors = pack.tensors(torch.device("cpu"))
    seen = []

    def keep(_module, _inputs, output):
        output.retain_grad()
        seen.append(output)

    student.model.embed_tokens.register_forward_hook(keep)
    # Only the second document's analysis span counts.
    first, last = pack.cu_seqlens[1:3]
    kind = tensors.target_kind.clone()
    kind[:first] = -1
    kind[last:] = -1
    kind[kind != 0] = -1
    values = {**vars(tensors), "target_kind": kind}
    loss, _, _ = TrainingModule(student, 8)(**values, coefficients=torch.ones(4, dtype=torch.float64))
    loss.backward()
    reached = seen[0].grad[0].abs().sum(dim=1).nonzero()[:, 0]
    last_row = int((kind == 0).nonzero()[-1])
    assert reached.tolist() == list(range(int(first), last_row + 1))


def test_an_empty_pack_goes_through_the_same_graph_with_zero_gradients():
    _, pack = packed(0, 20)
    student = build_student(CONFIG, seed=3)
    loss, sums, load = TrainingModule(student, 8)(
        **vars(pack.tensors(torch.device("cpu"))), coefficients=torch.ones(4, dtype=torch.float64)
    )
    loss.backward()
    assert (float(loss.detach()), sums.tolist(), int(load.sum())) == (0.0, [0.0] * 4, 0)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in student.parameters())


def test_the_initial_state_is_a_function_of_the_seed():
    first, again, other = (build_student(CONFIG, seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_wrong_parameter_or_factory_is_named():
    with pytest.raises(ConfigError, match=r"hidden_size.*did you mean 'hidden'"):
        build_student(ModelConfig(factory=CONFIG.factory, params={**PARAMS, "hidden_size": 3}), 0)
    with pytest.raises(ConfigError, match=r"training\.models\.nothing:build"):
        build_student(ModelConfig(factory="training.models.nothing:build", params={}), 0)
