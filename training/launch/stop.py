"""A rank's request to stop, from a signal. Set by a handler, checked by the trainer once per step.

A scheduler may signal every process of a job (Slurm and systemd do), and the supervisor passes its own signal on, so a
rank under a supervisor gets the same request twice. It ignores all but the first: the supervisor kills those that are
to end at once. Without a supervisor a second signal does that.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

SUPERVISED = "STILLHOUSE_SUPERVISED"
"""Environment variable of the ranks of a supervisor."""
_STOPPING = "stopping: the step at work is finished and saved; Ctrl-C again ends the run at once, without saving\n"


class Stop:
    """In a rank: set by SIGTERM or SIGINT, asked once a step.

    The trainer all-reduces the flag, so that all ranks stop after the same step even if only one got the signal.
    """

    def __init__(self) -> None:
        self.number = 0
        """Of the signal that has come; 0 while none has."""

    @property
    def is_set(self) -> bool:
        """Whether a signal has come."""
        return self.number != 0

    @contextlib.contextmanager
    def listening(self) -> Iterator["Stop"]:
        """While inside; only in the main thread.

        A second signal ends a process without a supervisor at once, whatever it is at: Python's own handler for Ctrl-C
        would wait until a collective or a kernel returns. A rank of a supervisor ignores it, also after this.
        """
        numbers = (signal.SIGTERM, signal.SIGINT)
        is_supervised = SUPERVISED in os.environ
        before = {number: signal.getsignal(number) for number in numbers}

        def on_signal(number: int, frame: FrameType | None) -> None:
            self.number = number
            for each in numbers:
                signal.signal(each, signal.SIG_IGN if is_supervised else signal.SIG_DFL)
            if sys.stderr.isatty():
                # Below the line that moves.
                os.write(2, f"\n{_STOPPING}".encode())

        for number in numbers:
            signal.signal(number, on_signal)
        try:
            yield self
        finally:
            if not (is_supervised and self.is_set):
                for number in numbers:
                    signal.signal(number, before[number])
