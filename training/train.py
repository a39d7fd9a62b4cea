"""The training run: corpus in, checkpoints and metrics out.

    deepspeed --num_gpus 8 --module training.train --conf conf/training/NAME.yaml --set data.corpus=DIR/corpus
    python -m training.train --conf demo --set data.corpus=DIR/corpus --set output=DIR/student

Run again, it goes on from the last checkpoint exactly where it stood (bit for bit on CPU with the same processes and
threads), and does nothing when the run is complete. Each step makes two small all-reduces: the span counts of the
global batch before the forward passes, the span losses after them.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from rich.console import Console

from etl import conf
from etl.config import Config
from etl.errors import DataError, StillhouseError
from etl.schema import SPAN_KINDS
from etl.storage.location import Location
from training import metrics
from training.checkpoint import CheckpointConfig, Checkpoints, TrainState
from training.data import decisions
from training.data.collate import Pack
from training.data.lanes import RankStream
from training.data.plan import LEFT_OUT, StreamConfig, first_decision
from training.data.reader import CorpusReader
from training.engine import (
    Engine,
    OptimizerConfig,
    StepSums,
    TrainingModule,
    World,
    read_deepspeed_json,
    world,
    zero_stage,
)
from training.evaluate import EvalConfig, HeldOut
from training.losses import span_ce
from training.metrics import Journal
from training.models.factory import ModelConfig, build_student


class TrainConfig(Config):
    """One training run."""

    data: StreamConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    output: str
    """Local folder (shared by all nodes) for checkpoints, metrics.jsonl and the decision log."""
    seed: int = 0
    max_steps: int = Field(ge=1)
    """Optimizer steps of the whole run; the learning rate decays over them."""
    max_supervised_tokens: int | None = Field(default=None, ge=1)
    """Stop at the step that reaches this many supervised tokens; null for no such limit."""
    span_weights: span_ce.SpanWeights = span_ce.SpanWeights()
    head_chunk_tokens: int = Field(default=128, ge=1)
    """Supervised tokens whose logits exist at a time (vocabulary x this x 4 bytes)."""
    deepspeed: str
    """A DeepSpeed JSON (path or URI): ZeRO stage, precision and communication; nothing else."""
    evaluate: EvalConfig | None = None
    """Held-out loss on the validation split; null for none."""
    checkpoint: CheckpointConfig = CheckpointConfig()


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. Losses are the span-weighted sums of mean losses in nats."""

    steps: int
    first_loss: float
    last_loss: float
    first_held_out: float | None
    last_held_out: float | None
    tokens: int
    supervised_tokens: int
    metrics: str
    checkpoint: str


@dataclass(frozen=True)
class StepReport:
    """What the caller of `train` is told after each optimizer step, the same on every rank."""

    step: int
    loss: float
    span_loss: dict[str, float]


def train(config: TrainConfig, on_step: Callable[[StepReport], None] = lambda _: None) -> TrainResult:
    """Train to the end, from the last checkpoint if there is one. Every process of the run calls it.

    Raises:
        ConfigError: the configuration contradicts itself, the processes or the run in `output`.
        DataError: the corpus is not committed, has no usable document, or the loss is no longer finite.
    """
    deepspeed_json = read_deepspeed_json(config.deepspeed)
    with world() as here:
        return _train(config, deepspeed_json, here, on_step)


def _train(
    config: TrainConfig, deepspeed_json: dict[str, Any], here: World, on_step: Callable[[StepReport], None]
) -> TrainResult:
    config.data.check_world(here.size)
    output = Path(config.output).expanduser().resolve()
    reader = CorpusReader(config.data.corpus, "train")
    decision = first_decision(config.data, config.seed, reader.parts)
    decisions.commit(Location.of(output / "decisions"), decision)
    stream = RankStream(reader, config.data, config.seed, decision, here.rank, here.size)
    identity = config.model.model_dump(mode="json")
    checkpoints = Checkpoints(output / "checkpoints", config.checkpoint, here, identity)
    tag = checkpoints.latest()
    state = TrainState(0, stream.state) if tag is None else checkpoints.read_state(tag, zero_stage(deepspeed_json))
    if not _complete(config, state):
        module = TrainingModule(build_student(config.model, config.seed), config.head_chunk_tokens)
        engine = Engine(module, config.optimizer, deepspeed_json, config.data.global_batch_packs // here.size)
        held_out = None if config.evaluate is None else HeldOut(config.data, config.evaluate, config.seed, here)
        if tag is not None:
            checkpoints.load(engine, tag)
            stream.seek(state.stream)
        with Journal(output / "metrics.jsonl", state.step, config.max_steps, here.rank == 0) as journal:
            state = Trainer(config, here, stream, engine, held_out, checkpoints, journal).run(state, on_step)
    assert state.first_loss is not None, "a state is saved after a step"
    assert state.last_loss is not None, "a state is saved after a step"
    return TrainResult(
        steps=state.step,
        first_loss=state.first_loss,
        last_loss=state.last_loss,
        first_held_out=state.first_held_out,
        last_held_out=state.last_held_out,
        tokens=state.tokens,
        supervised_tokens=state.supervised_tokens,
        metrics=str(output / "metrics.jsonl"),
        checkpoint=str(checkpoints.folder / f"step-{state.step:08d}"),
    )


def _complete(config: TrainConfig, state: TrainState) -> bool:
    enough = config.max_supervised_tokens is not None and state.supervised_tokens >= config.max_supervised_tokens
    return state.step >= config.max_steps or enough or state.exhausted


@dataclass(frozen=True)
class GlobalStep:
    """A global step: this rank's packs, and what all ranks together have."""

    packs: tuple[Pack, ...]
    counts: torch.Tensor
    """float64 [kinds]: supervised tokens."""
    num_tokens: int
    lanes_left: int
    """0 when the stream is over."""


class Trainer:
    """The loop of one process."""

    def __init__(
        self,
        config: TrainConfig,
        here: World,
        stream: RankStream,
        engine: Engine,
        held_out: HeldOut | None,
        checkpoints: Checkpoints,
        journal: Journal,
    ) -> None:
        self.config = config
        self.world = here
        self.stream = stream
        self.engine = engine
        self.held_out = held_out
        self.checkpoints = checkpoints
        self.journal = journal
        self.weights = config.span_weights.tensor()

    def run(self, state: TrainState, on_step: Callable[[StepReport], None]) -> TrainState:
        """Train from a state to the end of the run; the last state is saved."""
        if state.step == 0:
            self._report_left_out()
            state = self._evaluate(state)
        saved = state
        while not _complete(self.config, state):
            started = time.perf_counter()
            batch = self._next()
            if batch.lanes_left == 0:
                state = replace(state, exhausted=True)
                break
            if batch.counts.sum() > 0:
                state, report = self._step(state, batch, started)
                if self.config.evaluate is not None and state.step % self.config.evaluate.every_steps == 0:
                    state = self._evaluate(state)
                if state.step % self.config.checkpoint.every_steps == 0:
                    self.checkpoints.save(self.engine, state)
                    saved = state
                on_step(report)
        if state.step == 0:
            raise DataError(
                f"no document of {self.config.data.corpus} can be trained on ({self._left_out()}); "
                "see data.pack_tokens and the corpus's spans and sampling weights"
            )
        if self.config.evaluate is not None and state.step % self.config.evaluate.every_steps:
            state = self._evaluate(state)
        if state != saved:
            self.checkpoints.save(self.engine, state)
        return state

    def _next(self) -> GlobalStep:
        local = self.stream.next_step()
        counts = sum(pack.span_counts() for pack in local.packs)
        num_tokens = sum(pack.num_tokens for pack in local.packs)
        mine = torch.tensor([*np.asarray(counts), num_tokens, local.lanes_left], dtype=torch.float64)
        total = self.world.sum(mine)
        return GlobalStep(local.packs, total[:-2], int(total[-2]), int(total[-1]))

    def _step(self, state: TrainState, batch: GlobalStep, started: float) -> tuple[TrainState, StepReport]:
        """One optimizer step, its record, and the state after it."""
        learning_rate = self.config.optimizer.learning_rate(state.step, self.config.max_steps)
        coefficients = span_ce.coefficients(self.weights, batch.counts).to(self.world.device)
        packs = [pack.tensors(self.world.device) for pack in batch.packs]
        mine = self.engine.step(packs, coefficients, learning_rate)
        nll, router_load = self._sum(mine)
        loss = span_ce.span_ce(self.weights, nll, batch.counts)
        if not math.isfinite(loss):
            raise DataError(
                f"the loss is {loss} at step {state.step + 1} with learning rate {learning_rate:g}; "
                "lower optimizer.lr and go on from the last checkpoint"
            )
        report = StepReport(state.step + 1, loss, span_ce.means(nll, batch.counts))
        supervised = int(batch.counts.sum())
        seconds = time.perf_counter() - started
        self.journal.step(
            {
                "step": report.step,
                "loss": loss,
                "span_loss": report.span_loss,
                "span_tokens": dict(zip(SPAN_KINDS, batch.counts.int().tolist(), strict=True)),
                "lr": learning_rate,
                "grad_norm": self.engine.gradient_norm(),
                "tokens": batch.num_tokens,
                "supervised_tokens": supervised,
                "fill": batch.num_tokens / (self.config.data.global_batch_packs * self.config.data.pack_tokens),
                "seconds": seconds,
                "tokens_per_s": batch.num_tokens / seconds,
                "supervised_tokens_per_s": supervised / seconds,
                "router": metrics.router_metrics(router_load),
            }
        )
        after = replace(
            state,
            step=report.step,
            stream=self.stream.state,
            tokens=state.tokens + batch.num_tokens,
            supervised_tokens=state.supervised_tokens + supervised,
            first_loss=loss if state.first_loss is None else state.first_loss,
            last_loss=loss,
        )
        return after, report

    def _sum(self, mine: StepSums) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses and router load over all ranks, in one all-reduce."""
        flat = self.world.sum(torch.cat([mine.nll, mine.router_load.flatten().double()]))
        return flat[: len(SPAN_KINDS)], flat[len(SPAN_KINDS) :].reshape(mine.router_load.shape).long()

    def _evaluate(self, state: TrainState) -> TrainState:
        if self.held_out is None:
            return state
        nll, counts = self.held_out.losses(self.engine)
        loss = span_ce.span_ce(self.weights, nll, counts)
        self.journal.write({"step": state.step, "held_out": loss, "held_out_span_loss": span_ce.means(nll, counts)})
        first = loss if state.first_held_out is None else state.first_held_out
        return replace(state, first_held_out=first, last_held_out=loss)

    def _left_out(self) -> dict[str, int]:
        """Documents that are never trained on, by reason, over all ranks. Every rank must call it."""
        mine = self.stream.left_out()
        total = self.world.sum(torch.tensor([mine[reason] for reason in LEFT_OUT], dtype=torch.float64))
        return dict(zip(LEFT_OUT, total.int().tolist(), strict=True))

    def _report_left_out(self) -> None:
        self.journal.write({"step": 0, "left_out_documents": self._left_out()})


def main(argv: Sequence[str]) -> int:
    """Exit code: 0, or 2 for what the user can mend."""
    parser = argparse.ArgumentParser(prog="training.train", description="Train a student on a corpus.")
    parser.add_argument("--conf", required=True, help="training configuration: a shipped name, a path or a URI")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key")
    parser.add_argument("--local_rank", type=int, help="given by the deepspeed launcher; LOCAL_RANK is what counts")
    options = parser.parse_args(argv)
    try:
        result = train(conf.load(TrainConfig, options.conf, "training", options.set))
    except StillhouseError as error:
        Console(stderr=True, soft_wrap=True).print(f"{type(error).__name__}: {error}", markup=False, highlight=False)
        return 2
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(json.dumps(asdict(result)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
