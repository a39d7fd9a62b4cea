"""One SHA-256 of the global token stream, which ranks, workers and resume points must never change.

All ranks run in this process, step by step, so memory is that of one segment or two over all ranks (4 bytes a token of
each), whatever the number of steps.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import numpy as np

from training.data.stream.stream import Stream

if TYPE_CHECKING:
    from training.data.collate import Pack


OpenStream = Callable[[int, int], Stream]
"""Opens the stream of (rank, world), at its start."""


def stream_digest(open_stream: OpenStream, world: int, steps: int, resume_at: int | None = None) -> str:
    """The digest of the first global steps, fewer where the stream ends before.

    For each pack with documents, in the order of steps and of slots inside a step: number of the step, number of the
    slot, its tokens, then their ids (int32), positions (int32) and span kinds of the targets (int8), little-endian.

    Args:
        open_stream: called once a rank, and once more after a resume.
        world: number of ranks.
        steps: global steps to cover.
        resume_at: after so many steps all streams are closed, opened again and sought to the state of rank 0.
    """
    digest = hashlib.sha256()
    first = steps if resume_at is None else min(resume_at, steps)
    state = _run(open_stream, world, range(first), None, digest)
    if first < steps:
        _run(open_stream, world, range(first, steps), state, digest)
    return digest.hexdigest()


def _run(open_stream: OpenStream, world: int, steps: range, state: Any, digest: "hashlib._Hash") -> Any:
    """Take some steps from a state (None: from the start), and return the state after them."""
    with ExitStack() as stack:
        streams = [stack.enter_context(closing(open_stream(rank, world))) for rank in range(world)]
        for stream in streams:
            if state is not None:
                stream.seek(state)
        for step in steps:
            if not _take(streams, step, digest):
                break
        return streams[0].state


def _take(streams: Sequence[Stream], step: int, digest: "hashlib._Hash") -> bool:
    """Add one global step; False when the stream is over."""
    found: list[tuple[int, Pack]] = []
    lanes_left = 0
    for stream in streams:
        local = stream.next_step()
        lanes_left += local.lanes_left
        found += zip(local.slots, local.packs, strict=True)
    for slot, pack in sorted(found, key=lambda item: item[0]):
        if pack.num_tokens:
            used = slice(0, pack.num_tokens)
            digest.update(np.array([step, slot, pack.num_tokens], "<i8").tobytes())
            digest.update(pack.input_ids[used].astype("<i4").tobytes())
            digest.update(pack.position_ids[used].astype("<i4").tobytes())
            digest.update(pack.target_kind[used].astype("<i1").tobytes())
    return lanes_left > 0
