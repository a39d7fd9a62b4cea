"""Seeded samples: pinned values, nesting, the size that the fraction says, independence of purposes."""

import numpy as np
import pyarrow as pa
import xxhash

from etl.mixture.sampling import in_sample, purpose_seed

IDS = pa.array([np.uint64(i).tobytes() * 2 for i in range(20_000)], pa.binary(16))


def flags(seed, fraction):
    return in_sample(IDS, seed, fraction).to_numpy(zero_copy_only=False)


def test_a_row_is_taken_when_its_hash_is_below_the_fraction():
    hashes = [xxhash.xxh64_intdigest(i, 7) for i in IDS[:50].to_pylist()]
    assert in_sample(IDS[:50], 7, 0.3).to_pylist() == [(h >> 11) / 2**53 < 0.3 for h in hashes]


def test_ends_of_the_range():
    assert not flags(1, 0.0).any()
    assert flags(1, 1.0).all()


def test_a_smaller_sample_lies_inside_a_larger_one():
    small, large = flags(3, 0.1), flags(3, 0.4)
    assert not (small & ~large).any()
    # Six standard deviations of a binomial.
    assert abs(small.mean() - 0.1) < 6 * np.sqrt(0.09 / len(IDS))
    assert abs(large.mean() - 0.4) < 6 * np.sqrt(0.24 / len(IDS))


def test_samples_of_two_purposes_are_independent():
    one, other = flags(purpose_seed("kenlm", 0), 0.3), flags(purpose_seed("ifd", 0), 0.3)
    assert abs((one & other).mean() - 0.09) < 6 * np.sqrt(0.09 / len(IDS))


def test_slices_give_the_same_rows():
    assert in_sample(IDS.slice(100, 60), 5, 0.5).to_pylist() == flags(5, 0.5)[100:160].tolist()
