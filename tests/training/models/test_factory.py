import shutil

import pytest
import torch
from torch import nn

from etl import conf
from etl.errors import ConfigError
from tests.training.models.toys import VOCAB, logits_of, pack, student_of
from training.models.config import ModelConfig, student_factory
from training.models.factory import build_student, export_model, export_names, export_state

# peft imports deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Averager(nn.Module):
    """A user's student without transformers: each token sees the mean of its document so far."""

    head_weight = "output.weight"

    def __init__(self, hidden):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, VOCAB, bias=False)

    def seen(self, cu_seqlens):
        """bool [T, T]: which tokens a token averages over."""
        tokens = torch.arange(int(cu_seqlens[-1]), dtype=torch.int32)
        document = torch.searchsorted(cu_seqlens, tokens, right=True)
        return (document[:, None] == document) & (tokens[:, None] >= tokens)

    def forward(self, input_ids, position_ids, cu_seqlens):
        embedded = self.embed(input_ids)[0]
        shares = self.seen(cu_seqlens) / (position_ids[0, :, None] + 1)
        return torch.tanh(self.mix(shares.to(embedded.dtype) @ embedded)), ()


@student_factory
def build(params):
    return Averager(**params)


@student_factory
def build_without_head(params):
    network = Averager(**params)
    network.head_weight = "output.bias"
    return network


@student_factory
def build_nothing(params):
    return None


def config_of(function="build", **more):
    return ModelConfig(factory=f"{__name__}:{function}", params={"hidden": 8}, **more)


def test_a_users_module_is_wrapped_with_a_head_that_shares_its_weight():
    student = build_student(config_of(), 1)
    hidden, router_logits = student(*pack())
    assert (hidden.shape, router_logits) == ((64, 8), ())
    assert student.lm_head.weight is student.network.output.weight
    assert [name for name, _ in student.named_parameters()] == [
        "network.embed.weight", "network.mix.weight", "network.mix.bias", "network.output.weight",
    ]  # fmt: skip
    assert (student.experts_per_token, student.hf_class, student.hf_config) == (0, None, None)


def test_a_users_weights_are_exported_under_their_own_names():
    student = build_student(config_of(), 1)
    state = export_state(student, student.state_dict())
    assert set(state) == set(Averager(8).state_dict())
    assert torch.equal(state["mix.bias"], student.network.mix.bias)
    with pytest.raises(ConfigError, match="only a student of a built-in factory"):
        export_model(student, student.state_dict())


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe", "gpt_oss"])
def test_names_of_a_built_in_factory_are_those_of_the_transformers_class(name):
    student = student_of(name)
    model = export_model(student, student.state_dict())
    names = {key for key in model.state_dict() if key != "lm_head.weight" or not student.hf_config.tie_word_embeddings}
    assert set(export_names(student).values()) == names
    assert list(export_names(student)) == ["network." + key for key in student.network.state_dict()]
    assert type(model) is student.hf_class


def test_what_is_not_a_factory_or_not_a_student_is_named():
    with pytest.raises(ConfigError, match=r"'training\.models\.nothing:build' cannot be imported"):
        build_student(ModelConfig(factory="training.models.nothing:build", params={}), 0)
    with pytest.raises(ConfigError, match="returned NoneType, not a torch Module"):
        build_student(config_of("build_nothing"), 0)
    with pytest.raises(ConfigError, match=r"Averager\.head_weight is 'output\.bias'.*one of: embed\.weight"):
        build_student(config_of("build_without_head"), 0)


def test_checkpointing_of_a_module_that_has_none_is_refused():
    with pytest.raises(ConfigError, match="has no method gradient_checkpointing_enable"):
        build_student(config_of(gradient_checkpointing=True), 0)


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler \(/nonexistent/c\+\+\); install g\+\+"):
        student_of("llama", compile=True)
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler \(g\+\+ or clang\+\+\)"):
        student_of("llama", compile=True)


def test_a_users_module_gives_logits_over_the_vocabulary():
    assert logits_of(build_student(config_of(), 1)).shape == (64, VOCAB)


def test_a_function_that_is_no_factory_is_not_called(tmp_path):
    started = {"()": "subprocess.Popen", "args": ["touch", str(tmp_path / "ran")]}
    gadget = {"factory": "logging.config:dictConfig", "params": {"version": 1, "formatters": {"x": started}}}
    with pytest.raises(ConfigError, match="decorate the function with @student_factory"):
        build_student(ModelConfig.model_validate(gadget), seed=0)
    assert not (tmp_path / "ran").exists()


def test_a_factory_of_a_configuration_that_is_not_trusted_is_not_imported():
    section = {"factory": "acme_absent:build", "params": {}}
    with pytest.raises(ConfigError, match="add --allow-code"):
        conf.check(ModelConfig, section, "far.yaml", allow_code=False)
    ours = {**section, "factory": "training.models.gpt_oss:build"}
    assert conf.check(ModelConfig, ours, "far.yaml", allow_code=False).factory == ours["factory"]
