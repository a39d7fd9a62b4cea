import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface, GptOssConfig, LlamaConfig, LlamaModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssModel

from tests.training.packs import toy_pack
from training.models.config import ModelConfig
from training.models.factory import build_student
from training.record.flops import AttentionShape, ModelShape, mfu, peak_flops, visible_pairs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")

VOCAB = 211
SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


def one_query_at_a_time(module, query, key, value, attention_mask, *, scaling, sliding_window=None, s_aux=None, **_):
    """Causal attention that makes no product under the mask, so that FlopCounterMode counts the visible pairs."""
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    rows = []
    for row in range(query.shape[2]):
        seen = slice(0 if sliding_window is None else max(0, row - sliding_window + 1), row + 1)
        scores = query[:, :, row : row + 1] @ key[:, :, seen].transpose(2, 3) * scaling
        if s_aux is not None:
            scores = torch.cat([scores, s_aux[None, :, None, None]], dim=-1)
        weights = scores.softmax(dim=-1)[..., : row + 1 - seen.start]
        rows.append(weights @ value[:, :, seen])
    return torch.cat(rows, dim=2).transpose(1, 2), None


AttentionInterface.register("one_query_at_a_time", one_query_at_a_time)
AttentionMaskInterface.register("one_query_at_a_time", lambda *_, **__: None)


def llama(**more):
    return LlamaModel(LlamaConfig(vocab_size=VOCAB, num_hidden_layers=3, **SIZES, **more))


def gpt_oss(**more):
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "experts_implementation": "eager"}
    return GptOssModel(
        GptOssConfig(vocab_size=VOCAB, num_hidden_layers=4, sliding_window=8, **SIZES, **experts, **more)
    )


def counted(model, head, documents, num_supervised):
    """FLOPs by torch's count: forward and backward, a document at a time, the head on its last tokens."""
    with FlopCounterMode(display=False) as counter:
        for length, supervised in zip(documents, num_supervised, strict=True):
            ids = torch.randint(VOCAB, (1, length))
            hidden = model(input_ids=ids, use_cache=False).last_hidden_state[0]
            logits = hidden[length - supervised :] @ head.T
            torch.nn.functional.cross_entropy(logits, torch.zeros(supervised, dtype=torch.int64)).backward()
    return counter.get_total_flops()


DOCUMENTS, SUPERVISED = [37, 5, 90], [30, 1, 44]


@pytest.mark.parametrize(("build", "experts_per_token"), [(llama, 0), (gpt_oss, 2)])
def test_flops_equal_torchs_own_count(build, experts_per_token):
    model = build(attn_implementation="one_query_at_a_time")
    head = nn.Parameter(torch.randn(VOCAB, 48))
    found = ModelShape.of_model(model, head, experts_per_token).step_flops(np.array(DOCUMENTS), sum(SUPERVISED))
    assert found == pytest.approx(counted(model, head, DOCUMENTS, SUPERVISED), rel=1e-3)


def test_a_tied_head_counts_once_and_on_supervised_tokens():
    model = llama(attn_implementation="one_query_at_a_time", tie_word_embeddings=True)
    head = model.embed_tokens.weight
    found = ModelShape.of_model(model, head, 0).step_flops(np.array(DOCUMENTS), sum(SUPERVISED))
    assert found == pytest.approx(counted(model, head, DOCUMENTS, SUPERVISED), rel=1e-3)


def test_on_eager_attention_torch_counts_the_square_and_we_the_pairs_under_the_mask():
    model = llama(attn_implementation="eager")
    head = nn.Parameter(torch.randn(VOCAB, 48))
    shape = ModelShape.of_model(model, head, 0)
    square = sum(3 * 2 * layer.width * sum(n * n for n in DOCUMENTS) for layer in shape.attention)
    pairs = sum(3 * layer.pair_flops(np.array(DOCUMENTS)) for layer in shape.attention)
    found = shape.step_flops(np.array(DOCUMENTS), sum(SUPERVISED)) - pairs + square
    assert found == pytest.approx(counted(model, head, DOCUMENTS, SUPERVISED), rel=1e-3)


def test_frozen_weights_have_no_gradient_to_make():
    model = llama(attn_implementation="one_query_at_a_time")
    for layer in model.layers:
        layer.mlp.requires_grad_(False)
    head = nn.Parameter(torch.randn(VOCAB, 48))
    found = ModelShape.of_model(model, head, 0).step_flops(np.array(DOCUMENTS), sum(SUPERVISED))
    assert found == pytest.approx(counted(model, head, DOCUMENTS, SUPERVISED), rel=1e-3)


def test_numbered_experts_count_as_far_as_they_are_active():
    model = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(3, 5) for _ in range(4)])})
    shape = ModelShape.of_model(model, torch.zeros(7, 3, requires_grad=True), 1)
    assert shape == ModelShape(token_flops=6 * 15, head_flops=6 * 21, attention=())


def test_a_model_without_a_configuration_is_six_flops_a_weight_and_token():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    shape = ModelShape.of_model(model, torch.zeros(9, 4, requires_grad=True), 0)
    assert shape.step_flops(np.array([10, 20]), 7) == 6 * (64 * 30 + 36 * 7)


@given(st.lists(st.integers(0, 40), max_size=5), st.one_of(st.none(), st.integers(1, 45)))
def test_visible_pairs_are_the_ones_of_the_mask(lengths, window):
    expected = []
    for length in lengths:
        ahead = np.arange(length)[:, None] - np.arange(length)
        expected.append(int(((ahead >= 0) & (ahead < (window or 99))).sum()))
    assert visible_pairs(np.array(lengths, np.int64), window).tolist() == expected
    layer = AttentionShape(width=6, window=window)
    assert layer.pair_flops(np.array(lengths, np.int64)) == 12 * sum(expected)


def test_layers_and_windows_come_from_the_configuration():
    shape = ModelShape.of_model(gpt_oss(), torch.zeros(1, 1), 2)
    assert shape.attention == (AttentionShape(128, 8), AttentionShape(128, None)) * 2


def test_a_student_of_ours_has_the_shape_of_its_network():
    params = {
        "layers": 4, "hidden": 48, "heads": 4, "kv_heads": 2, "head_dim": 16, "intermediate": 80, "experts": 4,
        "experts_per_token": 2, "vocab": VOCAB, "sliding_window": 8,
    }  # fmt: skip
    student = build_student(ModelConfig(factory="training.models.gpt_oss:build", params=params), seed=0)
    found = ModelShape.of_model(student, student.lm_head.weight, student.experts_per_token)
    assert found == ModelShape.of_model(gpt_oss(), torch.zeros(VOCAB, 48, requires_grad=True), 2)


def test_packs_count_documents_and_no_room():
    shape = ModelShape(token_flops=10, head_flops=1000, attention=(AttentionShape(1),))
    packs = [toy_pack([3, 4], 10, {0: 0, 4: 2}), toy_pack([], 10, {}), toy_pack([10], 10, {1: 3})]
    assert shape.flops_of(packs) == 10 * 17 + 1000 * 3 + 3 * 2 * (6 + 10 + 55)
    assert shape.flops_of([]) == 0


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce GTX 1080", None),
        ("cpu", None),
    ],
)
def test_peaks_by_the_name_of_the_device(name, peak):
    assert peak_flops(name) == peak


def test_mfu_is_the_fraction_of_what_all_devices_could_do():
    assert mfu(flops=8e12, seconds=2.0, world_size=4, peak=2e12) == 0.5
