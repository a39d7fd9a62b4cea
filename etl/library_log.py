"""Redirects the output of libraries to a file while a program of ours runs; the screen shows only our own lines.

Python libraries, C libraries, the JVM and worker processes all write to file descriptor 2. `libraries_aside` points
that descriptor at a file in the temporary folder; our own lines are written to `screen()`. Logging handlers that the
user attached to stderr keep the screen. The file's name is shown if it helps: in an error that ends the run, or by
callers of `log_path()`. Otherwise the file is deleted with the run. The run's own lines are also in it, with the time,
and a run that has done something leaves a copy in its output (etl/run/run.py). Costs a few system calls.
"""

import contextlib
import fcntl
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from etl.errors import StillhouseError
from etl.terminal import one_line

_STDOUT, _STDERR = 1, 2


@dataclass
class _Log:
    path: Path
    screen: TextIO
    screen_fd: int
    is_named: bool = False
    """Whether the user may have been shown its path."""
    own_bytes: int = 0
    """Size of our own lines in it."""


_logs: list[_Log] = []
"""The log of this process, if there is one."""


def screen() -> TextIO:
    """The stream that the user sees: the original stderr."""
    return _logs[0].screen if _logs else sys.stderr


def log_path() -> Path | None:
    """The file that libraries write to, for messages to the user; None if they write to the screen."""
    if not _logs:
        return None
    _logs[0].is_named = True
    return _logs[0].path


def log_line(text: str) -> None:
    """Add a line of ours to the file, with the time; does nothing if there is no file."""
    if _logs:
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}  {one_line(text)}\n".encode()
        with _logs[0].path.open("ab") as file:
            file.write(line)
        _logs[0].own_bytes += len(line)


def log_bytes() -> bytes | None:
    """The contents of the file so far; None while libraries write to the screen."""
    return _logs[0].path.read_bytes() if _logs else None


@contextlib.contextmanager
def libraries_aside() -> Iterator[None]:
    """Redirect what libraries write to stderr into a file; does nothing inside another such block.

    An error that ends the block names the file, unless nothing is in it.
    """
    if _logs:
        yield
        return
    with _opened() as log:
        try:
            yield
        except StillhouseError as error:
            if _has_lines(log):
                error.args = (f"{error}; log: {log.path}",)
            raise
        except Exception as error:
            if _has_lines(log):
                error.add_note(f"Output of libraries: {log.path}")
            raise


@contextlib.contextmanager
def libraries_on_screen() -> Iterator[None]:
    """Inside `libraries_aside`: processes started here write to the screen."""
    if not _logs:
        yield
        return
    with _pointed(_STDERR, _logs[0].screen_fd):
        yield


@contextlib.contextmanager
def stdout_aside() -> Iterator[None]:
    """Inside `libraries_aside`: processes started here also write their stdout to the file."""
    if not _logs:
        yield
        return
    sys.stdout.flush()
    with _pointed(_STDOUT, _STDERR):
        yield


@contextlib.contextmanager
def _pointed(descriptor: int, target: int) -> Iterator[None]:
    """Inside, a descriptor points at the target of another one."""
    before = os.dup(descriptor)
    os.dup2(target, descriptor)
    try:
        yield
    finally:
        os.dup2(before, descriptor)
        os.close(before)


def _has_lines(log: _Log) -> bool:
    log.is_named = log.is_named or log.path.stat().st_size > log.own_bytes
    return log.is_named


@contextlib.contextmanager
def _opened() -> Iterator[_Log]:
    descriptor, name = tempfile.mkstemp(prefix="stillhouse-", suffix=".log")
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)  # our own lines come between those of libraries
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    with os.fdopen(kept, "w", 1, encoding=sys.stderr.encoding or "utf-8", errors="backslashreplace") as stream:
        # A program that has replaced sys.stderr, such as a notebook, shows that stream.
        log = _Log(Path(name), stream if _writes_to_stderr(sys.stderr) else sys.stderr, kept)
        _logs.append(log)
        os.dup2(descriptor, _STDERR)
        os.close(descriptor)
        try:
            with _logging_on(log.screen):
                yield log
        finally:
            sys.stderr.flush()
            os.dup2(kept, _STDERR)
            _logs.clear()
            if not log.is_named:
                log.path.unlink(missing_ok=True)


def _writes_to_stderr(stream: TextIO) -> bool:
    try:
        return stream.fileno() == _STDERR
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _logging_on(stream: TextIO) -> Iterator[None]:
    """Inside, logging handlers that write to stderr write to a stream."""
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in logging.root.manager.loggerDict)]
    on_stderr = [
        handler
        for logger in loggers
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and vars(handler).get("stream") is sys.stderr
    ]
    for handler in on_stderr:
        handler.setStream(stream)
    try:
        yield
    finally:
        for handler in on_stderr:
            handler.setStream(sys.stderr)
