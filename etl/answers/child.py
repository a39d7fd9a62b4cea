"""The process that compares answers: it reads pairs as lines of JSON and writes a verdict for each.

    python -m etl.answers.child CPU_SECONDS MEMORY_BYTES
    > ["0.5", "\\\\frac12"]
    < ["equal", ""]

It enforces its own limits: SIGPROF ends the process if a pair takes too much CPU time, whatever it is computing, and
memory beyond the limit is a MemoryError. So the parent needs no signals and no threads. An orphan ends by itself.
The first line is ["ready", ""], or reports what could not be imported. Starting costs 0.7 CPU-seconds and 60 MB, a pair
1 to 200 ms.
"""

import json
import logging
import os
import resource
import select
import signal
import sys
from typing import Final

_LOOK_S: Final = 10.0
"""Seconds between two checks that the parent is alive."""


def main() -> None:
    """Answer until stdin ends or the parent is gone."""
    parent = os.getppid()
    cpu_s, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    # Output of libraries (antlr reports its version) must not mix with the verdicts.
    out = os.fdopen(os.dup(1), "w", buffering=1, encoding="ascii")
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        from etl.answers.compare import compare
    except ImportError as error:
        out.write(json.dumps(["missing", str(error)]) + "\n")
        return
    out.write('["ready", ""]\n')
    stdin = sys.stdin.buffer
    while True:
        while not select.select([stdin], [], [], _LOOK_S)[0]:
            if os.getppid() != parent:
                return
        line = stdin.readline()
        if not line:
            return
        answer, expected = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        try:
            verdict = tuple(compare(answer, expected))
        except MemoryError:
            verdict = ("unparseable", "memory")
        except RecursionError:
            verdict = ("unparseable", "depth")
        signal.setitimer(signal.ITIMER_PROF, 0)
        out.write(json.dumps(verdict) + "\n")


if __name__ == "__main__":
    main()
