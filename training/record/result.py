"""The result of a run, as JSON and in words."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    steps: int
    first_loss: float
    last_loss: float
    first_held_out: float | None
    last_held_out: float | None
    tokens: int
    supervised_tokens: int
    skipped_steps: int
    complete: bool
    """All stages are over; False for a run that was stopped or paused."""
    ended: list[dict[str, Any]]
    """Of each stage that is over: `stage`, `tokens`, its target `target_tokens`, the `reason` why it ended ("target",
    "documents" or "stop rule") and the `learning_rate` at which it did."""
    left_out: dict[str, dict[str, dict[str, int]]]
    """By stage and arm: `documents` of the corpus, and those of them that are never trained on, by reason."""
    metrics: str
    checkpoint: str | None
    stopped_by: str | None = None
    """Name of the signal that asked any of the processes to stop; None where none came."""

    def told(self) -> str:
        """In words, on one line."""
        held_out = ""
        if self.first_held_out is not None and self.last_held_out is not None:
            held_out = f", held out {self.first_held_out:.4g} -> {self.last_held_out:.4g}"
        state = "complete" if self.complete else "stopped before its end; run it again to resume"
        return (
            f"{self.steps:,} steps, {self.tokens:,} tokens, loss {self.first_loss:.4g} -> {self.last_loss:.4g}"
            f"{held_out}: {state}; checkpoint: {self.checkpoint or 'none'}, metrics: {self.metrics}"
        )
