"""The trainer in a process of its own that gets SIGKILL, or another signal, at a chosen moment of its work.

A moment is a call of one of SITES, counted from the start of the process, and a delay after that call began; the
process kills itself, so no moment is missed however busy the machine is.
"""

import importlib
import os
import random
import signal
import threading
from dataclasses import dataclass

from tests.training import forked

SITES = {
    "build": ("training.train", "build_student", 1),
    "load": ("training.checkpoint.checkpoints", "Checkpoints.load", 1),
    "draw": ("training.stages.stream", "StageStream.next_step", 4),
    "step": ("training.engine.engine", "Engine._go_back", 4),
    "update": ("training.engine.engine", "Engine._update", 4),
    "record": ("training.record.journal", "JsonLines.write", 6),
    "evaluate": ("training.engine.engine", "Engine.evaluate", 2),
    "write": ("training.checkpoint.checkpoints", "Checkpoints._write", 2),
    "upload": ("training.checkpoint.store", "_put", 6),
    "commit": ("training.checkpoint.store", "_create", 4),
    "retain": ("training.checkpoint.store", "retain", 2),
    "remove": ("etl.storage.location", "Location.remove_tree", 1),
}
"""Where the trainer is killed: module, function, and the latest call that is chosen. None lies more than STEPS steps
after the start, if so many are left."""
STEPS = 8
LONGEST_DELAY_S = 0.05
"""About a step."""


@dataclass(frozen=True)
class Moment:
    site: str
    call: int
    """From 1."""
    delay_s: float = 0.0
    signals: tuple[int, ...] = (signal.SIGKILL,)
    """Sent one after the other."""


def moments(seed, num):
    """Random ones, all sites before any a second time."""
    generator = random.Random(seed)
    sites = [site for _ in range(num) for site in generator.sample(sorted(SITES), len(SITES))][:num]
    delays = [generator.choice([0.0, generator.uniform(0, LONGEST_DELAY_S)]) for _ in sites]
    return [
        Moment(site, generator.randint(1, SITES[site][2]), delay) for site, delay in zip(sites, delays, strict=True)
    ]


def train_until(arguments, moment=None, said=None):
    """Exit code of the trainer with these arguments, -n where a signal has ended it; its output goes to `said`."""
    process = forked.begin(main, arguments, moment, said=said)
    process.join()
    return process.exitcode


def main(arguments, moment=None):
    """The trainer's, in this process, which the moment ends."""
    from training import train

    if moment is not None:
        _arm(moment)
    return train.main(arguments)


def _arm(moment):
    """Wrap the site."""
    module, path, _ = SITES[moment.site]
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    function = getattr(owner, name)
    calls = 0

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == moment.call:
            if moment.delay_s == 0:
                _send(moment.signals)
            else:
                timer = threading.Timer(moment.delay_s, _send, [moment.signals])
                timer.daemon = True
                timer.start()
        return function(*args, **kwargs)

    setattr(owner, name, counted)


def _send(signals):
    for number in signals:
        os.kill(os.getpid(), number)
