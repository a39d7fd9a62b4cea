"""`Config`: base class of everything that is read from YAML or stored as JSON."""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from etl.errors import ConfigError
from etl.terminal import shown
from etl.urls import check_url, is_url
from etl.yaml_text import fit

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
"""A name that distinguishes steps or stages of one kind: the prefix of their columns and folders."""


_MAX_NAME = 100


def nearest(name: str, known: Sequence[str]) -> str:
    """`did you mean 'x'? ` with the most similar known name; empty if none is similar."""
    near = difflib.get_close_matches(name[:_MAX_NAME], known, n=1, cutoff=0.0)
    return f"did you mean '{near[0]}'? " if near else ""


FROM_YAML = "from_yaml"
"""Key of the validation context: whether values are as etl/yaml_text.py reads them."""


def _fitted(model: type[BaseModel], key: str, value: Any) -> Any:
    """A value as the type that its field has."""
    named = [field for name, field in model.model_fields.items() if key in (name, field.alias)]
    return fit(value, named[0].annotation)


class Config(BaseModel):
    """Base of everything that is read from YAML: unknown keys are errors, values never change."""

    # A value may be a secret or part of one, so only etl/config_errors.py puts values into errors.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        coerce_numbers_to_str=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    located: ClassVar[frozenset[str]] = frozenset()
    """Fields for places and speed. They never change the output, so they are not in the fingerprint; the content of a
    file is, by `Step.artefacts`."""

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, values: Any, info: ValidationInfo) -> Any:
        if isinstance(values, dict):
            valid = [field.alias or name for name, field in cls.model_fields.items()]
            for key in values:
                if key not in valid and key not in cls.model_fields:
                    raise ValueError(
                        f"unknown key {shown(str(key))}; {nearest(str(key), valid)}valid keys: {', '.join(valid)}"
                    )
            if info.context and info.context.get(FROM_YAML):
                return {key: _fitted(cls, key, value) for key, value in values.items()}
        return values

    @field_validator("*")
    @classmethod
    def _urls_can_be_printed(cls, value: Any) -> Any:
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str) and is_url(text):
                try:
                    check_url(text)
                except ConfigError as error:
                    raise ValueError(str(error)) from error
        return value

    def fingerprinted(self) -> dict[str, Any]:
        """The fields that decide the output, without those at their default, in JSON types."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude=set(self.located))
