"""The state of a run other than tensors: counters, positions in the streams, and results of the last evaluations.

It travels in the checkpoint's manifest as JSON and is the same for every number of ranks.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from training.data.stream.plan import StreamState

LOSSES: Final = 2
"""What the losses of a state are: 1 the sum of the span kinds' means, 2 nats a supervised token."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation in a stage found, for the stage's stop rule."""

    loss: float
    """Held out."""
    format: float | None
    """Of training/stages/held_out.py; None without control tokens."""
    skipped_steps: int
    """Steps of the run skipped up to it."""


@dataclass(frozen=True)
class StageState:
    """The position of the run within its stage."""

    index: int = 0
    """Position among the stages."""
    steps: int = 0
    """Global steps drawn in the stage, skipped ones included."""
    tokens: int = 0
    streams: dict[str, StreamState] = field(default_factory=dict)
    """Place in the stream of each arm that has had a step."""
    is_exhausted: bool = False
    """Whether an arm's stream came to its end."""
    evaluations: list[Evaluation] = field(default_factory=list)
    """In the stage, oldest first."""


@dataclass(frozen=True)
class EndedStage:
    """A stage that is over, as it ended."""

    name: str
    steps: int
    """Global steps drawn in it, skipped ones included."""
    tokens: int
    streams: dict[str, StreamState]
    """Where the stream of each arm that had a step stopped."""
    reason: str
    """"target", "documents" or "stop rule"."""
    learning_rate: float
    """The rate at which it ended."""
    target_tokens: int


@dataclass(frozen=True)
class TrainState:
    """A run after some steps."""

    stage: StageState = StageState()
    ended: tuple[EndedStage, ...] = ()
    """The stages before the current one, in order; empty in a checkpoint from before they were kept."""
    step: int = 0
    """Optimizer steps taken."""
    skipped: int = 0
    """Steps whose loss or gradient was not finite: nothing was changed by them."""
    tokens: int = 0
    supervised_tokens: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    first_held_out: float | None = None
    last_held_out: float | None = None
    evaluated_tokens: int = 0
    """Tokens at the last evaluation."""
    teacher_mean: dict[str, float] = field(default_factory=dict)
    """m of teacher-weighted cross-entropy, of each arm of the stage that has it."""
    left_out: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    """By stage and arm: all documents and those never trained on by reason, counted before the first step."""
    spikes: dict[str, Any] | None = None
    """What training/record/metrics.py's SpikeWatch keeps."""
    ledger: list[Any] = field(default_factory=list)
    """Trained tokens by source, buckets and licence (training/record/ledger.py), over all ranks."""

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "losses": LOSSES}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "TrainState":
        """The state from the result of `to_json`.

        Losses of an earlier kind are left out where later ones are compared with them: by the stop rule, the watch for
        spikes and the checkpoints to keep.
        """
        found = dict(found)
        if found.pop("losses", 1) != LOSSES:
            spikes = None if found["spikes"] is None else {**found["spikes"], "losses": []}
            found |= {"spikes": spikes, "first_held_out": None, "last_held_out": None}
            found["stage"] = {**found["stage"], "evaluations": []}
        stage = found["stage"]
        evaluations = [Evaluation(**evaluation) for evaluation in stage["evaluations"]]
        stage = StageState(**{**stage, "streams": _streams(stage), "evaluations": evaluations})
        ended = tuple(EndedStage(**{**one, "streams": _streams(one)}) for one in found.get("ended", ()))
        return cls(**{**found, "stage": stage, "ended": ended})

    def end_of_stage(self, name: str, reason: str, learning_rate: float, target_tokens: int) -> EndedStage:
        """The current stage as it ended: its name, why it is over, its last rate, and its target."""
        stage = self.stage
        return EndedStage(name, stage.steps, stage.tokens, stage.streams, reason, learning_rate, target_tokens)

    def next_stage(self, ended: EndedStage) -> "TrainState":
        """The same run at the start of the next stage; `ended` is the current one."""
        here = StageState(index=self.stage.index + 1)
        return replace(self, stage=here, ended=(*self.ended, ended), teacher_mean={})


def _streams(found: dict[str, Any]) -> dict[str, StreamState]:
    return {arm: StreamState(**state) for arm, state in found["streams"].items()}
