import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from etl.conf import check
from etl.errors import ConfigError
from training.engine.optimizer import (
    Constant,
    Cosine,
    OptimizerConfig,
    Wsd,
    forget,
    is_decayed,
    parameter_groups,
    squared_update_and_weight,
)
from training.models.config import ModelConfig
from training.models.factory import build_student


def config(**more):
    return check(OptimizerConfig, {"lr": 2.0, **more}, "optimizer")


def test_only_adamw_and_the_other_is_named():
    with pytest.raises(ConfigError, match=r"'lion' is not supported.*set kind to adamw"):
        config(kind="lion")
    assert config(kind="adamw").kind == "adamw"


def test_two_lengths_of_the_warmup_are_refused():
    with pytest.raises(ConfigError, match=r"warmup_tokens = 5 and warmup_fraction = 0\.5"):
        config(schedule={"kind": "constant", "warmup_tokens": 5, "warmup_fraction": 0.5})


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ConfigError, match=r"there is no kind 'step'; .* known: constant, cosine, wsd"):
        config(schedule={"kind": "step"})


def test_the_warmup_is_linear_in_tokens_and_never_zero():
    rate = config(schedule={"kind": "constant", "warmup_tokens": 400}).learning_rate
    assert [rate(tokens, 1000) for tokens in (1, 100, 200, 400, 999)] == [0.005, 0.5, 1.0, 2.0, 2.0]
    fraction = config(schedule={"kind": "constant", "warmup_fraction": 0.4}).learning_rate
    assert [fraction(tokens, 1000) for tokens in (100, 400)] == [0.5, 2.0]


def test_only_the_first_stage_warms_up_where_that_is_said():
    warm = {"kind": "constant", "warmup_fraction": 0.5}
    anew, once = config(schedule=warm), config(schedule={**warm, "warmup": "first_stage"})
    for settings, is_first, rate in ((anew, True, 1.0), (anew, False, 1.0), (once, True, 1.0), (once, False, 2.0)):
        assert settings.in_stage(is_first).learning_rate(250, 1000) == rate


def test_cosine_falls_to_its_fraction_at_the_last_token():
    schedule = Cosine(warmup_tokens=100, final_fraction=0.1)
    assert schedule.factor(100, 1100) == 1.0
    assert schedule.factor(600, 1100) == pytest.approx(0.55)
    assert schedule.factor(350, 1100) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert schedule.factor(1100, 1100) == schedule.factor(5000, 1100) == pytest.approx(0.1)


def test_wsd_is_flat_then_decays_over_the_last_part():
    linear = Wsd(warmup_tokens=100, decay_fraction=0.2, decay="linear", final_fraction=0.1)
    assert [linear.factor(tokens, 1000) for tokens in (50, 100, 800)] == [0.5, 1.0, 1.0]
    assert linear.factor(900, 1000) == pytest.approx(0.55)
    assert linear.factor(1000, 1000) == pytest.approx(0.1)
    root = Wsd(decay_fraction=0.2)
    assert root.factor(850, 1000) == pytest.approx(0.5)
    assert root.factor(1000, 1000) == pytest.approx(0.0)
    assert Wsd(decay_fraction=0.0).factor(1000, 1000) == 1.0


def test_a_warmup_longer_than_the_stable_part_shortens_the_decay():
    schedule = Wsd(warmup_tokens=900, decay_fraction=0.5, decay="linear")
    assert schedule.factor(900, 1000) == 1.0
    assert schedule.factor(950, 1000) == pytest.approx(0.5)


SCHEDULES = st.one_of(
    st.builds(Constant, warmup_tokens=st.integers(0, 2000)),
    st.builds(Cosine, warmup_fraction=st.floats(0, 1), final_fraction=st.floats(0, 1)),
    st.builds(
        Wsd,
        warmup_tokens=st.integers(0, 2000),
        decay_fraction=st.floats(0, 1),
        decay=st.sampled_from(["linear", "one_minus_sqrt"]),
        final_fraction=st.floats(0, 1),
    ),
)


@given(SCHEDULES, st.integers(1, 1000), st.lists(st.integers(1, 3000), min_size=2, max_size=8))
def test_every_schedule_rises_to_its_peak_once_and_then_never_rises(schedule, total, tokens):
    factors = [schedule.factor(token, total) for token in sorted(tokens)]
    assert all(0 <= factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert all(later <= earlier + 1e-12 for earlier, later in zip(factors[peak:], factors[peak + 1 :], strict=False))


PARAMS = {
    "layers": 1, "hidden": 8, "heads": 2, "kv_heads": 1, "head_dim": 4, "intermediate": 4, "experts": 2,
    "experts_per_token": 1, "vocab": 11,
}  # fmt: skip


def test_norms_biases_sinks_and_routers_have_no_weight_decay():
    student = build_student(ModelConfig(factory="training.models.gpt_oss:build", params=PARAMS), 0)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    groups = parameter_groups(student, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    decayed, plain = (
        {names[id(parameter)].rpartition("layers.0.")[2].rpartition("model.")[2] for parameter in group["params"]}
        for group in groups
    )
    assert {name.removeprefix("network.") for name in decayed} == {
        "embed_tokens.weight", "lm_head.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight",
        "self_attn.v_proj.weight", "self_attn.o_proj.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj",
    }  # fmt: skip
    assert {"self_attn.sinks", "mlp.router.weight", "mlp.experts.gate_up_proj_bias", "norm.weight"} < plain
    assert len(decayed) + len(plain) == len(names)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("layers.0.mlp.gate.weight", (4, 8), False),
        ("layers.0.mlp.gate_proj.weight", (4, 8), True),
        ("ln_f.weight", (8,), False),
        ("experts.down_proj_bias", (4, 8), False),
        ("lora_a.weight", (2, 8), True),
    ],
)
def test_weight_decay_by_name_and_shape(name, shape, expected):
    assert is_decayed(name, torch.zeros(shape)) is expected


def test_frozen_parameters_are_in_no_group():
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(layer, 0.1)] == [0, 1]


@given(st.integers(1, 5), st.floats(1e-4, 0.1), st.floats(0, 0.5))
def test_the_update_is_worked_out_from_the_state_that_the_step_left(num_steps, lr, weight_decay):
    generator = torch.Generator().manual_seed(num_steps)
    weight = torch.randn(7, 5, generator=generator).requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=lr, weight_decay=weight_decay, betas=(0.9, 0.95))
    for _ in range(num_steps):
        weight.grad = torch.randn(7, 5, generator=generator)
        before = weight.detach().clone()
        optimizer.step()
    update, norm = squared_update_and_weight(weight, optimizer.state[weight], optimizer.param_groups[0]).tolist()
    assert update == pytest.approx(float((weight.detach() - before).double().square().sum()), rel=1e-3)
    assert norm == pytest.approx(float(weight.detach().double().square().sum()), rel=1e-6)


def test_a_forgetful_optimizer_steps_as_a_new_one():
    weights = [torch.ones(3).requires_grad_() for _ in range(2)]
    old, new = (torch.optim.AdamW([weight], lr=0.1, fused=True) for weight in weights)
    weights[0].grad = torch.tensor([1.0, -2.0, 3.0])
    old.step()
    with torch.no_grad():
        weights[0].fill_(1.0)
    forget(old)
    for weight, optimizer in zip(weights, (old, new), strict=True):
        weight.grad = torch.tensor([0.5, 0.25, -1.0])
        optimizer.step()
    assert torch.equal(*weights)
