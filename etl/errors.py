"""The four errors that a user of Stillhouse can meet.

Bad input raises one of these with what was wrong, the value, and what to do about it. `assert` is kept for
invariants of our own code.
"""

import contextlib
from collections.abc import Iterator


class StillhouseError(Exception):
    """Base of the four classes, so that an entry point can turn any of them into one line and exit code 2."""

    def to_text(self) -> str:
        """For a way back from a worker that carries text."""
        return f"{type(self).__name__}: {self}"

    @classmethod
    def from_text(cls, text: str) -> "StillhouseError":
        """What `to_text` said, as the class that it was."""
        kind, _, message = text.partition(": ")
        (found,) = (known for known in cls.__subclasses__() if known.__name__ == kind)
        return found(message)


class ConfigError(StillhouseError):
    """A recipe, a training configuration, an option or an artefact is wrong; found before a row is read."""


class SchemaError(StillhouseError):
    """A table lacks a column that a step reads, or a column has another type than the table declares."""


class SourceError(StillhouseError):
    """An input cannot be listed, opened or read at all, or too large a fraction of its rows is bad."""


class DataError(StillhouseError):
    """A dataset of ours is absent, incomplete, changed, or held by another run."""


@contextlib.contextmanager
def decoding(what: str) -> Iterator[None]:
    """Whatever a library says inside the block about the bytes that it decodes becomes a SourceError.

    Libraries raise their own classes and Python's at will, so none is listed. For that reason the block holds calls of
    a library alone: in our own code the same classes are bugs. Lack of memory stays what it is.

    Args:
        what: file and place, for the message.

    Raises:
        SourceError: the library has raised anything.
    """
    try:
        yield
    except (StillhouseError, MemoryError):
        raise
    except Exception as error:
        raise SourceError(f"{what} cannot be read ({said(error)}); replace or remove it") from error


def said(error: Exception) -> str:
    """What an exception says, in one line of at most 300 characters that begins with its class."""
    text = " ".join(str(error).split())
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__)[:300]
