"""What is tried again, for how long, and what is not."""

import errno
import socket

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ReadTimeoutError,
)
from gcsfs.retry import HttpError

from etl.storage import retry
from etl.storage.retry import code_of, is_passing, is_unreached, persist, status_of


def answer(status: int, code: str = "") -> ClientError:
    return ClientError({"Error": {"Code": code or str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Put")


def wrapped(cause: Exception, outer: Exception | None = None) -> Exception:
    """As s3fs raises it."""
    outer = outer or OSError(errno.EIO, "translated")
    outer.__cause__ = cause
    return outer


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(retry, "LONGEST_WAIT_S", 0.002)
    monkeypatch.setattr(retry, "_answered", set())


PASSING = [
    *(answer(status) for status in (408, 409, 429, 500, 502, 503, 504)),
    wrapped(answer(503, "SlowDown"), OSError(errno.EBUSY, "Please reduce your request rate.")),
    wrapped(answer(500, "InternalError")),
    wrapped(answer(409, "ConditionalRequestConflict")),
    ReadTimeoutError(endpoint_url="http://x"),
    ConnectTimeoutError(endpoint_url="http://x"),
    EndpointConnectionError(endpoint_url="http://x"),
    HttpError({"code": 503, "message": "backend"}),
    HttpError({"code": 429, "message": "rate"}),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    TimeoutError(),
    wrapped(ConnectionResetError(errno.ECONNRESET, "reset"), RuntimeError("read")),
]
FINAL = [
    *(answer(status) for status in (400, 401, 403, 404, 412, 416, 501, 507)),
    wrapped(answer(403, "AccessDenied"), PermissionError("Access Denied")),
    wrapped(answer(404, "NoSuchKey"), FileNotFoundError("key")),
    wrapped(answer(412, "PreconditionFailed")),
    FileExistsError("there"),
    OSError(errno.ENOSPC, "No space left on device"),
    HttpError({"code": 401, "message": "Anonymous caller"}),
    ValueError("a bug"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_passes_is_tried_again(error):
    tries = []

    def call() -> str:
        tries.append(1)
        if len(tries) < 4:
            raise error
        return "done"

    assert is_passing(error)
    assert persist(call, "here") == "done"
    assert len(tries) == 4


@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_what_does_not_pass_is_raised_at_once(error):
    tries = []

    def call() -> None:
        tries.append(1)
        raise error

    assert not is_passing(error)
    with pytest.raises(type(error)) as raised:
        persist(call, "here")
    assert raised.value is error
    assert len(tries) == 1


def test_the_time_is_bounded(monkeypatch):
    monkeypatch.setattr(retry, "BUDGET_S", 0.05)
    tries = []

    def call() -> None:
        tries.append(1)
        raise answer(503, "SlowDown")

    with pytest.raises(ClientError):
        persist(call, "here")
    assert len(tries) > 3


@pytest.mark.parametrize(("known", "budget"), [(False, "FIRST_CONTACT_S"), (True, "BUDGET_S")])
def test_an_endpoint_that_never_answered_is_given_up_early(monkeypatch, known, budget):
    monkeypatch.setattr(retry, "BUDGET_S", 1e9)
    monkeypatch.setattr(retry, "FIRST_CONTACT_S", 1e9)
    if known:
        with pytest.raises(FileNotFoundError):
            persist(lambda: (_ for _ in ()).throw(FileNotFoundError()), "here")
    # The one that rules is made short, so the test ends only if it is looked at.
    monkeypatch.setattr(retry, budget, 0.02)

    def call() -> None:
        raise EndpointConnectionError(endpoint_url="http://x")

    with pytest.raises(EndpointConnectionError):
        persist(call, "here")


def test_a_server_that_is_too_busy_at_the_first_contact_gets_its_time(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_CONTACT_S", 0.0)
    tries = []

    def call() -> int:
        tries.append(1)
        if len(tries) < 5:
            raise answer(503, "SlowDown")
        return len(tries)

    assert persist(call, "here") == 5


def test_what_an_error_came_from():
    error = wrapped(answer(503, "SlowDown"))
    assert (status_of(error), code_of(error)) == (503, "SlowDown")
    assert (status_of(ValueError()), code_of(ValueError())) == (None, "")
    assert status_of(HttpError({"code": 429, "message": ""})) == 429
    assert is_unreached(wrapped(ConnectionRefusedError(), RuntimeError()))
    assert is_unreached(socket.gaierror(-2, "Name or service not known"))
    assert not is_unreached(ConnectionResetError())


def test_a_chain_of_causes_may_go_round():
    one, two = ValueError(), ValueError()
    one.__cause__, two.__cause__ = two, one
    assert not is_passing(one)
