"""What a row asks: one column, or a template over several (etl/sources/shapes/template.py)."""

from pydantic import field_validator, model_validator

from etl.config import Config
from etl.sources.shapes import template
from etl.sources.shapes.described import columns_of


class Question(Config):
    """What a row asks."""

    user: str | None = None
    """Column of the user's text."""
    prompt: str | None = None
    """Instead of `user`: a template over several columns, such as `{instruction}`, a blank line, `{input}`."""

    @field_validator("prompt")
    @classmethod
    def _is_a_template(cls, value: str | None) -> str | None:
        if value is not None and not template.columns_in(value):
            raise ValueError(f"'{value}' names no column; write one between braces, such as {{instruction}}")
        return value

    @model_validator(mode="after")
    def _says_one_thing(self) -> "Question":
        if (self.user is None) == (self.prompt is None):
            raise ValueError("give either `user` (a column) or `prompt` (a template over several)")
        return self

    @property
    def asked(self) -> tuple[str, ...]:
        """Columns without which nothing is asked."""
        return template.first_columns(self.prompt) if self.prompt is not None else columns_of(self.user)

    @property
    def templated(self) -> tuple[str, ...]:
        """The columns of the template."""
        return template.columns_in(self.prompt) if self.prompt is not None else ()
