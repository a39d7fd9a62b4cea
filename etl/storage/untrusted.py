"""Reads JSON objects that anybody may have written, with types for their fields.

Plans, receipts, locks, manifests, records, decisions and checkpoints all come through `read_object`. What it gives back
has names that lead nowhere but down, digests that are hexadecimal, and numbers that are finite and bounded, so nothing
after it has to ask again. What is not so is nobody's: the error names the object and the first fields that are wrong,
and the object is not followed, not deleted and not executed.

Costs two parses and a validation: about a second for a manifest of 100,000 parts (30 MB).
"""

import json
import math
import re
import reprlib
from typing import Annotated, Any, Final, NoReturn, TypeVar

import pydantic_core
from pydantic import AfterValidator, BaseModel, Field, StringConstraints, ValidationError

from etl.errors import DataError
from etl.storage.location import Location

C = TypeVar("C", bound=BaseModel)

MAX_OBJECT_BYTES = 1 << 30
"""Of one JSON object: a manifest of three million parts."""
MAX_SPLITS = 1_000_000
"""Of one dataset. Whoever counts to the number of splits does so without having seen them."""
_MOST_LINES = 3
_PATH = re.compile(r"(?!\.{1,2}(/|$))[^/\\]+(/(?!\.{1,2}(/|$))[^/\\]+)*")


def _leads_down(path: str) -> str:
    # isprintable leaves out control characters, lone surrogates and all separators but the space.
    if not path.isprintable() or "::" in path or _PATH.fullmatch(path) is None:
        raise ValueError(
            "must be a path inside the folder: no empty, '.' or '..' piece, no scheme, backslash or control character"
        )
    return path


def _is_text(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be text without control characters")
    return text


def _flows(account: dict[str, int]) -> dict[str, int]:
    if not {"in", "made", "kept"} <= account.keys():
        raise ValueError("must have in, made and kept")
    return account


_SIGNED: Final = "units"
"""The name of a sum of log-probabilities, the one count below 0 (training/teacher/stats.py)."""


def _are_counts(tree: dict[str, Any]) -> dict[str, Any]:
    for name, value in tree.items():
        if isinstance(value, dict):
            _are_counts(value)
        elif type(value) is not int or not (-(2**63) if name == _SIGNED else 0) <= value < 2**63:
            raise ValueError("must be counts by name: whole numbers from 0 to 2^63")
    return tree


RelativePath = Annotated[str, StringConstraints(max_length=4096), AfterValidator(_leads_down)]
"""Of an object or folder, below the folder that the JSON object is about."""
FileName = Annotated[RelativePath, StringConstraints(max_length=255, pattern=r"^[^/]+$")]
"""A path of one piece."""
Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""A fingerprint, a content digest, the name of a build or of a run."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(max_length=4096), AfterValidator(_is_text)]
"""For people to read."""
Count = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
"""Rows, bytes, tokens, steps."""
SplitNumber = Annotated[int, Field(ge=0, lt=MAX_SPLITS, strict=True)]
Seconds = Annotated[float, Field(ge=0, lt=253_402_300_800, allow_inf_nan=False)]
"""Since 1970, up to the year 9999."""
Account = Annotated[dict[str, Count], AfterValidator(_flows)]
"""Rows of one step of one source by what became of them: in, made, kept, and reasons of loss."""
Counts = Annotated[dict[str, Any], AfterValidator(_are_counts)]
"""Nested counts by name."""


class NotOursError(ValueError):
    """Bytes that are no JSON object of the kind that was asked for; says which fields are wrong."""


def read_object(place: Location, model: type[C], remedy: str, limit: int = MAX_OBJECT_BYTES) -> C:
    """The checked JSON object at a place.

    Args:
        place: of the object.
        model: what it should be.
        remedy: what to do about one that is not, for the message.
        limit: bytes that it may have.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is something else, too large, or cannot be read.
    """
    try:
        return parse_object(place.read_at_most(limit), model)
    except NotOursError as error:
        raise DataError(f"{place} is damaged: {error}; {remedy}") from error


def parse_object(data: bytes, model: type[C]) -> C:
    """Bytes as a checked object.

    Raises:
        NotOursError: they are something else.
    """
    try:
        return model.model_validate(parse_tree(data))
    except ValidationError as error:
        # Not config_errors.lines, which compares every mistake with every other: there may be one for each part.
        found = error.errors(include_url=False)
        more = f"; and {len(found) - _MOST_LINES:,} more" if len(found) > _MOST_LINES else ""
        raise NotOursError("; ".join(map(_line, found[:_MOST_LINES])) + more) from error


def parse_tree(data: bytes) -> dict[str, Any]:
    """Bytes as a JSON object of at most 200 levels whose numbers are finite and whose keys are given once.

    Raises:
        NotOursError: they are something else.
    """
    try:
        # Refuses what is not UTF-8, lone surrogates, NaN, and more than 200 levels; but of a key that is given twice
        # it takes the last, and 1e400 is infinite.
        pydantic_core.from_json(data, allow_inf_nan=False)
        tree = json.loads(data, object_pairs_hook=_once, parse_float=_finite, parse_constant=_refuse_constant)
    except NotOursError:
        raise
    except ValueError as error:
        raise NotOursError(f"it is not JSON ({str(error)[:100]})") from error
    if not isinstance(tree, dict):
        raise NotOursError("it is not a JSON object")
    return tree


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise NotOursError(f"the key {shown(twice)} is given twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotOursError(f"the number {text[:20]} is too large")
    return number


def _refuse_constant(text: str) -> NoReturn:
    raise NotOursError(f"{text} is not a JSON number")


def _line(item: Any) -> str:
    """What is wrong with one field, in one line of bounded length without control characters."""
    pieces = [piece for piece in item["loc"] if piece != "[key]"]
    where = _printable(".".join(map(str, pieces)))
    if item["type"] == "missing":
        return f"{_short(where)}: is missing"
    says = item["msg"].removeprefix("Value error, ").replace("Input should", "must").replace("String should", "must")
    return f"{_short(where)}: {_short(_printable(says))} (got {shown(item['input'])})".removeprefix(": ")


def _printable(text: str) -> str:
    """The text with an escape in the place of everything that is not to be printed."""
    return text if text.isprintable() else "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}…"


def shown(value: Any) -> str:
    """A value for a message: its repr, shortened."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return short.repr(value)
