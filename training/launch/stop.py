"""The request to stop that a rank gets as a signal. Set by a handler, asked by the trainer once a step."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Stop:
    """In a rank: set by SIGTERM or SIGINT, asked once a step. A second signal acts as it would without this.

    The trainer all-reduces the flag, so that all ranks stop after the same step even if one of them alone was told.
    """

    def __init__(self) -> None:
        self.is_set = False

    @contextlib.contextmanager
    def listening(self) -> Iterator["Stop"]:
        """While inside; only in the main thread."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.getsignal(number) for number in numbers}

        def on_signal(number: int, frame: FrameType | None) -> None:
            self.is_set = True
            for each in numbers:
                signal.signal(each, before[each])

        for number in numbers:
            signal.signal(number, on_signal)
        try:
            yield self
        finally:
            for number in numbers:
                signal.signal(number, before[number])
