import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training import precision
from tests.training.precision import CPU
from training.engine.engine import Engine
from training.engine.memory import StudentSize, activations, by_zero_stage, memory, model_states
from training.launch.process_group import world
from training.models.config import ModelConfig
from training.models.factory import build_student

# DeepSpeed and what it imports late use deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")

SIZE = StudentSize(
    parameters=1_000_000_000, hidden=2048, layers=16, heads=16, head_dim=128, kv_heads=4, mlp_width=8192, vocab=50_000
)


def test_states_of_the_zero_paper():
    """Its figure 1: 7.5 G parameters on 64 ranks in 16 bits; ours has float32 sums of gradients (4 bytes, not 2)."""
    giga = 7_500_000_000
    parameters, gradients, optimizer = (value / 1e9 for value in model_states(giga, 1, 64, bf16=True))
    assert (parameters, gradients, optimizer) == (15.0, 45.0, pytest.approx(1.40625))
    assert sum(model_states(giga, 2, 64, bf16=True)) / 1e9 == pytest.approx(15 + 16 * 7.5 / 64)
    assert sum(model_states(giga, 3, 64, bf16=True)) / 1e9 == pytest.approx(18 * 7.5 / 64)
    assert sum(model_states(giga, 0, 64, bf16=False)) == 16 * giga


@pytest.mark.parametrize(("kind", "stage"), precision.CASES)
def test_states_are_what_the_engine_holds(kind, stage):
    bf16 = kind == "bf16"
    student = precision.module()
    num_parameters = sum(parameter.numel() for parameter in student.parameters())
    packs = [precision.random_pack(0, [13, 19], 40)]
    with world(timeout_s=60) as here:
        engine = Engine(student, precision.OPTIMIZER, precision.deepspeed_json(kind, stage), here, 1)
        engine.step([pack.tensors(CPU) for pack in packs], precision.OBJECTIVE, precision.context(packs), 1e-3)
        states = [value for state in engine._basic.state.values() for value in state.values() if value.numel() > 1]
        masters = [] if stage == 0 else [parameter for parameter, *_ in engine._owned()]
        held = list(engine.deepspeed.module.parameters())
        found = sum(tensor.numel() * tensor.element_size() for tensor in [*states, *masters])
        found_parameters = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in held)
        engine.close()
    parameters, _, optimizer = model_states(num_parameters, stage, 1, bf16=bf16)
    assert found_parameters == parameters
    assert optimizer <= found <= optimizer * 1.01


def test_activations_are_near_what_autograd_keeps():
    """A dense layer of the built-in student against the bytes that saved_tensors_hooks sees, each storage once."""
    sizes = {"hidden": 128, "heads": 8, "kv_heads": 2, "head_dim": 16, "intermediate": 256, "vocab": 64}
    params = {**sizes, "experts": 1, "experts_per_token": 1, "sliding_window": 4096}

    def kept(layers):
        factory = "training.models.gpt_oss:build"
        student = build_student(ModelConfig(factory=factory, params={**params, "layers": layers}), 0)
        own = {parameter.data_ptr() for parameter in student.parameters()}
        seen = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        batch = precision.random_pack(0, [16] * 64, 1024).tensors(CPU)
        ids = batch.input_ids % sizes["vocab"]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden, _ = student(ids, batch.position_ids, batch.cu_seqlens)
        assert hidden.requires_grad
        return sum(nbytes for nbytes, _ in seen.values())

    size = StudentSize(parameters=1, hidden=128, layers=1, heads=8, head_dim=16, kv_heads=2, mlp_width=256, vocab=64)
    estimated = [
        activations(size.model_copy(update={"layers": layers}), 1024, bf16=False, checkpointing=False)
        for layers in (2, 4)
    ]
    found = kept(4) - kept(2)
    assert found / 1.6 < estimated[1] - estimated[0] < found * 1.6


def test_checkpointing_keeps_the_input_of_each_layer():
    plain = activations(SIZE, 8192, bf16=True, checkpointing=False)
    checkpointed = activations(SIZE, 8192, bf16=True, checkpointing=True)
    assert checkpointed < plain / 5
    more = SIZE.model_copy(update={"layers": 17})
    assert activations(more, 8192, bf16=True, checkpointing=True) - checkpointed == 8192 * 2 * SIZE.hidden


def test_bf16_has_no_stage_0():
    assert [stage for stage, _ in by_zero_stage(SIZE, 8, 8192, bf16=True, checkpointing=False)] == [1, 2, 3]
    assert [stage for stage, _ in by_zero_stage(SIZE, 8, 8192, bf16=False, checkpointing=False)] == [0, 1, 2, 3]


@given(st.integers(0, 3), st.integers(1, 64), st.integers(1, 10**6), st.booleans())
def test_more_ranks_never_need_more(stage, world_size, pack_tokens, checkpointing):
    fewer, more = (
        memory(SIZE, stage, size, pack_tokens, bf16=stage > 0, checkpointing=checkpointing)
        for size in (world_size, 2 * world_size)
    )
    assert more.total <= fewer.total
    assert fewer.total == sum(vars(fewer).values())
