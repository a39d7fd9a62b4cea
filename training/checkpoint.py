"""Checkpoints: weights, optimizer, place in the stream, random states and totals as one unit, made visible last.

    checkpoints/step-00000040/   DeepSpeed's files, rng-<rank>.pt, train_state.json
    checkpoints/latest           the name of the last whole one, replaced atomically

A kill at any moment leaves `latest` at a whole checkpoint. client_state carries `universal_checkpoint_info`, so
DeepSpeed's ds_to_universal can convert one for another number of processes.
"""

import json
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from etl.config import Config
from etl.errors import ConfigError, DataError
from etl.storage.location import Location
from training.data.plan import StreamState
from training.engine import Engine, World


class CheckpointConfig(Config):
    """When to save and how many to keep; the end of training is always saved."""

    every_steps: int = Field(default=100, ge=1)
    keep: int = Field(default=2, ge=1)


@dataclass(frozen=True)
class TrainState:
    """Everything of a run that is not a tensor."""

    step: int
    """Optimizer steps taken."""
    stream: StreamState
    tokens: int = 0
    supervised_tokens: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    first_held_out: float | None = None
    last_held_out: float | None = None
    exhausted: bool = False
    """The stream is over."""


class Checkpoints:
    """The checkpoints of one run; every rank makes the same calls."""

    def __init__(self, folder: Path, config: CheckpointConfig, world: World, identity: dict[str, Any]) -> None:
        """`identity` is what a checkpoint must share with the run that loads it (the student's configuration)."""
        self.folder = folder
        self.config = config
        self.world = world
        self.identity = json.loads(json.dumps(identity))

    def latest(self) -> str | None:
        """Name of the last whole checkpoint."""
        pointer = self.folder / "latest"
        return pointer.read_text().strip() if pointer.exists() else None

    def read_state(self, tag: str, zero_stage: int) -> TrainState:
        """The state in a checkpoint, before any tensor is loaded.

        Raises:
            DataError: the checkpoint is incomplete.
            ConfigError: it is of another student, ZeRO stage or number of processes.
        """
        path = self.folder / tag / "train_state.json"
        if not path.exists():
            raise DataError(f"{path} is gone; write the name of a whole checkpoint into {self.folder / 'latest'}")
        found = json.loads(path.read_text())
        if found["identity"] != self.identity:
            raise ConfigError(
                f"the checkpoint {self.folder / tag} holds {found['identity']}, the configuration says "
                f"{self.identity}; give this run another `output`"
            )
        if found["zero_stage"] != zero_stage or (zero_stage > 0 and found["world"] != self.world.size):
            raise ConfigError(
                f"the checkpoint {self.folder / tag} was written by {found['world']} processes at ZeRO stage "
                f"{found['zero_stage']}, this run has {self.world.size} at stage {zero_stage}; run it as it was"
            )
        state = found["state"]
        return TrainState(**{**state, "stream": StreamState(**state["stream"])})

    def save(self, engine: Engine, state: TrainState) -> None:
        """Write a checkpoint, point `latest` at it, remove the ones that are no longer kept."""
        tag = f"step-{state.step:08d}"
        target = self.folder / tag
        if self.world.rank == 0:
            shutil.rmtree(target, ignore_errors=True)
        self.world.barrier()
        engine.deepspeed.save_checkpoint(
            str(self.folder),
            tag=tag,
            client_state={"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}},
            save_latest=False,
        )
        torch.save(_random_states(), target / f"rng-{self.world.rank}.pt")
        self.world.barrier()
        if self.world.rank == 0:
            body = {
                "state": asdict(state),
                "identity": self.identity,
                "zero_stage": engine.stage,
                "world": self.world.size,
            }
            (target / "train_state.json").write_text(json.dumps(body, indent=1) + "\n")
            Location.of(self.folder / "latest").replace((tag + "\n").encode())
            self._remove_all_but_the_newest(tag)
        self.world.barrier()

    def _remove_all_but_the_newest(self, tag: str) -> None:
        """Folders beyond `tag` are what a killed run half wrote."""
        names = sorted(path.name for path in self.folder.glob("step-*"))
        kept = [name for name in names if name <= tag][-self.config.keep :]
        for name in set(names) - set(kept):
            shutil.rmtree(self.folder / name)

    def load(self, engine: Engine, tag: str) -> None:
        """Weights, optimizer and this rank's random states."""
        engine.deepspeed.load_checkpoint(str(self.folder), tag=tag)
        _set_random_states(torch.load(self.folder / tag / f"rng-{self.world.rank}.pt", weights_only=False))


def _random_states() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002  # libraries draw from the global generator
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002  # as above
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"])
