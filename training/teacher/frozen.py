"""The frozen teacher whose logits an objective compares with: a model like a student, used only for inference."""

import torch

from training.data.collate import PackTensors
from training.losses.spans import TeacherOutput
from training.models.factory import Student


class FrozenTeacher:
    """A model that an objective compares with, in this process: whole on every rank, never trained, never saved.

    Not a module and not part of one, so neither DeepSpeed nor a checkpoint sees its parameters.
    """

    def __init__(self, model: Student, device: torch.device, dtype: torch.dtype) -> None:
        """Moves the model. Every rank holds all its parameters in `dtype`, in any ZeRO stage."""
        self._model = model.to(device, dtype).eval().requires_grad_(False)

    @property
    def vocab_size(self) -> int:
        """Rows of its head."""
        return len(self._model.lm_head.weight)

    @torch.no_grad()
    def __call__(self, batch: PackTensors) -> TeacherOutput:
        """Forward pass of a pack."""
        hidden, _ = self._model(batch.input_ids, batch.position_ids, batch.cu_seqlens)
        return TeacherOutput(hidden, self._model.lm_head.weight)
