"""An HTTP proxy in front of an object store that fails on purpose, by rule.

A rule names an operation (PUT, GET, HEAD, LIST, DELETE, POST), a pattern of the request target, which match to begin
with and how often to fail. A request that no rule hits passes unchanged, its Host header included, so signatures hold.
Runs in threads of the test's process; about 1 ms a request.
"""

import contextlib
import http.client
import re
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
)
_TICK_S = 0.1


class Harm(StrEnum):
    """What happens to a request."""

    SLOW_DOWN = "503 SlowDown"
    NO_ANSWER = "no answer"
    RESET_BEFORE = "reset before the server saw it"
    RESET_AFTER = "reset after the server did it"


@dataclass(frozen=True)
class Fault:
    """Requests of one operation whose target matches: the `nth` of them (from 1) and the `times - 1` after it fail."""

    harm: Harm
    operation: str
    target: str = ""
    """A regular expression that is searched in path and query."""
    nth: int = 1
    times: int = 1


def operation_of(method: str, target: str) -> str:
    """The S3 operation of a request: LIST is a GET with a query of its own, deleting many objects is a POST."""
    query = urlsplit(target).query
    if method == "GET" and ("list-type=" in query or "prefix=" in query):
        return "LIST"
    if method == "POST" and re.search(r"(^|&)delete(=|&|$)", query):
        return "DELETE"
    return method


class FaultProxy:
    """The proxy as a test sees it.

    Attributes:
        url: where clients connect.
        seen: (operation, target) of every request since the last `arm`.
        fired: the faults that have happened since then, in order.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock = threading.Lock()
        self.arm([])

    def arm(self, faults: Sequence[Fault]) -> None:
        """Forget what was seen and fail by these rules from now on."""
        with self._lock:
            self._faults = [(fault, re.compile(fault.target)) for fault in faults]
            self._matches = [0] * len(faults)
            self.seen: list[tuple[str, str]] = []
            self.fired: list[Fault] = []

    def due(self, method: str, target: str) -> Harm | None:
        """Count a request; the harm that is due to it. The first rule that hits wins."""
        operation = operation_of(method, target)
        with self._lock:
            self.seen.append((operation, target))
            for index, (fault, pattern) in enumerate(self._faults):
                if fault.operation == operation and pattern.search(target):
                    self._matches[index] += 1
                    if fault.nth <= self._matches[index] < fault.nth + fault.times:
                        self.fired.append(fault)
                        return fault.harm
        return None


@contextlib.contextmanager
def fault_proxy(target_url: str, faults: Sequence[Fault] = ()) -> Iterator[FaultProxy]:
    """A proxy on a free port of 127.0.0.1 in front of `target_url`."""
    stopping = threading.Event()

    class Handler(_Handler):
        upstream = urlsplit(target_url).netloc
        stop = stopping

    server = _Server(("127.0.0.1", 0), Handler)
    proxy = FaultProxy(f"http://127.0.0.1:{server.server_port}")
    proxy.arm(faults)
    Handler.proxy = proxy
    thread = threading.Thread(target=server.serve_forever, args=(_TICK_S,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy
    upstream: str
    stop: threading.Event

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: `FaultProxy.seen` is the log."""

    def do_any(self) -> None:
        """Pass one request on, or harm it."""
        body = self._body()
        harm = self.proxy.due(self.command, self.path)
        if harm is Harm.SLOW_DOWN:
            self._answer(503, [("Content-Type", "application/xml")], _SLOW_DOWN)
        elif harm is Harm.NO_ANSWER:
            self._hold()
        elif harm is Harm.RESET_BEFORE:
            self._reset()
        else:
            status, headers, answer = self._pass_on(body)
            if harm is Harm.RESET_AFTER:
                self._reset()
            else:
                self._answer(status, headers, answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_any

    def _body(self) -> bytes:
        assert "chunked" not in self.headers.get("Transfer-Encoding", ""), "clients here give a Content-Length"
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        told = {"connection", "transfer-encoding"} | (set() if self.command == "HEAD" else {"content-length"})
        for name, value in headers:
            if name.lower() not in told:
                self.send_header(name, value)
        if self.command != "HEAD" and status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hold(self) -> None:
        """Say nothing until the client hangs up or the proxy ends."""
        self.connection.settimeout(_TICK_S)
        while not self.stop.is_set():
            try:
                if not self.connection.recv(1):
                    break
            except TimeoutError:
                continue
        self.close_connection = True

    def _reset(self) -> None:
        """Close with RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.connection.close()
