import numpy as np
import pytest
import torch

from tests.training import precision
from tests.training.precision import CPU, module
from training.teacher.frozen import FrozenTeacher

# DeepSpeed and what it imports late use deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")


def test_a_frozen_teacher_gives_hidden_states_and_has_no_gradient():
    student = module().student
    teacher = FrozenTeacher(module().student, CPU, torch.float32)
    batch = precision.random_pack(0, [13, 19], 40).tensors(CPU)
    found = teacher(batch)
    hidden, _ = student(batch.input_ids, batch.position_ids, batch.cu_seqlens)
    assert torch.allclose(found.hidden, hidden, atol=1e-6)
    assert torch.equal(found.head_weight, student.lm_head.weight)
    assert not found.hidden.requires_grad
    assert not found.head_weight.requires_grad
    assert np.shape(found.hidden) == (40, precision.SIZES["hidden"])
