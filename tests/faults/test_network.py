"""A build on S3 while the network or the store fails: it succeeds, or stops with one clear error and is run again.

Requests are throttled, not answered, or cut off before or after the server acted, for every operation of S3 that a
build uses. Afterwards: equal manifest, nothing doubled or lost. Waits between tries are cut short here; a fault costs
0.3 s, an answer that does not come 1 s.
"""

import itertools
import re
from collections import Counter
from dataclasses import dataclass

import pytest

from etl.errors import StillhouseError
from etl.storage import retry
from etl.storage.dataset import MANIFEST
from etl.storage.location import Location
from etl.storage.verify import verify
from tests.faults.readers import wrong_rows
from tests.faults.toybuilds import ROWS, Shape
from tests.services.proxy import Fault, Harm, fault_proxy
from tests.services.s3 import SECRET

OPERATIONS = ("PUT", "GET", "HEAD", "LIST", "DELETE")
SHAPE = Shape("partitioned")
QUICK = {"config_kwargs": {"retries": {"total_max_attempts": 1}, "read_timeout": 1}}
"""Only our own tries, so that each fault reaches them."""


@pytest.fixture
def proxy(s3):
    with fault_proxy(s3.endpoint_url) as running:
        yield running


@pytest.fixture
def short_waits(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.02)


def through(proxy, place: Location, **options) -> Location:
    """The same folder, reached through the proxy."""
    return Location.of(place.url, {**place.options, "endpoint_url": proxy.url, **options})


def with_older(folder: Location) -> Location:
    SHAPE.build(folder, version=1)
    return folder


@dataclass(frozen=True)
class Undisturbed:
    """The newer build, over the older one, when nothing fails."""

    manifest: bytes
    requests: Counter
    """How many of each operation."""

    def middle(self, operation: str) -> int:
        return (self.requests[operation] + 1) // 2


@pytest.fixture(scope="module")
def undisturbed(s3, bucket):
    folder = with_older(Location.of(f"{bucket}/undisturbed", s3.options))
    with fault_proxy(s3.endpoint_url) as counting:
        SHAPE.build(through(counting, folder))
        requests = Counter(operation for operation, _ in counting.seen)
    return Undisturbed((folder / MANIFEST).read(), requests)


def assert_whole(folder: Location, manifest: bytes) -> None:
    assert (folder / MANIFEST).read() == manifest
    assert wrong_rows(folder, "n", ROWS) == (0, 0)
    assert list(verify(folder)) == []


def test_a_build_uses_every_operation(undisturbed):
    assert set(undisturbed.requests) == set(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("harm", Harm)
def test_a_fault_that_passes(proxy, s3_folders, undisturbed, short_waits, harm, operation):
    """Two requests in a row, since the HTTP client itself repeats one that was reset on a connection in use."""
    folder = with_older(s3_folders())
    proxy.arm([Fault(harm, operation, nth=undisturbed.middle(operation), times=2)])
    SHAPE.build(through(proxy, folder, **QUICK))
    assert proxy.fired
    assert_whole(folder, undisturbed.manifest)


@pytest.mark.parametrize("point", ["/_plan.json", "/part-", "/_receipts/", "/_manifest.json"])
def test_a_lost_answer_at_a_commit_point(proxy, s3_folders, undisturbed, short_waits, point):
    """The object is there when it is written again; a create-only one must be known as our own."""
    folder = with_older(s3_folders())
    proxy.arm([Fault(Harm.RESET_AFTER, "PUT", point, times=2)])
    SHAPE.build(through(proxy, folder, **QUICK))
    assert len(proxy.fired) == 2
    assert_whole(folder, undisturbed.manifest)


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("harm", [Harm.SLOW_DOWN, Harm.RESET_BEFORE, Harm.RESET_AFTER])
def test_a_fault_at_any_request(proxy, s3_folders, undisturbed, short_waits, harm, operation):
    for nth in range(1, undisturbed.requests[operation] + 1):
        folder = with_older(s3_folders())
        proxy.arm([Fault(harm, operation, nth=nth, times=2)])
        SHAPE.build(through(proxy, folder, **QUICK))
        assert_whole(folder, undisturbed.manifest)


@pytest.mark.parametrize(("operation", "harm"), list(zip(OPERATIONS, itertools.cycle(Harm), strict=False)))
def test_a_fault_that_stays(proxy, s3_folders, undisturbed, short_waits, monkeypatch, harm, operation):
    """One error of ours, one line, no secret; what was done before it is used by the next run."""
    folder = with_older(s3_folders())
    monkeypatch.setattr(retry, "BUDGET_S", 0.1)
    proxy.arm([Fault(harm, operation, nth=undisturbed.middle(operation), times=10_000)])
    with pytest.raises(StillhouseError) as stopped:
        SHAPE.build(through(proxy, folder, **QUICK))
    assert re.fullmatch(rf"[^\n]*{re.escape(folder.url)}[^\n]*", str(stopped.value))
    assert SECRET not in str(stopped.value)
    proxy.arm([])
    SHAPE.build(through(proxy, folder))
    assert_whole(folder, undisturbed.manifest)


@pytest.mark.slow
@pytest.mark.parametrize("harm", [Harm.SLOW_DOWN, Harm.RESET_BEFORE, Harm.RESET_AFTER])
def test_every_third_request_fails(proxy, s3_folders, undisturbed, harm):
    """With the waits and tries that users have."""
    folder = with_older(s3_folders())
    proxy.arm([Fault(harm, operation, nth=nth) for operation in OPERATIONS for nth in range(1, 40, 3)])
    SHAPE.build(through(proxy, folder))
    assert len(proxy.fired) > 10
    assert_whole(folder, undisturbed.manifest)
