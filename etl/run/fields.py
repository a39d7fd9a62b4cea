"""The additional columns from a recipe's sources, checked before a row is read."""

from collections.abc import Iterable
from typing import get_args

import pyarrow as pa

from etl.errors import ConfigError
from etl.pipeline import AnyStep
from etl.run.recipe import Recipe
from etl.sources.fields import called_otherwise, union
from etl.stages.dedup.semantic import Semantic
from etl.stages.dedup.stage import Dedup
from etl.stages.stage import Stage


def fields_of(recipe: Recipe) -> pa.Schema:
    """The fields of all sources, in the order of the recipe.

    Raises:
        ConfigError: a description is missing or wrong, two sources differ about a field, or a field has the name of
            a column that a step or stage adds.
    """
    fields = {name: source.shape().fields for name, source in recipe.sources.items()}
    taken = _columns_of_stages(recipe.stages)
    for source, given in fields.items():
        for name, field in given.items():
            if name.lower() in taken:
                raise ConfigError(
                    f"source '{source}': the field '{name}' has the name of a column of {taken[name.lower()]}; "
                    f"{called_otherwise(name, field)}"
                )
    return union(fields)


def _columns_of_stages(stages: Iterable[Stage]) -> dict[str, str]:
    """Column in lower case -> what adds it: any known step or stage, listed or not, and those of the recipe."""
    kinds = get_args(get_args(AnyStep)[0])
    makers = [(f"the step '{kind.model_fields['kind'].default}'", kind.adds) for kind in kinds]
    units = [{"unit": unit} for unit in ("paragraph", "line", "sentence")]
    known = [Dedup.model_validate({"units": units}), Semantic()]
    makers += [(f"the stage '{stage.label}'", stage.added) for stage in (*known, *stages)]
    return {column.lower(): maker for maker, columns in makers for column in columns.names}
