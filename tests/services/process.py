"""Servers that a test starts: free ports, a subprocess with its log in a file, readiness by polling, a certain end.

Ports are taken below the range from which the kernel numbers outgoing connections, so none is lost to a client between
the look and the server's own bind. A server is terminated, given some seconds, then killed, also when the test fails.
"""

import contextlib
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

_PORTS = range(12_000, 32_000)
_POLL_S = 0.05


def free_ports(count: int) -> list[int]:
    """Different TCP ports of 127.0.0.1 on which nobody listens."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            port = random.choice(_PORTS)
            listener = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                ports.append(port)
        return ports


def is_listening(port: int) -> bool:
    """True when something takes connections on the port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(is_ready: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    """Poll until `is_ready`.

    Raises:
        TimeoutError: it was not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not is_ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} was not ready after {timeout_s:.0f} s")
        time.sleep(_POLL_S)


def stop(process: subprocess.Popen[bytes], grace_s: float = 5) -> None:
    """SIGTERM, and SIGKILL when the process is still there after `grace_s`."""
    process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running(
    command: list[str],
    log: Path,
    is_ready: Callable[[], bool],
    env: Mapping[str, str] | None = None,
    grace_s: float = 5,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that is ready, with its output in `log`.

    Raises:
        RuntimeError: it ended before it was ready; the message holds the end of its log.
        TimeoutError: it was not ready in time.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})

    def ready() -> bool:
        if process.poll() is not None:
            raise RuntimeError(
                f"{command[0]} ended with {process.returncode}: {log.read_text()[:1000]} … {log.read_text()[-1000:]}"
            )
        return is_ready()

    try:
        wait_until(ready, command[0])
        yield process
    finally:
        stop(process, grace_s)
