"""Where libraries write while a program of ours runs: to a file, so that the screen is left to our own lines.

Python's libraries, C libraries, the JVM and worker processes all write to file descriptor 2, by themselves or as they
inherited it. `libraries_aside` points that descriptor at a file in the temporary folder; what we show goes to
`screen()`. Handlers of logging that somebody set up on stderr stay on the screen. The file is named where it explains
something: in an error that ends the run, or by whoever asks for `log_path()`; otherwise it goes with the run. Nothing
of it is in an output. Costs a few system calls.
"""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from etl.errors import StillhouseError

_STDOUT, _STDERR = 1, 2


@dataclass
class _Log:
    path: Path
    screen: TextIO
    screen_fd: int
    is_named: bool = False
    """Whether somebody may have told the user its path."""


_logs: list[_Log] = []
"""The log of this process while there is one."""


def screen() -> TextIO:
    """The stream that the user sees: stderr, wherever libraries write."""
    return _logs[0].screen if _logs else sys.stderr


def log_path() -> Path | None:
    """The file that libraries write to, to tell the user; None while they write to the screen."""
    if not _logs:
        return None
    _logs[0].is_named = True
    return _logs[0].path


@contextlib.contextmanager
def libraries_aside() -> Iterator[None]:
    """Send what libraries write to stderr to a file; inside another such block it does nothing.

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
                error.add_note(f"What libraries said is in {log.path}")
            raise


@contextlib.contextmanager
def libraries_on_screen() -> Iterator[None]:
    """Inside `libraries_aside`: what is started here writes to the screen after all."""
    if not _logs:
        yield
        return
    with _pointed(_STDERR, _logs[0].screen_fd):
        yield


@contextlib.contextmanager
def stdout_aside() -> Iterator[None]:
    """Inside `libraries_aside`: what is started here writes to the file what it would write to stdout."""
    if not _logs:
        yield
        return
    sys.stdout.flush()
    with _pointed(_STDOUT, _STDERR):
        yield


@contextlib.contextmanager
def _pointed(descriptor: int, target: int) -> Iterator[None]:
    """Let a descriptor stand for what another one stands for."""
    before = os.dup(descriptor)
    os.dup2(target, descriptor)
    try:
        yield
    finally:
        os.dup2(before, descriptor)
        os.close(before)


def _has_lines(log: _Log) -> bool:
    log.is_named = log.is_named or log.path.stat().st_size > 0
    return log.is_named


@contextlib.contextmanager
def _opened() -> Iterator[_Log]:
    descriptor, name = tempfile.mkstemp(prefix="stillhouse-", suffix=".log")
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    with os.fdopen(kept, "w", 1, encoding=sys.stderr.encoding or "utf-8", errors="backslashreplace") as stream:
        # A program that has put another stream in the place of stderr, such as a notebook, shows that one.
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
    """Let the handlers that write to stderr write to a stream."""
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
