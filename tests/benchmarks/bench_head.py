"""Peak memory and time of the LM head with its loss, forward and backward: in chunks against all logits at once.

    python -m tests.benchmarks.bench_head [--tokens 2048,8192] [--hidden 256] [--dtype bfloat16] [--threads 1]

Each row is a process of its own. `peak` is the high-water mark of its resident set from just before the forward pass
(VmHWM, reset there) to the end of the backward pass, over the resident set at that point, so the inputs and the modules
are not in it, and the gradient of the weight is. `ratio` is the processor time over that of all logits at once at the
same size. Linux only. Sizes that would need more than --naive-gib are not run the naive way. Prints, never gates.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import cross_entropy, kl_div

from training.losses.chunked_head import LmHead, RowLoss
from training.losses.divergences import DivergenceRows
from training.losses.token_nll import TokenNll

VOCAB_SIZE = 201_088
NAIVE_BYTES_PER_LOGIT = {"ce": 14, "preference": 14, "kl": 30, "jsd": 40}
"""What all logits at once take, roughly: to leave out what would not fit."""

LOSSES = ("ce", "preference", "kl", "jsd")
BETA = {"kl": 0.0, "jsd": 0.5}


@dataclass(frozen=True)
class Case:
    """One process's work."""

    loss: str
    """ce, preference (logits made again in the backward pass), kl or jsd (to a teacher of the same size)."""
    naive: bool
    tokens: int
    hidden: int
    vocab: int = VOCAB_SIZE
    dtype: str = "bfloat16"
    threads: int = 1


@dataclass(frozen=True)
class Measured:
    peak_bytes: int
    """Over what was resident before."""
    cpu_s: float
    """Processor time, user and system: what other programs do on the machine is not in it."""
    loss: float


def measure(case: Case) -> Measured:
    """Run a case in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_head", "--case", json.dumps(asdict(case))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(case.threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{case} failed with {done.returncode}:\n{done.stderr}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _run(case: Case) -> Measured:
    small = Case(case.loss, case.naive, tokens=4, hidden=8, vocab=32, dtype=case.dtype)
    _pass_of(small)()
    run = _pass_of(case)
    Path("/proc/self/clear_refs").write_text("5")
    base = _status("VmRSS")
    started = time.process_time()
    loss = run()
    return Measured(_status("VmHWM") - base, time.process_time() - started, loss)


def _pass_of(case: Case) -> Callable[[], float]:
    """Forward and backward pass of a case on random states; gradients are left where an optimizer would find them."""
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(0)
    hidden, teacher_hidden = (torch.randn(case.tokens, case.hidden, dtype=dtype, generator=generator) for _ in range(2))
    weight, teacher_weight = (
        nn.Parameter(torch.randn(case.vocab, case.hidden, dtype=dtype, generator=generator).mul_(0.05))
        for _ in range(2)
    )
    targets = torch.randint(case.vocab, (case.tokens,), generator=generator)
    hidden.requires_grad_()
    coefficients = torch.full((case.tokens,), 1 / case.tokens, dtype=torch.float64)
    head = LmHead(weight)

    def chunked() -> torch.Tensor:
        if case.loss == "preference":
            return head(hidden, TokenNll(targets, None))[1].mean()
        row_loss: RowLoss = TokenNll(targets, coefficients)
        if case.loss in BETA:
            teacher = teacher_hidden, teacher_weight.detach()
            row_loss = DivergenceRows(*teacher, coefficients, BETA[case.loss], 1.0, case.vocab)
        return head(hidden, row_loss)[0]

    def naive() -> torch.Tensor:
        logits = (hidden @ weight.T).float()
        if case.loss not in BETA:
            return cross_entropy(logits, targets)
        log_s, log_t = logits.log_softmax(-1), (teacher_hidden @ weight.detach().T).float().log_softmax(-1)
        if case.loss == "kl":
            return kl_div(log_s, log_t, log_target=True, reduction="batchmean")
        middle = torch.logaddexp(log_s, log_t) - torch.tensor(2.0).log()
        halves = [kl_div(middle, side, log_target=True, reduction="batchmean") for side in (log_s, log_t)]
        return (halves[0] + halves[1]) / 2

    def run() -> float:
        loss = naive() if case.naive else chunked()
        loss.backward()
        return float(loss.detach())

    return run


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench_head", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", default="2048,8192")
    parser.add_argument("--losses", default=",".join(LOSSES))
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=VOCAB_SIZE)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--naive-gib", type=float, default=8)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.case:
        sys.stdout.write(json.dumps(asdict(_run(Case(**json.loads(options.case))))) + "\n")
        return
    table = Table("loss", "tokens", "head", "peak GiB", "CPU s", "ratio", "value")
    for loss in options.losses.split(","):
        for tokens in map(int, options.tokens.split(",")):
            common = (tokens, options.hidden, options.vocab, options.dtype, options.threads)
            ours = measure(Case(loss, False, *common))
            ratio = ""
            if (
                tokens * options.vocab * NAIVE_BYTES_PER_LOGIT["kl" if loss in BETA else "ce"]
                <= options.naive_gib * 2**30
            ):
                naive = measure(Case(loss, True, *common))
                table.add_row(loss, str(tokens), "naive", *_cells(naive), "1", f"{naive.loss:.5f}")
                ratio = f"{ours.cpu_s / naive.cpu_s:.2f}"
            table.add_row(loss, str(tokens), "chunked", *_cells(ours), ratio, f"{ours.loss:.5f}")
    Console().print(table)


def _cells(found: Measured) -> tuple[str, str]:
    return f"{found.peak_bytes / 2**30:.2f}", f"{found.cpu_s:.1f}"


if __name__ == "__main__":
    main(sys.argv[1:])
