"""The keys of a configuration, with their types, bounds, defaults and descriptions.

Everything comes from the model itself, through pydantic's JSON schema: a field's docstring is its description. Types
are given in words of YAML (`text`, `whole number, at least 1`, `list of text`); a key whose value is a model of its own
names that model, which `models_of` lists.
"""

from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

Schema = dict[str, Any]

_WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}


@dataclass(frozen=True)
class Key:
    """One key of a configuration.

    Attributes:
        name: as YAML has it.
        type: in words.
        default: as YAML has it; None if the key is required.
        doc: its docstring, in one line.
    """

    name: str
    type: str
    default: str | None
    doc: str


@dataclass(frozen=True)
class Model:
    """A configuration, or a section of one.

    Attributes:
        name: of its class.
        purpose: the first paragraph of its docstring, in one line.
        keys: in its order.
    """

    name: str
    purpose: str
    keys: list[Key]


def models_of(model: type[BaseModel]) -> list[Model]:
    """A model and the models of its keys, at any depth."""
    schema = model.model_json_schema()
    inner = {name: below for name, below in schema.get("$defs", {}).items() if "properties" in below}
    return [Model(name, _first_line(of), _keys(of)) for name, of in {schema["title"]: schema, **inner}.items()]


def keys_of(model: type[BaseModel]) -> list[Key]:
    """The keys of a model, in order."""
    return models_of(model)[0].keys


def purpose_of(model: type[BaseModel]) -> str:
    """The purpose of a model in one line: its own `purpose`, else the beginning of its docstring."""
    return getattr(model, "purpose", "") or models_of(model)[0].purpose


def _keys(schema: Schema) -> list[Key]:
    required = set(schema.get("required", ()))
    return [
        Key(name, type_of(value), None if name in required else _default(value), _line(value))
        for name, value in schema.get("properties", {}).items()
    ]


def _default(schema: Schema) -> str:
    value = schema.get("default")
    return f"the defaults of {type_of(schema)}" if "$ref" in schema and value else _yaml(value)


def type_of(schema: Schema) -> str:
    """The type that a JSON schema describes, in words."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "const" in schema:
        return _yaml(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(map(_yaml, schema["enum"]))
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(map(type_of, schema[union])))
    match schema.get("type"):
        case "array":
            return _list(schema)
        case "object":
            values = schema.get("additionalProperties")
            return f"mapping of {type_of(values)}" if isinstance(values, dict) and values else "mapping"
        case None:
            return "any value"
        case kind:
            return ", ".join([_WORDS[kind], *_bounds(schema)])


def _list(schema: Schema) -> str:
    items = schema.get("prefixItems")
    if items is not None:
        return "list of " + ", ".join(map(type_of, items))
    of = type_of(schema.get("items", {}))
    return f"list of {of}" if " or " not in of else f"list, each {of}"


def _bounds(schema: Schema) -> list[str]:
    told = {
        "minimum": "at least {}",
        "exclusiveMinimum": "above {}",
        "maximum": "at most {}",
        "exclusiveMaximum": "below {}",
        "pattern": "matching {}",
    }
    return [words.format(schema[key]) for key, words in told.items() if key in schema]


def _first_line(schema: Schema) -> str:
    return " ".join(schema.get("description", "").partition("\n\n")[0].split())


def _line(schema: Schema) -> str:
    return " ".join(schema.get("description", "").split())


def _yaml(value: Any) -> str:
    """A value as YAML, in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").removesuffix("...").strip()
