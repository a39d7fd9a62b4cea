import pytest
import torch
from transformers.models.gpt_oss.modeling_gpt_oss import load_balancing_loss_func

from training.losses.router import RouterConfig, router_loss

ONE = RouterConfig(aux_coefficient=1.0)


def logits_to(expert, num_tokens=8, num_experts=4):
    """A layer that sends every token to one expert."""
    logits = torch.zeros(num_tokens, num_experts, dtype=torch.float64)
    logits[:, expert] = 20.0
    return logits


def everywhere(num_tokens=8):
    return torch.ones(num_tokens, dtype=torch.bool)


def test_layers_that_each_collapse_to_another_expert_are_not_balanced():
    collapsed = [logits_to(expert) for expert in range(4)]
    pooled = load_balancing_loss_func(tuple(collapsed), num_experts=4, top_k=1)
    assert float(pooled) == pytest.approx(1.0, abs=1e-6)
    loss, sums = router_loss(collapsed, everywhere(), 1, ONE, 1.0)
    assert float(loss) == pytest.approx(4.0, abs=1e-6)
    assert sums.load.tolist() == [[8, 0, 0, 0], [0, 8, 0, 0], [0, 0, 8, 0], [0, 0, 0, 8]]


def test_a_balanced_layer_gives_one_for_any_number_of_choices():
    even = torch.stack([logits_to(expert % 4, 1)[0] for expert in range(8)])
    for per_token in (1, 2):
        loss, _ = router_loss([even + 1e-3 * torch.eye(8, 4).roll(1, 1)], everywhere(), 1, ONE, 1.0)
        assert float(loss) == pytest.approx(1.0, abs=1e-6), per_token
    uniform = torch.zeros(8, 4, dtype=torch.float64)
    assert float(router_loss([uniform], everywhere(), 2, ONE, 1.0)[0]) == pytest.approx(1.0)


def test_room_is_not_counted():
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(12, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    in_document = torch.arange(12) < 7
    config = RouterConfig(aux_coefficient=0.5, z_coefficient=0.1)
    padded, padded_sums = router_loss(layers, in_document, 2, config, 0.25)
    alone, alone_sums = router_loss([layer[:7] for layer in layers], everywhere(7), 2, config, 0.25)
    torch.testing.assert_close(padded, alone)
    for name, ours in vars(padded_sums).items():
        torch.testing.assert_close(ours, getattr(alone_sums, name))
    assert padded_sums.load.sum(1).tolist() == [14, 14, 14]


def test_parts_of_two_ranks_sum_to_the_loss_of_all_tokens_and_its_gradient(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    config = RouterConfig(aux_coefficient=1.0, z_coefficient=0.3)
    whole = tokens.clone().requires_grad_()
    expected, sums = router_loss([whole], everywhere(20), 2, config, 1.0)
    expected.backward()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda load: load.copy_(sums.load))
    parts = [part.clone().requires_grad_() for part in (tokens[:13], tokens[13:])]
    losses = [router_loss([part], everywhere(len(part)), 2, config, 1.0)[0] for part in parts]
    sum(losses).backward()
    torch.testing.assert_close(sum(losses), expected)
    torch.testing.assert_close(torch.cat([part.grad for part in parts]), whole.grad)


def test_the_gradient_moves_tokens_away_from_the_busy_expert():
    logits = torch.tensor([[1.0, 0, 0, 0]] * 3 + [[0, 1.0, 0, 0]], dtype=torch.float64, requires_grad=True)
    loss, _ = router_loss([logits], everywhere(4), 1, ONE, 1.0)
    loss.backward()
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 2:] < 0).all()


def test_no_token_and_no_layer_give_zero():
    logits = torch.randn(5, 4, requires_grad=True)
    loss, sums = router_loss([logits], torch.zeros(5, dtype=torch.bool), 2, RouterConfig(z_coefficient=1.0), 1.0)
    loss.backward()
    assert (float(loss.detach()), float(logits.grad.abs().max())) == (0.0, 0.0)
    assert sums.load.tolist() == [[0, 0, 0, 0]]
    dense, sums = router_loss([], everywhere(5), 0, ONE, 1.0)
    assert float(dense) == 0
    assert sums.load.shape == (0, 0)


def test_narrow_logits_are_widened():
    logits = torch.randn(64, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    narrow, _ = router_loss([logits], everywhere(64), 2, ONE, 1.0)
    wide, _ = router_loss([logits.double()], everywhere(64), 2, ONE, 1.0)
    assert narrow.dtype == torch.float32
    assert float(narrow) == pytest.approx(float(wide), rel=1e-6)
