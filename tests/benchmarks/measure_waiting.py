"""How much a busy neighbour slows a training step, by how OpenMP's threads wait. Prints ratios, never gates.

    python -m tests.benchmarks.measure_waiting [--rounds 12] [--steps 4] [--waiting passive,spin=1000]

A neighbour is a process that counts for ever, one for each core. For each way of waiting a process holds the demo's
student. All take turns, a few optimizer steps at a time, each way once in every round, first without neighbours and
then with them, so that other load on the machine affects all alike. Prints medians over the rounds of milliseconds a
step and of the ratio to `default`, which is what the library does by itself.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

WAITING = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "spin=1000": {"GOMP_SPINCOUNT": "1000"},
    "spin=10000": {"GOMP_SPINCOUNT": "10000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
TOKENS = 1024
SUPERVISED = 256


def _serve() -> None:
    """Take a number of steps for each line of stdin, and answer with the seconds that they took."""
    import torch
    from torch.nn.functional import cross_entropy

    from etl import conf
    from training.config import TrainConfig
    from training.models.factory import build_student

    student = build_student(conf.load(TrainConfig, "demo", "training", []).model, 0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(200_000, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    positions, borders = torch.arange(TOKENS)[None], torch.tensor([0, TOKENS], dtype=torch.int32)

    def step() -> None:
        hidden, _ = student(ids, positions, borders)
        logits = hidden[:SUPERVISED] @ student.lm_head.weight.T
        cross_entropy(logits, ids[0, 1 : SUPERVISED + 1]).backward()
        optimizer.step()
        optimizer.zero_grad()

    for line in sys.stdin:
        started = time.perf_counter()
        for _ in range(int(line)):
            step()
        sys.stdout.write(f"{time.perf_counter() - started}\n")
        sys.stdout.flush()


class _Trainer:
    """A process that takes steps when it is asked to."""

    def __init__(self, waiting: dict[str, str]) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in NAMES}
        # The default remains the library's own where the package would choose another.
        own = waiting or {"GOMP_SPINCOUNT": ""}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.measure_waiting", "--serve"],
            env={**kept, **own},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def seconds(self, steps: int) -> float:
        """Of this many steps."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@contextlib.contextmanager
def _neighbours(num: int) -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="See the docstring of this file.")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=4, help="in each turn")
    parser.add_argument("--waiting", default="passive", help=f"of {', '.join(WAITING)}; default is always there")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        _serve()
        return
    ways = ["default", *given.waiting.split(",")]
    with contextlib.ExitStack() as stack:
        trainers = {way: stack.enter_context(contextlib.closing(_Trainer(WAITING[way]))) for way in ways}
        for trainer in trainers.values():
            trainer.seconds(2)
        for neighbours in (0, len(os.sched_getaffinity(0))):
            with _neighbours(neighbours):
                rounds = [{way: t.seconds(given.steps) for way, t in trainers.items()} for _ in range(given.rounds)]
            for way in ways:
                ms = 1000 * statistics.median(found[way] for found in rounds) / given.steps
                ratio = statistics.median(found[way] / found["default"] for found in rounds)
                sys.stdout.write(f"{neighbours} neighbours  {way:>12}  {ms:8.1f} ms a step  {ratio:5.2f} of default\n")


if __name__ == "__main__":
    main()
