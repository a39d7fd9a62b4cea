"""Checkpoints of a run on any store: weights, optimizer, random states and the run's own state as one unit.

    ROOT/step-00000040-019a9f3c21d0/<files of all ranks>     DeepSpeed's, and rng-<rank>.pt
    ROOT/step-00000040-019a9f3c21d0/_receipts/<rank>.json    names, bytes and SHA-256 of a rank's files; create-only
    ROOT/step-00000040-019a9f3c21d0/manifest.json            all receipts and the state; last, create-only

A rank writes its files into scratch on its own machine and continues to train; a thread uploads them and writes a
receipt. Rank 0's thread writes the manifest when all receipts are there. A kill at any moment leaves the last complete
checkpoint intact. At most one checkpoint is being uploaded: the next save waits for it. Training only pauses for the
write to scratch. Scratch holds one checkpoint of this machine's ranks, or two while the store fails; after a resume it
also holds the downloaded or converted files, until the next checkpoint is complete.
"""

import contextlib
import json
import logging
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from etl.errors import ConfigError, DataError, SourceError
from etl.hashing import xxh64
from etl.storage.location import Location
from training.checkpoint import tensors_only, universal
from training.checkpoint.config import CheckpointConfig
from training.checkpoint.store import (
    CheckpointManifest,
    Commit,
    Retention,
    Upload,
    check,
    complete_tags,
    download,
    new_tag,
    read_manifest,
)
from training.checkpoint.universal import ShardLayout
from training.engine.engine import Engine
from training.launch.world import World

_SAVES, _LOADS, _UNIVERSAL = "saves", "loads", "universal"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    tag: str
    manifest: CheckpointManifest

    @property
    def payload(self) -> dict[str, Any]:
        """The run's state as it was passed to `save`."""
        return self.manifest.payload

    @property
    def world(self) -> int:
        """Ranks that wrote it."""
        return self.manifest.layout.world

    @property
    def zero_stage(self) -> int:
        return self.manifest.layout.zero_stage


class Checkpoints:
    """The checkpoints of one run. Every rank makes the same calls in the same order."""

    def __init__(
        self, root: Location, scratch: Path, config: CheckpointConfig, world: World, identity: dict[str, Any]
    ) -> None:
        """Open a root to which only this run writes.

        Args:
            root: where checkpoints are kept.
            scratch: folder on a local disk; the ranks of one machine share it.
            config: what to keep and how long to wait.
            world: this process among those of the run.
            identity: what a checkpoint must share with the run that loads it (JSON types), such as the student.
        """
        self.root = root
        self.scratch = scratch
        self.config = config
        self.world = world
        self.identity = json.loads(json.dumps(identity))
        self.failures = 0
        """Checkpoints that did not reach the store."""
        self._upload: Upload | None = None

    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint, the same on every rank.

        Raises:
            ConfigError: it is of another identity, or there is no such store.
            DataError: its manifest is damaged.
            SourceError: the store does not answer.
        """
        found = self.world.from_rank_0(self._newest)
        if found is not None and found.manifest.identity != self.identity:
            raise ConfigError(
                f"the checkpoint {self.root / found.tag} is of {found.manifest.identity}, but the configuration is "
                f"{self.identity}; give this run another `output`"
            )
        return found

    def _newest(self) -> Checkpoint | None:
        tags = complete_tags(self.root)
        if not tags:
            self.root.check_bucket()
            return None
        return Checkpoint(tags[-1], read_manifest(self.root / tags[-1]))

    def save(self, engine: Engine, payload: dict[str, Any], score: float | None = None) -> None:
        """Write a checkpoint to scratch and begin its upload, once the upload of the previous one has ended.

        A failed upload is logged and counted, and training continues. The last complete checkpoint and the files in
        scratch are kept.

        Args:
            engine: its `deepspeed` is saved.
            payload: the run's state in JSON types; its `step` (int) names the checkpoint. The same on every rank.
            score: held-out loss, lower is better; None if there is none.

        Raises:
            DataError: scratch cannot be written.
        """
        failure = self._finish()
        if failure is not None and self.world.rank == 0:
            _log.warning("%s; training continues", failure)
        tag = self.world.from_rank_0(lambda: new_tag(payload["step"]))
        files = self._write(engine, tag)
        manifest = CheckpointManifest(
            step=payload["step"],
            payload=payload,
            score=score,
            identity=self.identity,
            layout=ShardLayout.of(engine.deepspeed),
            optimizer=universal.optimizer_name(engine.deepspeed),
            receipts=(),
        )
        retention = Retention(self.config.keep, self.config.keep_best)
        commit = Commit(manifest, retention, self.config.commit_timeout_s) if self.world.rank == 0 else None
        self._upload = Upload(self.root, tag, files, self.world.rank, commit)

    def _write(self, engine: Engine, tag: str) -> Path:
        """Write this rank's files into a folder of its own in scratch."""
        own = self.scratch / _SAVES / tag / f"rank-{self.world.rank:05d}"
        names = universal.parameter_names(engine.deepspeed)
        try:
            (own / tag).mkdir(parents=True)
            engine.deepspeed.save_checkpoint(
                str(own), tag=tag, client_state={universal.NAMES_KEY: names}, save_latest=False
            )
            torch.save(_random_states(), own / tag / _random_file(self.world.rank))
        # torch raises RuntimeError when a disk is full.
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"cannot write a checkpoint to {own}: {error}; free some space or set checkpoint.scratch"
            ) from error
        return own / tag

    def wait(self) -> None:
        """Wait until the last checkpoint is complete; call it before a rank exits.

        Raises:
            SourceError: it did not reach the store.
        """
        failure = self._finish()
        if failure is not None:
            raise SourceError(f"{failure}; run again to resume from the newest complete one in {self.root}")

    def _finish(self) -> str | None:
        """End the upload on all ranks. Each gets None if the checkpoint is complete, or the reason why it is not."""
        if self._upload is None:
            return None
        upload, self._upload = self._upload, None
        has_files = self._all(upload.wait_for_files())
        if not has_files:
            upload.give_up()
        is_complete = self._all(upload.wait_for_end()) and has_files
        # No rank writes now: none leaves this function before all are through the last collective below.
        self._clear_scratch(None if is_complete else upload.tag)
        reasons: list[str | None] = [None] * self.world.size
        torch.distributed.all_gather_object(reasons, None if upload.error is None else str(upload.error))
        if is_complete:
            return None
        self.failures += 1
        told = "; ".join(f"rank {rank}: {reason}" for rank, reason in enumerate(reasons) if reason is not None)
        return f"the checkpoint {upload.tag} is not complete ({told}); its files are kept in {self.scratch / _SAVES}"

    def _all(self, is_well: bool) -> bool:
        return float(self.world.sum(torch.tensor([float(not is_well)], dtype=torch.float64))) == 0.0

    def _clear_scratch(self, tag: str | None) -> None:
        """Remove everything but the files of the checkpoint `tag`. All ranks of a machine may do so at once."""
        if tag is None:
            for name in (_LOADS, _UNIVERSAL):
                shutil.rmtree(self.scratch / name, ignore_errors=True)
        for path in (self.scratch / _SAVES).glob("*"):
            if path.name != tag:
                shutil.rmtree(path, ignore_errors=True)

    def load(self, engine: Engine, found: Checkpoint, seed: int) -> None:
        """Load weights, optimizer and random states; hyperparameters are kept as the engine has them.

        Equal layouts load DeepSpeed's files as they are, bit for bit. Others are converted into scratch, once a
        machine. Random states are restored for the same number of ranks, and otherwise seeded again
        (`seed_generators`).

        Args:
            engine: a fresh one.
            found: what `newest` returned.
            seed: of the run.

        Raises:
            ConfigError: the layout differs and the optimizer is not AdamW, or the parameters are not the engine's.
            DataError: a file is missing, damaged, or not what the manifest says.
        """
        rank = self.world.rank
        with _same_hyperparameters(engine):
            if found.manifest.layout == ShardLayout.of(engine.deepspeed):
                folder = self._local_files(found, {0, rank})
                with tensors_only.tensors_only():
                    engine.deepspeed.load_checkpoint(str(folder.parent), tag=found.tag)
            else:
                universal.check_optimizer(found.manifest.optimizer)
                universal.load(engine.deepspeed, self._universal(found))
        if found.world == self.world.size:
            file = self._local_files(found, {rank}) / _random_file(rank)
            _set_random_states(tensors_only.load(file))
        else:
            seed_generators(seed, found.manifest.step, rank)
        self.world.barrier()

    def _universal(self, found: Checkpoint) -> Path:
        """The converted checkpoint, made by the first rank of this machine that gets here."""
        folder = self.scratch / _UNIVERSAL / found.tag
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / universal.INDEX).exists():
                files = self._local_files(found, set(range(found.world)))
                universal.convert(files, found.manifest.layout, folder)
        return folder

    def _local_files(self, found: Checkpoint, ranks: set[int]) -> Path:
        """A local folder named after the checkpoint with the files that these ranks wrote, each one verified."""
        source = self.root / found.tag
        files = [file for receipt in found.manifest.receipts if receipt.rank in ranks for file in receipt.files]
        if source.is_local:
            for file in files:
                check(source / file.name, file)
            return Path(source.path)
        folder = self.scratch / _LOADS / found.tag
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            with FileLock(f"{folder}-{file.name}.lock"):
                if not (folder / file.name).exists():
                    download(source / file.name, file, folder / file.name)
        return folder


@contextlib.contextmanager
def _same_hyperparameters(engine: Engine) -> Iterator[None]:
    """A checkpoint also contains rates and decays; those of the configuration override them."""
    chosen = [{key: value for key, value in group.items() if key != "params"} for group in _groups(engine)]
    yield
    for group, values in zip(_groups(engine), chosen, strict=True):
        group.update(values)


def _groups(engine: Engine) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = engine.deepspeed.optimizer.param_groups
    return groups


def _random_file(rank: int) -> str:
    return f"rng-{rank:05d}.pt"


def _random_states() -> dict[str, Any]:
    """Random states as tensors and plain values, so that they can be read as data."""
    states: Any = np.random.get_state()  # noqa: NPY002  # libraries draw from the global generator
    kind, key, *more = states
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(key.astype(np.int64)), *more),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    kind, key, *more = states["numpy"]
    np.random.set_state((kind, np.asarray(key).astype(np.uint32), *more))  # noqa: NPY002  # as above
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def seed_generators(seed: int, step: int, rank: int) -> None:
    """Seed Python's, numpy's and torch's generators of this process, as a function of the three numbers."""
    value = xxh64(f"{seed}/{step}/{rank}".encode())
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002  # as above
    torch.manual_seed(value)
