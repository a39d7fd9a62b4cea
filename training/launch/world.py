"""This process among those of a run: its rank, its device, and the few collectives of the trainer.

Torch alone, so that whoever only holds a `World` loads no DeepSpeed; process_group.py beside this file makes one.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed


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

    def barrier(self) -> None:
        """Wait for all ranks."""
        torch.distributed.barrier()

    def _reduced(self, values: torch.Tensor, operation: Any) -> torch.Tensor:
        moved = values.to(self.device, copy=True)
        torch.distributed.all_reduce(moved, operation)
        return moved.cpu()
