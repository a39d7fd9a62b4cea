import itertools

import pytest
import torch
from safetensors.torch import load_file, save_file

from etl.errors import ConfigError
from etl.models.causal_lm import SMOLLM2, CausalLM
from tests.training.models.toys import (
    BOUNDS,
    DENSE,
    FAMILIES,
    ROUTED,
    config_of,
    family,
    logits_of,
    losses,
    oracle_logits,
    oracle_of,
    pack,
    student_of,
)
from training.models.causal_lm import build
from training.models.config import ModelConfig
from training.models.factory import build_student, export_model

# The compiler and peft import deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def gradients(student, loss):
    loss.backward()
    return {name: parameter.grad for name, parameter in student.named_parameters()}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pack_gives_the_losses_and_gradients_of_eager_attention_under_full_masks(name):
    student = student_of(name)
    oracle = oracle_of(student)
    ours, theirs = losses(logits_of(student)), losses(oracle_logits(oracle))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    mine, other = gradients(student, ours.sum()), gradients(oracle, theirs.sum())
    assert mine.keys() == {f"network.{name}" for name in other}
    for key, value in other.items():
        assert mine[f"network.{key}"].any(), key
        torch.testing.assert_close(mine[f"network.{key}"], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pack_gives_the_losses_of_its_documents_alone(name):
    student = student_of(name)
    oracle = oracle_of(student)
    ids = pack()[0]
    alone = [oracle(ids[:, a:b], use_cache=False).logits[0] for a, b in itertools.pairwise(BOUNDS) if a < b]
    torch.testing.assert_close(losses(logits_of(student)), losses(torch.cat(alone)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ROUTED)
def test_every_layer_that_routes_gives_its_router_logits_with_gradients(name):
    student = student_of(name)
    _, router_logits = student(*pack())
    assert [logits.shape for logits in router_logits] == [(64, 4), (64, 4)]
    assert student.experts_per_token == 2
    sum(logits.square().sum() for logits in router_logits).backward()
    routers = [p for key, p in student.named_parameters() if key.endswith(("router.weight", "mlp.gate.weight"))]
    assert len(routers) == 2
    assert all(parameter.grad.any() for parameter in routers)


@pytest.mark.parametrize("name", DENSE)
def test_a_dense_student_has_no_router(name):
    student = student_of(name)
    assert student.experts_per_token == 0
    assert student(*pack())[1] == ()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "gemma2", "head_dim": 8}, r"attn_logit_softcapping = 50\.0"),
        ({"model_type": "gemma3_text", "head_dim": 8, "final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"model_type": "granite", "logits_scaling": 8.0}, r"logits_scaling = 8\.0"),
        ({"model_type": "llama", "attention_dropout": 0.1}, r"attention_dropout = 0\.1.*set it to 0"),
        (
            {"model_type": "llama", "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type",
        ),
        ({"model_type": "phi", "attention_dropout": 0.0}, "head of PhiForCausalLM has a bias"),
        ({"model_type": "falcon"}, "FalconForCausalLM does not let its attention be replaced"),
        ({"model_type": "t5"}, "no causal LM of model_type 't5'"),
        ({"model_type": "llamma"}, "llamma"),
        ({"model_type": "llama", "rms_norm_eps": "1e-5"}, r"rms_norm_eps.*1\.0e-5 as a number"),
        ({}, "needs a `model_type`"),
    ],
)
def test_what_cannot_be_packed_is_refused_by_name(keys, message):
    with pytest.raises(ConfigError, match=message):
        build({"config": {**SMALL, **keys}})


SMALL = {
    key: value
    for key, value in family("llama").items()
    if key not in {"model_type", "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id"}
}


def test_parameters_that_say_nothing_or_too_much_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="give either `config`"):
        build({})
    with pytest.raises(ConfigError, match="give either `config`"):
        build({"config": family("llama"), "weights": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"has no config\.json; give the local folder"):
        build({"weights": str(tmp_path)})


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt_oss"])
def test_weights_of_a_folder_are_those_that_were_exported(name, tmp_path):
    student = student_of(name)
    export_model(student, student.state_dict()).save_pretrained(tmp_path)
    factory = "training.models.gpt_oss:build" if name == "gpt_oss" else "training.models.causal_lm:build"
    again = build_student(ModelConfig(factory=factory, params={"weights": str(tmp_path)}), seed=8)
    assert torch.equal(logits_of(again), logits_of(student))
    narrow = build_student(ModelConfig(factory=factory, params={"weights": str(tmp_path), "dtype": "bfloat16"}), seed=8)
    assert narrow.lm_head.weight.dtype == torch.bfloat16
    from_file = ModelConfig(factory="training.models.causal_lm:build", params={"config": str(tmp_path / "config.json")})
    assert build_student(from_file, 1).hf_class is student.hf_class


def test_a_folder_that_lacks_a_weight_is_refused(tmp_path):
    student = student_of("qwen3")
    export_model(student, student.state_dict()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lack 1 tensors of its config\.json.*model\.norm\.weight"):
        build({"weights": str(tmp_path)})


def test_smollm2_packed_gives_its_own_losses():
    lm = CausalLM.load(SMOLLM2)
    texts = ["The lighthouse keeper climbed the stairs every evening.", "Water boils at a hundred degrees.", "Yes."]
    documents = [lm.encode(text) for text in texts]
    bounds = torch.tensor([0, *map(len, documents)]).cumsum(0).tolist()
    ids = torch.tensor([[token for document in documents for token in document]])
    positions = torch.cat([torch.arange(len(document)) for document in documents])[None]
    student = build_student(
        ModelConfig(factory="training.models.causal_lm:build", params={"weights": lm.model.config._name_or_path}), 0
    )
    with torch.no_grad():
        hidden, _ = student(ids, positions, torch.tensor(bounds, dtype=torch.int32))
        ours = hidden @ student.lm_head.weight.T
        theirs = torch.cat([lm.model(torch.tensor([document]), use_cache=False).logits[0] for document in documents])
    for first, last in itertools.pairwise(bounds):
        rows, targets = slice(first, last - 1), ids[0, first + 1 : last]
        difference = ours[rows].log_softmax(1) - theirs[rows].log_softmax(1)
        assert difference.gather(1, targets[:, None]).abs().max() < 5e-5


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_gradient_checkpointing_changes_no_gradient(name):
    plain, checkpointed = student_of(name), student_of(name, gradient_checkpointing=True)
    calls = []
    layer = checkpointed.network.model.layers[0]
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    mine = gradients(checkpointed, total(checkpointed))
    assert len(calls) == 2
    for key, value in gradients(plain, total(plain)).items():
        torch.testing.assert_close(mine[key], value, rtol=1e-5, atol=1e-6)


def total(student, bounds=BOUNDS):
    """A function that needs hidden states and router logits."""
    hidden, router_logits = student(*pack(bounds))
    return losses(hidden @ student.lm_head.weight.T, bounds).sum() + sum(x.square().mean() for x in router_logits)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch.compile looks at every input
@pytest.mark.slow  # half a minute of C++ compilation where the compiler's cache is empty
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_change_no_gradient_and_are_compiled_once(checkpointing):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    plain, compiled = student_of("gpt_oss"), student_of("gpt_oss", compile=True, gradient_checkpointing=checkpointing)
    mine = gradients(compiled, total(compiled))
    for key, value in gradients(plain, total(plain)).items():
        torch.testing.assert_close(mine[key], value, rtol=1e-4, atol=1e-4)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    for bounds in ([0, 30, 64], [0, 10, 20, 30, 64, 64, 64]):
        total(compiled, bounds).backward()
    assert counters["stats"]["unique_graphs"] == graphs


def test_a_cast_leaves_rotary_frequencies_alone():
    student = student_of("llama")
    before = student.network.model.rotary_emb.inv_freq.clone()
    student.bfloat16()
    assert student.lm_head.weight.dtype == torch.bfloat16
    assert student.lm_head.weight is student.network.model.embed_tokens.weight
    assert torch.equal(student.network.model.rotary_emb.inv_freq, before)


def test_bfloat16_losses_are_near_those_of_float32():
    student = student_of("qwen2_window")
    wide = losses(logits_of(student))
    narrow = losses(logits_of(student.bfloat16()).float())
    assert (wide - narrow).abs().mean() < 2e-2


def test_the_initial_state_is_a_function_of_the_seed():
    first, again, other = (build_student(config_of("qwen3"), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_the_embedding_of_the_padding_token_is_trained():
    student = build_student(
        ModelConfig(
            factory="training.models.causal_lm:build", params={"config": {**family("qwen3"), "pad_token_id": 4}}
        ),
        0,
    )
    hidden, _ = student(torch.full((1, 3), 4), torch.arange(3)[None], torch.tensor([0, 3], dtype=torch.int32))
    hidden.sum().backward()
    assert student.network.model.embed_tokens.weight.grad[4].any()
