"""What a description says of rows beside their conversation: names, licence, language, subset, skill bucket, the rest.

From names and values of columns, as etl/sources/guesses.py finds the conversation.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from etl.sources import column_names as names
from etl.sources.guesses import Tree
from etl.sources.leaves import Leaf
from etl.sources.spec import Shape

_FORMULA: Final = re.compile(r"\\(frac|boxed|sqrt|begin|sum|int)\b|\$[^$\n]+\$|<<.*=.*>>")
_CODE: Final = re.compile(
    r"```|^\s*(def \w+\(|class \w+[:(]|import \w+$|from \w+ import|#include|public class|function \w+\()", re.MULTILINE
)
_SHARE: Final = 0.5
"""Of the rows that show what a source is about."""
_NAME_CHARS: Final = 100


def attributes(tree: Tree, shape: Shape, leaves: Sequence[Leaf]) -> Tree:
    """The keys of a description beside those of its shape, for what the shape does not read."""
    said = {*shape.said, *shape.written, *shape.nested}
    free = [leaf for leaf in leaves if leaf.path not in said and ".0" not in leaf.path]
    found: Tree = {}
    if (name := _row_name(free)) is not None:
        found["example_id"] = name
    for key, known, is_fit in (
        ("license", names.LICENSES, _is_name),
        ("language", names.LANGUAGES, _is_language),
        ("subset", names.SUBSETS, _is_name),
    ):
        path = next((leaf.path for word in known for leaf in free if word in leaf.names and is_fit(leaf)), None)
        if path is not None:
            found[key] = path
    found["skill_bucket"] = skill_bucket(shape, leaves)
    used = {path.partition(".*")[0] for path in (*said, *map(str, found.values()))}
    if rest := [path for leaf in leaves if leaf.depth == 0 for path in _unused(leaf, used, leaves)]:
        found["meta"] = rest
    return found


def _unused(leaf: Leaf, used: set[str], leaves: Sequence[Leaf]) -> list[str]:
    """The place, or where something inside of it is used, what else is inside."""
    inside = f"{leaf.path}."
    if leaf.path in used or not leaf.there:
        return []
    if not any(path.startswith(inside) for path in used):
        return [leaf.path]
    below = (other for other in leaves if other.depth == leaf.depth + 1 and other.path.startswith(inside))
    return [path for other in below for path in _unused(other, used, leaves)]


def skill_bucket(shape: Shape, leaves: Sequence[Leaf]) -> str:
    """The skill bucket that names and values show; raw text is code or knowledge."""
    read = [leaf for leaf in leaves if leaf.path in (*shape.said, *shape.written, *shape.nested)]
    columns = {name for leaf in read for name in leaf.names}
    rows = [" ".join(str(leaf.values[row]) for leaf in read) for row in range(len(read[0].values))] if read else []
    if columns & names.CODE or _share(_CODE, rows) >= _SHARE:
        return "code"
    if shape.shape == "text":
        return "knowledge"
    if columns & names.MATHS or _share(_FORMULA, rows) >= _SHARE:
        return "math"
    return "reasoning" if getattr(shape, "analysis", None) is not None else "chat"


def _share(pattern: re.Pattern[str], rows: Sequence[str]) -> float:
    return sum(pattern.search(row) is not None for row in rows) / max(1, len(rows))


def _row_name(leaves: Sequence[Leaf]) -> str | None:
    """The path of what names each row: its values differ, and it is called as such."""
    good = [leaf for leaf in leaves if _names_rows(leaf)]
    exact = [leaf for word in names.IDS for leaf in good if leaf.names[0] == word]
    ending = [leaf for leaf in good if leaf.names[0].endswith("id") and leaf.names[0] not in names.OTHER_IDS]
    return next((leaf.path for leaf in (*exact, *ending)), None)


def _names_rows(leaf: Leaf) -> bool:
    are_names = all(_is_word(value) for value in leaf.there)
    return bool(leaf.there) and len(leaf.there) == len(leaf.values) and are_names and leaf.distinct == 1.0


def _is_word(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _NAME_CHARS
    return isinstance(value, int) and not isinstance(value, bool)


def _is_name(leaf: Leaf) -> bool:
    return leaf.is_text and leaf.chars <= _NAME_CHARS and all(len(value) <= 2 * _NAME_CHARS for value in leaf.there)


def _is_language(leaf: Leaf) -> bool:
    return leaf.is_text and all(
        names.LANGUAGE_CODE.fullmatch(value) or value.strip().lower() in names.LANGUAGE_WORDS for value in leaf.there
    )
