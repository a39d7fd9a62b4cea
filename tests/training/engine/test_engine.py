import math
from pathlib import Path

import pytest
import torch

from etl.errors import DataError
from tests.training import precision
from tests.training.packs import toy_pack
from tests.training.precision import CPU, OBJECTIVE, OPTIMIZER, context, full_parameters, module
from training.engine.engine import Engine, Faults
from training.engine.optimizer import OptimizerConfig
from training.launch.process_group import world
from training.losses.objective import LossOutput
from training.losses.router import RouterConfig

# DeepSpeed and what it imports late use deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")

CONF = Path(__file__).resolve().parents[3] / "conf" / "deepspeed"
PACKS = [precision.random_pack(seed, [13, 19], 40) for seed in range(4)]
STAGES = pytest.mark.parametrize("stage", [0, 1, 2, 3])


@pytest.fixture(scope="module")
def here():
    with world(timeout_s=60) as found:
        yield found


def engine(here, stage, kind="fp32", router=precision.ROUTER, optimizer=OPTIMIZER):
    return Engine(module(router), optimizer, precision.deepspeed_json(kind, stage), here, 2)


def step(trained, packs, objective=OBJECTIVE, learning_rate=1e-3):
    return trained.step([pack.tensors(CPU) for pack in packs], objective, context(packs), learning_rate)


def equal(ours, theirs):
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


@STAGES
def test_a_step_may_have_any_number_of_packs_and_fillers_change_nothing(here, stage):
    filler = toy_pack([], 40, {})
    plain, filled = engine(here, stage), engine(here, stage)
    for packs in (PACKS[:1], PACKS[:3], PACKS[1:3]):
        found = step(plain, packs)
        again = step(filled, [filler, *packs, filler])
        assert torch.allclose(found.sums, again.sums, rtol=1e-6)
        assert torch.equal(found.router.load, again.router.load)
        assert filled.gradient_norm() == pytest.approx(plain.gradient_norm(), rel=1e-5)
    for name, value in full_parameters(plain).items():
        assert torch.allclose(value, full_parameters(filled)[name], atol=1e-6), name
    plain.close()
    filled.close()


class Spoilt:
    """Cross-entropy whose total, or whose gradient, is made not finite in one pack."""

    def __init__(self, where, loss=1.0, gradient=1.0):
        self.where, self.spoil, self.gradient = where, loss, gradient
        self.seen = -1

    def loss(self, head, hidden, batch, context):
        self.seen += 1
        if self.seen == self.where:
            hidden.register_hook(lambda grad: grad * self.gradient)
        found = OBJECTIVE.loss(head, hidden, batch, context)
        # The addend is a constant, so that the gradient of an infinite loss remains finite.
        spoilt = 0.0 if self.seen != self.where or self.spoil == 1.0 else self.spoil
        return LossOutput(found.total + spoilt, found.sums)


@pytest.mark.parametrize(("kind", "stage"), precision.CASES)
def test_a_step_that_is_not_finite_changes_nothing(here, kind, stage):
    never, once = engine(here, stage, kind), engine(here, stage, kind)
    for trained in (never, once):
        step(trained, PACKS[:2])
    before = full_parameters(once)
    for spoil, fault in [
        ({"loss": math.nan}, "the loss of rank 0 is nan in its micro-batch 1"),
        ({"loss": math.inf}, "the loss of rank 0 is inf in its micro-batch 1"),
        ({"gradient": math.nan}, "the gradient is not finite, though the losses of all ranks are"),
    ]:
        taken = step(once, PACKS[:3], Spoilt(1, **spoil))
        assert taken.skipped
        assert taken.fault == fault
        assert not math.isfinite(once.gradient_norm())
        assert once.update_ratio() == 0.0
        assert equal(full_parameters(once), before)
    for trained in (never, once):
        assert not step(trained, PACKS[2:]).skipped
    assert equal(full_parameters(once), full_parameters(never))
    assert not equal(full_parameters(once), before)
    never.close()
    once.close()


def test_too_many_faults_in_a_row_end_the_run_and_name_step_and_rank():
    faults = Faults(2, lambda: "DIR/step-00000005")
    fault = "the loss of rank 3 is nan in its micro-batch 0"
    faults.note(7, fault, 0.1)
    faults.note(8, None, 0.1)
    faults.note(9, fault, 0.1)
    with pytest.raises(DataError, match=r"step 10: the loss of rank 3 is nan.*2 steps.*Lower optimizer\.lr.*complete"):
        faults.note(10, fault, 0.1)
    assert faults.last == fault


def test_no_checkpoint_is_said_to_be_whole_where_there_is_none():
    with pytest.raises(DataError, match="start again, as there is no checkpoint yet") as refused:
        Faults(1, lambda: None).note(1, "the loss of rank 0 is nan in its micro-batch 0", 0.1)
    assert "complete" not in str(refused.value)


@STAGES
def test_a_reset_optimizer_steps_as_a_new_one(here, stage):
    old = engine(here, stage)
    step(old, PACKS[:2])
    weights = full_parameters(old)
    old.reset_optimizer()
    fresh = module()
    fresh.load_state_dict(weights, strict=False)
    new = Engine(fresh, OPTIMIZER, precision.deepspeed_json("fp32", stage), here, 2)
    for trained in (old, new):
        step(trained, PACKS[2:])
    assert equal(full_parameters(old), full_parameters(new))
    old.close()
    new.close()


@STAGES
def test_a_stage_may_change_the_optimizers_settings(here, stage):
    other = OptimizerConfig(lr=1.0, betas=(0.5, 0.6), eps=1e-3, weight_decay=0.3, clip_norm=0.01)
    changed, new = engine(here, stage), engine(here, stage, optimizer=other)
    changed.configure(other)
    for trained in (changed, new):
        step(trained, PACKS[:2])
        step(trained, PACKS[2:])
    assert equal(full_parameters(changed), full_parameters(new))
    changed.close()
    new.close()


def test_offloaded_optimizer_states_give_the_same_steps(here):
    plain = engine(here, 2)
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    offloaded = Engine(module(), OPTIMIZER, {"zero_optimization": zero}, here, 2)
    for packs in (PACKS[:2], PACKS):
        for trained in (plain, offloaded):
            step(trained, packs)
        assert offloaded.gradient_norm() == pytest.approx(plain.gradient_norm(), rel=1e-5)
        assert offloaded.update_ratio() == pytest.approx(plain.update_ratio(), rel=1e-4)
    plain.close()
    offloaded.close()


@pytest.mark.parametrize("stage", [0, 3])
def test_evaluation_gives_the_sums_of_training_and_changes_nothing(here, stage):
    trained = engine(here, stage, router=RouterConfig())
    before = full_parameters(trained)
    found = trained.evaluate([pack.tensors(CPU) for pack in PACKS], OBJECTIVE)
    assert equal(full_parameters(trained), before)
    taken = step(trained, PACKS)
    assert torch.allclose(found.sums, taken.sums, rtol=1e-5)
    assert torch.equal(found.router.load, taken.router.load)
    assert int(found.router.load[0].sum()) == 2 * sum(pack.num_tokens for pack in PACKS)
    trained.close()
