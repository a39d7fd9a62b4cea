"""DeepSpeed around a student: optimizer and one global step. No kernel is compiled, so no compiler is needed.

The optimizer is torch's own AdamW, given to DeepSpeed ready-made, which would otherwise compile its own at first use.
A step takes the same number of packs on every rank, one micro-batch a pack, and one AdamW update; loss coefficients
carry the counts of the whole global batch, so gradients need no scaling by accumulation. A loss or gradient that is not
finite, on any rank, skips the step on every rank: the loss goes back as NaN, which the reduction of gradients carries
to the others, so no collective is spent on agreement.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed
from deepspeed.utils import safe_set_full_fp32_param
from torch import nn

from etl.errors import DataError
from training.data.collate import PackTensors
from training.engine.deepspeed_json import deepspeed_config, is_bf16, zero_stage
from training.engine.optimizer import OptimizerConfig, forget, parameter_groups, squared_update_and_weight
from training.launch.world import World
from training.losses.objective import Objective, StepContext
from training.losses.router import RouterConfig, RouterSums, router_loss
from training.losses.spans import KINDS, SpanObjective
from training.models.factory import Student


class TrainingModule(nn.Module):
    """What DeepSpeed wraps: student, head, loss and router loss in one forward, so that every ZeRO stage works."""

    def __init__(self, student: Student, router: RouterConfig) -> None:
        super().__init__()
        self.student = student
        self.router = router
        self.progress: Callable[[], None] = lambda: None
        """Called before the router's loss, where ranks wait for each other; see `Engine.on_progress`."""

    def forward(
        self, batch: PackTensors, objective: Objective, step: StepContext, share: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """The loss to go back from, the objective's part of it and its sums (float64), the fields of RouterSums.

        `share` is this micro-batch's part of the tokens of the global batch, float64 scalar. A flat tuple of tensors,
        because ZeRO-3 hangs its hooks on what it finds in tuples.
        """
        hidden, router_logits = self.student(batch.input_ids, batch.position_ids, batch.cu_seqlens)
        output = objective.loss(self.student.lm_head, hidden, batch, step)
        self.progress()
        penalty, router = router_loss(
            router_logits, batch.in_document, self.student.experts_per_token, self.router, share
        )
        return output.total + penalty, output.total.detach().double(), output.sums, *vars(router).values()


@dataclass(frozen=True)
class StepTaken:
    """What all ranks together found in a pass over their packs; the same on every rank, on the CPU."""

    objective: float
    """L of the objective, without the router's losses. May be NaN where there is a fault."""
    sums: torch.Tensor
    """float64 [n]: what the objective's `report` takes. May be NaN where there is a fault."""
    router: RouterSums
    fault: str | None = None
    """Why nothing was changed by the step; None for a step that was taken."""

    @property
    def skipped(self) -> bool:
        """Whether no parameter and no moment was changed."""
        return self.fault is not None


class Engine:
    """A student in training."""

    def __init__(
        self,
        module: TrainingModule,
        optimizer: OptimizerConfig,
        deepspeed_json: dict[str, Any],
        here: World,
        micro_steps: int,
    ) -> None:
        """`micro_steps` is what a rank takes in a usual step; `step` takes any number of packs."""
        self.zero_stage = zero_stage(deepspeed_json)
        self.world = here
        masters = _masters(module) if is_bf16(deepspeed_json) else {}
        groups = parameter_groups(module, optimizer.weight_decay)
        self._decays = [decays for decays, group in zip((True, False), groups, strict=True) if group["params"]]
        self._basic = torch.optim.AdamW(groups, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps, fused=True)
        self.deepspeed, *_ = deepspeed.initialize(
            model=module,
            optimizer=self._basic,
            config=deepspeed_config(deepspeed_json, optimizer, micro_steps),
            dist_init_required=False,
        )
        for parameter, master in masters.items():
            safe_set_full_fp32_param(parameter, master)
        self._clip_norm = optimizer.clip_norm
        self._norm = math.nan
        self.phase: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()
        """Entered with "optimizer" around the update, for whoever splits the time of a step."""
        self._progress: Callable[[], None] = lambda: None

    def on_progress(self, call: Callable[[], None]) -> None:
        """Have something called in each pass of a pack before it and before ranks wait for each other in it.

        For whoever watches for a hang: a rank that is behind has called less often.
        """
        self._progress = self.deepspeed.module.progress = call

    def step(
        self, packs: Sequence[PackTensors], objective: Objective, context: StepContext, learning_rate: float
    ) -> StepTaken:
        """One optimizer step over this rank's packs; every rank comes with the same number."""
        losses, found = self._go_back(packs, objective, context)
        with self.phase("optimizer"):
            self._norm = self._update(learning_rate)
        fault = None if math.isfinite(self._norm) else self._fault(losses)
        return StepTaken(*self._total(found), fault)

    def _go_back(
        self, packs: Sequence[PackTensors], objective: Objective, context: StepContext
    ) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """Forward and backward of each pack: the losses, and L with the sums of objective and router."""
        self.deepspeed.train()
        losses, found = [], []
        for number, (pack, share) in enumerate(zip(packs, self._shares(packs), strict=True), 1):
            self.deepspeed.set_gradient_accumulation_boundary(number == len(packs))
            self._progress()
            loss, *sums = self.deepspeed(pack, objective, context, share)
            losses.append(loss.detach())
            found.append(sums)
            # DeepSpeed takes the mean over ranks, the product makes a sum of it; a loss that is not finite goes back
            # as NaN even where its own gradient would be finite. The product also matters by itself: at ZeRO stage 0
            # DeepSpeed 0.19 divides the gradient of a tensor that comes straight out of forward by micro_steps.
            scale = torch.where(loss.isfinite(), float(self.world.size), math.nan)
            self._progress()
            self.deepspeed.backward(loss * scale, scale_wrt_gas=False)
        return losses, found

    def _update(self, learning_rate: float) -> float:
        """Clip, step, clear the gradients: the norm before clipping, not finite where the step was skipped."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.zero_stage > 0:
            self.deepspeed.step()
            return float(self.deepspeed.get_global_grad_norm())
        norm = float(nn.utils.clip_grad_norm_(self.deepspeed.module.parameters(), self._clip_norm))
        if not math.isfinite(norm):
            self.deepspeed.zero_grad()  # AdamW does not change parameters without a gradient.
        self.deepspeed.step()
        return norm

    @torch.no_grad()
    def evaluate(self, packs: Sequence[PackTensors], objective: SpanObjective) -> StepTaken:
        """Sums of some packs without gradients. Every rank must come with the same number of packs."""
        self.deepspeed.eval()
        uncounted = StepContext(torch.zeros(2 * KINDS, dtype=torch.float64, device=self.world.device))
        shares = zip(packs, self._shares(packs), strict=True)
        return StepTaken(
            *self._total([self.deepspeed(pack, objective, uncounted, share)[1:] for pack, share in shares])
        )

    def gradient_norm(self) -> float:
        """2-norm of the last step's global gradient before clipping; not finite where the step was skipped."""
        return self._norm

    def update_ratio(self) -> float:
        """2-norm of the last step's change of all trainable parameters over theirs; 0 where the step was skipped.

        Every rank must call it. One pass over the optimizer's states (12 bytes a parameter of this rank) and an
        all-reduce of two numbers, so it is meant for every tenth step or so.
        """
        if not math.isfinite(self._norm):
            return 0.0
        total = torch.zeros(2, dtype=torch.float64, device=self.deepspeed.device)
        for parameter, group, places in self._owned():
            state = self._basic.state[parameter]
            for place in places:
                moments = {key: state[key].flatten()[place] for key in ("exp_avg", "exp_avg_sq")}
                total += squared_update_and_weight(parameter.flatten()[place], {**state, **moments}, group)
        if self.zero_stage > 0:
            torch.distributed.all_reduce(total)
        update, weight = total.sqrt().tolist()
        return float(update / weight)

    def _owned(self) -> Iterator[tuple[torch.Tensor, dict[str, Any], list[slice]]]:
        """The float32 tensors that this rank steps on, with their groups and where in them there are weights.

        All parameters at ZeRO stage 0, else a disjoint part. ZeRO-3 leaves what memory held before in the padding of
        each parameter's last part.
        """
        if self.zero_stage < 3:
            for group in self._basic.param_groups:
                for parameter in group["params"]:
                    yield parameter, group, [slice(None)]
            return
        zero = self.deepspeed.optimizer
        for number, flat in enumerate(zero.fp32_partitioned_groups_flat):
            places, start = [], 0
            for parameter in zero.fp16_groups[number]:
                part = parameter.ds_tensor.ds_numel
                weights = min(max(parameter.ds_numel - self.world.rank * part, 0), part)
                places.append(slice(start, start + weights))
                start += part
            assert start == flat.numel(), "a sub-group is the parts of its parameters, one after the other"
            yield flat, self._basic.param_groups[zero.sub_group_to_group_id[number]], places

    def configure(self, optimizer: OptimizerConfig) -> None:
        """Take a stage's settings of the optimizer from here on; moments and step count stay."""
        for group, decays in zip(self._basic.param_groups, self._decays, strict=True):
            group.update(betas=optimizer.betas, eps=optimizer.eps, weight_decay=optimizer.weight_decay * decays)
        self._clip_norm = optimizer.clip_norm
        if self.zero_stage > 0:
            self.deepspeed.optimizer.clip_grad = optimizer.clip_norm

    def reset_optimizer(self) -> None:
        """Begin with moments of zero and a step count of zero, as before the first step."""
        forget(self._basic)

    def close(self) -> None:
        """Take DeepSpeed's hooks off the module, so that the process can train something else."""
        self.deepspeed.destroy()

    def _shares(self, packs: Sequence[PackTensors]) -> torch.Tensor:
        """float64 [packs]: the part of all ranks' tokens that all ranks' packs of this micro-batch hold."""
        tokens = torch.stack([pack.in_document.sum() for pack in packs]).double()
        torch.distributed.all_reduce(tokens)
        return tokens / tokens.sum().clamp(min=1)

    def _total(self, found: Sequence[Sequence[torch.Tensor]]) -> tuple[float, torch.Tensor, RouterSums]:
        """Sums over packs and ranks, in one all-reduce. Counts below 2^53 stay exact in float64."""
        mine = [torch.stack(list(values)).sum(0) for values in zip(*found, strict=True)]
        flat = self.world.sum(torch.cat([value.double().flatten() for value in mine]))
        pieces = flat.split([value.numel() for value in mine])
        objective, sums, *router = [
            piece.reshape(value.shape).to(value.dtype) for piece, value in zip(pieces, mine, strict=True)
        ]
        return float(objective), sums, RouterSums(*router)

    def _fault(self, losses: Sequence[torch.Tensor]) -> str:
        """What was not finite, in the same words on every rank. Every rank must call it."""
        values = torch.stack(list(losses)).tolist()
        mine = next(((number, value) for number, value in enumerate(values) if not math.isfinite(value)), None)
        for rank, place in enumerate(self.world.gather(mine)):
            if place is not None:
                return f"the loss of rank {rank} is {place[1]} in its micro-batch {place[0]}"
        return "the gradient is not finite, though the losses of all ranks are"


def _masters(module: nn.Module) -> dict[nn.Parameter, torch.Tensor]:
    """Copies of what bf16 cannot hold: DeepSpeed makes its float32 masters from parameters that it has rounded."""
    return {
        parameter: parameter.detach().clone()
        for parameter in module.parameters()
        if parameter.requires_grad and parameter.dtype == torch.float32
    }


class Faults:
    """Counts the steps that were skipped one after the other, and ends the run when they are too many."""

    def __init__(self, max_in_a_row: int, newest_checkpoint: Callable[[], str | None]) -> None:
        """`newest_checkpoint` returns the place of the newest complete checkpoint, or None."""
        self.last = ""
        """The last fault; empty before the first one."""
        self._max_in_a_row = max_in_a_row
        self._newest_checkpoint = newest_checkpoint
        self._in_a_row = 0

    def note(self, step: int, fault: str | None, learning_rate: float) -> None:
        """Take note of a step's outcome (`StepTaken.fault`). Every rank must call it with the same.

        Raises:
            DataError: this is the last skipped step that `optimizer.max_skipped_in_a_row` allows.
        """
        self._in_a_row = 0 if fault is None else self._in_a_row + 1
        self.last = fault or self.last
        if self._in_a_row >= self._max_in_a_row:
            newest = self._newest_checkpoint()
            again = "start again, as there is no checkpoint yet"
            if newest is not None:
                again = f"resume from {newest}, which is complete"
            raise DataError(
                f"step {step}: {fault}; {self._in_a_row} steps in a row were skipped (learning rate "
                f"{learning_rate:g}). Lower optimizer.lr, or look at the documents in the folder watchdog of the "
                f"output, and {again}; optimizer.max_skipped_in_a_row allows more"
            )
