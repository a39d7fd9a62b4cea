"""The four errors that a user of Stillhouse can get.

Bad input raises one of these. The message says what was wrong, the value, and what to do. `assert` is for invariants of
our own code.
"""

import contextlib
from collections.abc import Iterator


class StillhouseError(Exception):
    """Base of the four classes, so that an entry point can turn any of them into one line and exit code 2."""

    def to_text(self) -> str:
        """As text, for a worker that can only return text."""
        return f"{type(self).__name__}: {self}"

    @classmethod
    def from_text(cls, text: str) -> "StillhouseError":
        """The error that `to_text` has written, in its class."""
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
    """A dataset of ours is missing, incomplete, changed, or locked by another run."""


@contextlib.contextmanager
def decoding(what: str) -> Iterator[None]:
    """Turn any error of a library that decodes bytes inside the block into a SourceError.

    Libraries raise classes of their own and of Python, so none is listed. The block must therefore contain only calls
    of a library: in our own code the same classes are bugs. MemoryError is passed on.

    Args:
        what: file and place, for the message.

    Raises:
        SourceError: the library raised an error.
    """
    try:
        yield
    except (StillhouseError, MemoryError):
        raise
    except Exception as error:
        raise SourceError(f"{what} cannot be read ({said(error)}); replace or remove it") from error


def said(error: Exception) -> str:
    """An exception in one line of at most 300 characters, with its class first."""
    text = " ".join(str(error).split())
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__)[:300]
