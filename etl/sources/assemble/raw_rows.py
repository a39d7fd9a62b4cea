"""The raw rows of a source that is assembled, as formats read them: columns as JSON values, whatever they hold."""

from typing import Literal

from etl.sources.shapes.described import Described, SkillRule


class RawRows(Described):
    """Rows of which nothing is read but some columns, as JSON values."""

    shape: Literal["raw"] = "raw"
    read: tuple[str, ...]
    """The columns."""
    wanted: tuple[str, ...] = ()
    """Those without which nothing can be made of a row."""
    skill_bucket: SkillRule = SkillRule(default="B4")
    """Of no use: what is made of the rows has its own."""

    @property
    def nested(self) -> tuple[str, ...]:
        """All columns."""
        return self.read

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns without which nothing can be made of a row."""
        return self.wanted


def raw_rows(shape: Described) -> RawRows:
    """How the raw rows of a source that is assembled are read."""
    assert shape.assemble is not None
    given = (name for name in shape.columns if name not in shape.assemble.makes)
    read = tuple(dict.fromkeys((*shape.assemble.columns, *given)))
    return RawRows(read=read, wanted=shape.assemble.needed)
