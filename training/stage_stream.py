"""The global steps of one stage for one rank: each step's arm, and the packs that its stream gives.

An arm's stream is opened with its first step and keeps its own decision log in decisions/<stage>/<arm>, so that what an
operator decides for one arm leaves the others alone. Memory is that of the open streams together.
"""

from collections.abc import Callable
from dataclasses import dataclass

from training.data.lanes import LocalStep, RankStream
from training.data.plan import StreamState
from training.schedule import ArmConfig, StageConfig

OpenStream = Callable[[ArmConfig], RankStream]


@dataclass(frozen=True)
class ArmStep:
    """A global step of a stage: its arm and this rank's share of its packs."""

    arm: ArmConfig
    local: LocalStep


class StageStream:
    """The steps of a stage, in order; the same for every number of ranks."""

    def __init__(self, stage: StageConfig, seed: int, open_stream: OpenStream) -> None:
        self._stage = stage
        self._seed = seed
        self._open_stream = open_stream
        self._streams: dict[str, RankStream] = {}
        self._resumed: dict[str, StreamState] = {}
        self.steps = 0
        """Global steps given out."""

    @property
    def states(self) -> dict[str, StreamState]:
        """Where each arm that has had a step stands."""
        return {**self._resumed, **{name: stream.state for name, stream in self._streams.items()}}

    def seek(self, steps: int, states: dict[str, StreamState]) -> None:
        """Go on after `steps` global steps, from `states` of any rank of any run of this stage."""
        assert not self._streams, "a stream is sought before its first step"
        self.steps = steps
        self._resumed = dict(states)

    def next_step(self) -> ArmStep:
        """The next global step."""
        arm = self._stage.arm_of(self.steps, self._seed)
        local = self.stream(arm).next_step()
        self.steps += 1
        return ArmStep(arm, local)

    def stream(self, arm: ArmConfig) -> RankStream:
        """The stream of an arm, opened and at its place."""
        if arm.name not in self._streams:
            stream = self._open_stream(arm)
            if arm.name in self._resumed:
                stream.seek(self._resumed[arm.name])
            self._streams[arm.name] = stream
        return self._streams[arm.name]

    def left_out(self) -> dict[str, int]:
        """Documents of the open streams that are never trained on, by reason."""
        total: dict[str, int] = {}
        for stream in self._streams.values():
            for reason, count in stream.left_out().items():
                total[reason] = total.get(reason, 0) + count
        return total

    def close(self) -> None:
        """Give back what the streams hold."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
