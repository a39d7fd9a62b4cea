"""The public name of running a recipe: `etl.stages.run.run_recipe`. The code is in etl/run/run.py."""

from etl.run.run import run_recipe

__all__ = ["run_recipe"]
