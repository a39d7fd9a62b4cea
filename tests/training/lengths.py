"""Made-up lengths of documents, and how full packs of them are."""

import time
from bisect import bisect_left, insort

import numpy as np

from etl.arrays import I64
from training.data.stream.packing import once, pack

SIZE = 8000
LOOKAHEAD = 1024


def bucket(generator: np.random.Generator, number: int) -> I64:
    """Spread evenly over a context bucket (0 is C1), from half its top on."""
    top = 4096 << number
    return generator.integers(top // 2 + 1, top + 1, SIZE)


def seed_mix(generator: np.random.Generator) -> I64:
    """80 / 13 / 6 / 1 % of the tokens in the four context buckets."""
    of_tokens = np.array([0.80, 0.13, 0.06, 0.01]) / (3072 << np.arange(4))
    top = 4096 << generator.choice(4, SIZE, p=of_tokens / of_tokens.sum())
    return generator.integers(top // 2 + 1, top + 1)


def log_normal(generator: np.random.Generator) -> I64:
    """Short documents and a long tail, 256 to 8,192."""
    return np.exp(generator.normal(6.9, 0.8, SIZE)).clip(256, 8192).astype(np.int64)


def efficiency(lengths: I64, capacity: int) -> float:
    """Share of the room in packs that is tokens, the last packs included."""
    return float(lengths.sum() / (num_packs(lengths, capacity)[0] * capacity))


def num_packs(lengths: I64, capacity: int) -> tuple[int, float]:
    """Packs of the look-ahead packer, and CPU-microseconds a pack."""
    start = time.process_time()
    count = sum(1 for _ in pack(iter([once(np.arange(len(lengths)))]), lengths, capacity, LOOKAHEAD))
    return count, (time.process_time() - start) / count * 1e6


def best_fit_decreasing(lengths: I64, capacity: int) -> float:
    """The same share for whole-set best-fit-decreasing."""
    rooms: list[int] = []
    count = 0
    for length in np.sort(lengths)[::-1].tolist():
        place = bisect_left(rooms, length)
        if place == len(rooms):
            count += 1
            room = capacity
        else:
            room = rooms.pop(place)
        insort(rooms, room - length)
    return float(lengths.sum() / (count * capacity))
