"""YAML whose scalars keep their text, so that the type of a field decides what `no`, `0x10` and `1.50` mean.

YAML reads `no` as false and `010` as eight. Here a scalar that YAML would not read as text is a `Plain`: the text and
YAML's value. `etl.config.Config` gives each field the one of its type (`fit`). Keys of a mapping are always text, and a
duplicate key is an error. Dates are text, `1e6` is a number.
"""

import re
import types
from collections.abc import Mapping, Sequence, Set
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from etl.terminal import shown

MAX_DEPTH = 100
"""Largest depth of nested lists and mappings, with aliases resolved."""
MAX_VALUES = 100_000
"""Largest number of keys, scalars, lists and mappings of one text, with aliases resolved."""
_MAX_DIGITS = 1000


class Plain(str):
    """Text that YAML reads as another type.

    Attributes:
        value: YAML's value: a bool, int or float; after `--set` also a list or mapping.
    """

    __slots__ = ("value",)
    value: Any

    @classmethod
    def of(cls, text: str, value: Any) -> "Plain":
        """The text with YAML's value."""
        plain = cls(text)
        plain.value = value
        return plain

    def __repr__(self) -> str:
        return repr(self.value)


class RefusedError(yaml.YAMLError):
    """YAML that is refused; the message quotes only its keys."""


class GivenTwiceError(RefusedError):
    """A mapping has a key twice."""


class TooLargeError(RefusedError):
    """Values are nested too deep, or are too many with aliases resolved."""


class _Loader(yaml.SafeLoader):
    """YAML without timestamps, with text as keys, in which `1e6` is a number."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0
        self._measures: dict[yaml.Node, tuple[int, int]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_alias = self.check_event(yaml.AliasEvent)
        if self._depth >= MAX_DEPTH:
            raise TooLargeError(f"values are nested deeper than {MAX_DEPTH}; use fewer levels")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and not is_alias:
            self._measures[node] = self._measure(node)
        elif is_alias and node not in self._measures:
            raise TooLargeError("an alias is inside the value that it refers to; write the value out")
        return node

    def _measure(self, node: yaml.Node | None) -> tuple[int, int]:
        """The number of values of a node with its aliases resolved, and their depth; its children are measured already.

        Raises:
            TooLargeError: more than the limits.
        """
        children = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [one for pair in node.value for one in pair]
        # A key has been replaced by its text.
        measures = [self._measures.get(child, (1, 1)) for child in children]
        num_values = 1 + sum(num for num, _ in measures)
        depth = 1 + max((deep for _, deep in measures), default=0)
        if num_values > MAX_VALUES or depth > MAX_DEPTH:
            raise TooLargeError(
                f"with aliases resolved it has more than {MAX_VALUES:,} values, or nests them deeper than "
                f"{MAX_DEPTH}; use fewer"
            )
        return num_values, depth

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise GivenTwiceError(
                        f"the key {shown(key.value)} is given twice, in lines {lines[key.value]} and {line}; remove one"
                    )
                lines[key.value] = line
        node.value = [(_as_text(key), value) for key, value in node.value]
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if isinstance(node, yaml.ScalarNode) and len(node.value) > _MAX_DIGITS:
            # Python refuses to write whole numbers of that many digits.
            return node.value
        value = super().construct_object(node, deep)
        is_plain = isinstance(node, yaml.ScalarNode) and node.style is None
        return Plain.of(node.value, value) if is_plain and isinstance(value, bool | int | float) else value


def _as_text(key: yaml.Node) -> yaml.Node:
    """The key as text; `<<`, which merges another mapping, is unchanged."""
    if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
        return key
    return yaml.ScalarNode("tag:yaml.org,2002:str", key.value, key.start_mark, key.end_mark, key.style)


_NO_TAGS = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag not in _NO_TAGS]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_EXPONENT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


def load(text: str) -> Any:
    """The YAML value of some text, with scalars of other types as `Plain`.

    Raises:
        yaml.YAMLError: it is not YAML.
        RefusedError: a key is given twice, or the values are too many or nested too deep.
    """
    return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader


def load_argument(text: str) -> Any:
    """The value after `--set KEY=`: text, with YAML's value if that is of another type.

    Invalid YAML, and values that YAML would cut off at a comment, are text as well.

    Raises:
        RefusedError: a key is given twice, or the values are too many or nested too deep.
    """
    try:
        node, value = yaml.compose(text, _Loader), load(text)
    except RefusedError:
        raise
    except yaml.YAMLError:
        return text
    if value is None:
        return None if text.strip() in _NULLS else text
    if node is not None and text[node.end_mark.index :].strip():
        return text
    if isinstance(value, str) and not isinstance(value, Plain):
        style = node.style if isinstance(node, yaml.ScalarNode) else None
        is_word = style is None or (style in "|>" and "\n" not in text)
        return text if is_word and not text.startswith("!") else value
    return Plain.of(text, value.value if isinstance(value, Plain) else value)


def unwrapped(value: Any) -> Any:
    """The list or mapping that a value after `--set` is; anything else unchanged."""
    return value.value if isinstance(value, Plain) and isinstance(value.value, dict | list) else value


def natural(value: Any) -> Any:
    """YAML's own value, without any `Plain`."""
    if isinstance(value, Plain):
        return natural(value.value)
    if isinstance(value, dict):
        return {key: natural(item) for key, item in value.items()}
    if isinstance(value, list):
        return [natural(item) for item in value]
    return value


# --- what a field wants ---------------------------------------------------------------------------------------------


def fit(value: Any, annotation: Any) -> Any:
    """The value as the type of a field; values inside a nested configuration are left to it."""
    return _fit(value, _leaves(annotation))


def _fit(value: Any, leaves: list[Any]) -> Any:
    if isinstance(value, Plain):
        return _fit(value.value, leaves) if _wants(value.value, leaves) else str.__str__(value)
    if isinstance(value, list):
        items = _items(leaves, list)
        return [_fit(item, items) for item in value]
    if isinstance(value, dict) and not any(map(_is_model, leaves)):
        items = _items(leaves, dict)
        return {key: _fit(item, items) for key, item in value.items()}
    return value


def _leaves(annotation: Any) -> list[Any]:
    """The types of a union; an annotation without its metadata."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _leaves(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [leaf for one in get_args(annotation) for leaf in _leaves(one)]
    return [annotation]


def _items(leaves: list[Any], kind: type) -> list[Any]:
    """Types of the items of a union's lists or mappings; Any if they are not given."""
    args = [get_args(leaf) for leaf in leaves if _holds(leaf, kind)]
    inner = [one for found in args for one in (found[-1:] if kind is dict else found) if one is not Ellipsis]
    return [leaf for one in inner for leaf in _leaves(one)] or [Any]


def _holds(leaf: Any, kind: type) -> bool:
    """Whether a type is one of lists, or of mappings."""
    origin = get_origin(leaf) or leaf
    if not isinstance(origin, type) or issubclass(origin, str | bytes):
        return False
    return issubclass(origin, Mapping) if kind is dict else issubclass(origin, Sequence | Set)


def _is_model(leaf: Any) -> bool:
    return isinstance(leaf, type) and issubclass(leaf, BaseModel)


def _wants(value: Any, leaves: list[Any]) -> bool:
    """Whether the field needs YAML's value of a scalar instead of its text."""
    if any(_takes(leaf, value) for leaf in leaves):
        return True
    # Neither fits: the error shows a list as a list, but `no` as a word.
    return not isinstance(value, bool) and all(
        leaf in (bool, int, float, types.NoneType) or _is_model(leaf) for leaf in leaves
    )


def _takes(leaf: Any, value: Any) -> bool:
    if leaf in (Any, object):
        return True
    if get_origin(leaf) is Literal:
        return any(type(one) is type(value) and one == value for one in get_args(leaf))
    if isinstance(value, dict):
        return _is_model(leaf) or _holds(leaf, dict)
    if isinstance(value, list):
        return _holds(leaf, list)
    return leaf is bool if isinstance(value, bool) else leaf in (int, float)
