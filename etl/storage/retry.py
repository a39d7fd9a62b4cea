"""Retries: which failures of a store are transient, and for how long an operation is retried.

Throttling (429, 503 SlowDown), other 5xx, timeouts, resets and refused connections are tried again with exponential
backoff and full jitter, up to 15 s apart and for `BUDGET_S` in all; then the last error is raised. 401, 403, 404, 412
and a full disk are raised at once. An endpoint that has never answered this process gets `FIRST_CONTACT_S`, so that a
wrong address is reported soon. `etl.storage.remote` lists the libraries' own retries below this.
"""

import ssl
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import tenacity

T = TypeVar("T")

BUDGET_S = 120.0
"""No retry starts later than this after the first attempt."""
FIRST_CONTACT_S = 10.0
"""The same for an endpoint that cannot be connected to and never could."""
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 15.0

_PASSING_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""409 is what S3 answers when two conditional writes of one object meet."""
_PASSING_CODES = frozenset({
    "InternalError", "OperationAborted", "ConditionalRequestConflict", "RequestLimitExceeded", "RequestTimeout",
    "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests",
})  # fmt: skip
_PASSING_TYPES = frozenset({
    "aiohttp.client_exceptions.ClientError",
    "azure.core.exceptions.IncompleteReadError",
    "azure.core.exceptions.ServiceRequestError",
    "azure.core.exceptions.ServiceResponseError",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.IncompleteReadError",
    "botocore.exceptions.ResponseStreamingError",
    "botocore.parsers.ResponseParserError",
    "google.auth.exceptions.TransportError",
    "http.client.IncompleteRead",
    "httpx2.TransportError",
    "requests.exceptions.ChunkedEncodingError",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.Timeout",
    "urllib3.exceptions.HTTPError",
})  # fmt: skip
"""By name, so that no library is imported for its exceptions."""
_UNREACHED_TYPES = frozenset({
    "aiohttp.client_exceptions.ClientConnectorError",
    "azure.core.exceptions.ServiceRequestError",
    "botocore.exceptions.ConnectTimeoutError",
    "botocore.exceptions.EndpointConnectionError",
    "builtins.ConnectionRefusedError",
    "httpx2.ConnectError",
    "httpx2.ConnectTimeout",
    "huggingface_hub.errors.OfflineModeIsEnabled",
    "socket.gaierror",
})  # fmt: skip
_FORBIDDEN_TYPES = frozenset({"huggingface_hub.errors.OfflineModeIsEnabled"})
"""What the user's environment forbids, whatever it derives from."""

_answered: set[str] = set()
"""Keys of the endpoints that have answered this process once."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def type_names(error: BaseException) -> set[str]:
    """Qualified names of the error's class and its bases."""
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error came from; None when it came from none."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) or None
        values = [getattr(cause, name, None) for name in ("status_code", "code", "status")]
        for value in (*values, getattr(response, "status_code", None)):
            if isinstance(value, int | str) and str(value).isdigit() and 100 <= int(value) < 600:
                return int(value)
    return None


def code_of(error: BaseException) -> str:
    """The store's name of an error, such as NoSuchBucket; empty where it gave none."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        code: Any = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
        code = code or getattr(cause, "error_code", None)
        if code:
            return str(code)
    return ""


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return False
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes(error)):
        return False
    if any(not _FORBIDDEN_TYPES.isdisjoint(type_names(cause)) for cause in causes(error)):
        return False
    status = status_of(error)
    if status is not None:
        return status in _PASSING_STATUS or code_of(error) in _PASSING_CODES
    return any(
        isinstance(cause, TimeoutError | ConnectionError) or not _PASSING_TYPES.isdisjoint(type_names(cause))
        for cause in causes(error)
    )


def is_unreached(error: BaseException) -> bool:
    """Whether no connection was made at all."""
    return any(not _UNREACHED_TYPES.isdisjoint(type_names(cause)) for cause in causes(error))


def persist(call: Callable[[], T], endpoint: str) -> T:
    """The result of a call that is retried while its failures are transient.

    Args:
        call: one operation that may be done twice.
        endpoint: what the call talks to, for the first contact.

    Raises:
        Exception: the last one when time is up, or the first permanent one.
    """

    def is_over(state: tenacity.RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome is not None else None
        unknown = endpoint not in _answered and error is not None and is_unreached(error)
        elapsed_s = (state.seconds_since_start or 0.0) + state.upcoming_sleep
        return elapsed_s > (FIRST_CONTACT_S if unknown else BUDGET_S)

    tries = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_passing),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        stop=is_over,
        reraise=True,
    )
    try:
        result = tries(call)
    except Exception as error:
        if not is_unreached(error):
            _answered.add(endpoint)
        raise
    _answered.add(endpoint)
    return result
