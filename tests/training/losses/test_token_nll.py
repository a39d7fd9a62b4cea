import math

import pytest
import torch

from training.losses.token_nll import TokenNll

PROBABILITIES = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], dtype=torch.float64)
TARGETS = torch.tensor([1, 2])


def test_values_are_the_logarithms_and_gradients_p_less_the_target():
    logits = PROBABILITIES.log() + 3.0
    found = TokenNll(TARGETS, None)([logits], slice(0, 2))
    assert found.values.tolist() == pytest.approx([math.log(4), -math.log(0.7)])
    assert found.weights.tolist() == [1, 1]
    expected = torch.tensor([[0.5, -0.75, 0.25], [0.1, 0.2, -0.3]], dtype=torch.float64)
    torch.testing.assert_close(logits * found.scales[:, None], expected)


def test_coefficients_are_of_the_chunks_own_rows():
    targets = torch.cat([torch.tensor([0, 0]), TARGETS])
    coefficients = torch.tensor([9.0, 9.0, 2.0, 0.5], dtype=torch.float64)
    logits = PROBABILITIES.log()
    found = TokenNll(targets, coefficients)([logits], slice(2, 4))
    assert found.values.tolist() == pytest.approx([math.log(4), -math.log(0.7)])
    assert found.weights.tolist() == [2.0, 0.5]
    expected = torch.tensor([[1.0, -1.5, 0.5], [0.05, 0.1, -0.15]], dtype=torch.float64)
    torch.testing.assert_close(logits * found.scales[:, None], expected)


def test_a_target_without_any_probability_left_has_a_finite_loss():
    logits = torch.tensor([[2000.0, 1000.0]])
    found = TokenNll(torch.tensor([1]), torch.ones(1, dtype=torch.float64))([logits], slice(0, 1))
    assert found.values.tolist() == [1000.0]
    assert (logits * found.scales[:, None]).tolist() == [[1.0, -1.0]]
    assert {part.dtype for part in found} == {torch.float32}
