"""This process within a run: its rank, its device, and the few collectives of the trainer.

Torch alone, so that whoever only holds a `World` loads no DeepSpeed; process_group.py beside this file makes one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed

from etl.errors import StillhouseError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among those of the run. Each method is a collective: every rank must call it."""

    rank: int
    size: int
    device: torch.device

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over all ranks, on the CPU, of the same type."""
        return self._reduced(values, torch.distributed.ReduceOp.SUM)

    def max(self, values: torch.Tensor) -> torch.Tensor:
        """Element-wise maximum over all ranks, on the CPU, of the same type."""
        return self._reduced(values, torch.distributed.ReduceOp.MAX)

    def any(self, flag: bool) -> bool:
        """Whether it is set on any rank."""
        return bool(self.max(torch.tensor(int(flag))).item())

    def gather(self, value: Any) -> list[Any]:
        """The value of each rank, in order, on every rank; pickled, so for small ones (ledgers, messages)."""
        values = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def from_rank_0(self, call: Callable[[], T]) -> T:
        """What a call on rank 0 gives, or its error, on every rank; pickled."""
        box: list[Any] = [None, None]
        if self.rank == 0:
            try:
                box[0] = call()
            except StillhouseError as error:
                box[1] = error.to_text()
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        if box[1] is not None:
            raise StillhouseError.from_text(box[1])
        result: T = box[0]
        return result

    def barrier(self) -> None:
        """Wait for all ranks."""
        torch.distributed.barrier()

    def _reduced(self, values: torch.Tensor, operation: Any) -> torch.Tensor:
        moved = values.to(self.device, copy=True)
        torch.distributed.all_reduce(moved, operation)
        return moved.cpu()
