import pytest
import torch

from etl.errors import ConfigError
from tests.training.models.toys import VOCAB, WINDOW, logits_of, losses, oracle_logits, oracle_of, pack
from training.models.config import ModelConfig
from training.models.factory import build_student

# peft imports deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PARAMS = {
    "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "intermediate": 16, "experts": 4,
    "experts_per_token": 2, "vocab": VOCAB, "sliding_window": WINDOW, "init_std": 0.2,
}  # fmt: skip


def student_of(seed=3, **params):
    config = ModelConfig(factory="training.models.gpt_oss:build", params={**PARAMS, **params})
    return build_student(config, seed)


@pytest.mark.parametrize("tied", [False, True])
def test_a_pack_gives_the_losses_and_gradients_of_eager_attention_under_full_masks(tied):
    student = student_of(tied=tied)
    oracle = oracle_of(student)
    ours, theirs = losses(logits_of(student)), losses(oracle_logits(oracle))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    ours.sum().backward()
    theirs.sum().backward()
    gradients = dict(oracle.named_parameters())
    for name, parameter in student.network.named_parameters():
        assert parameter.grad.any(), name
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-3, atol=1e-4)


def test_layers_alternate_between_the_window_and_the_whole_document():
    assert student_of().hf_config.layer_types == ["sliding_attention", "full_attention"]


def test_each_layer_gives_router_logits():
    student = student_of()
    assert [logits.shape for logits in student(*pack())[1]] == [(64, 4), (64, 4)]
    assert student.experts_per_token == 2


def test_a_tied_head_is_the_embedding():
    tied = student_of(tied=True)
    assert tied.lm_head.weight is tied.network.model.embed_tokens.weight
    assert "network.lm_head.weight" not in dict(tied.named_parameters())


def test_a_wrong_parameter_is_named():
    with pytest.raises(ConfigError, match=r"hidden_size.*did you mean 'hidden'"):
        student_of(hidden_size=3)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"heads": 3, "kv_heads": 2}, "heads is 3, but must be a multiple of kv_heads, 2"),
        ({"experts_per_token": 5}, "experts_per_token is 5, more than the 4 experts"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused(params, message):
    with pytest.raises(ConfigError, match=message):
        student_of(**params)
