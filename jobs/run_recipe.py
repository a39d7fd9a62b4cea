"""Run a recipe on Spark: `spark-submit --py-files stillhouse.zip jobs/run_recipe.py --conf RECIPE --set output=DIR`."""

import argparse
import sys

from etl import conf
from etl.engines.spark import SparkEngine
from etl.recipe import Recipe
from etl.stages.run import RunResult, run_recipe
from jobs.entry import main_of, report


def run(name_or_path: str, overrides: list[str]) -> RunResult:
    """Load a recipe with its overrides and run it in the session that is there, or a local one."""
    recipe = conf.load(Recipe, name_or_path, "recipes", overrides)
    engine = SparkEngine(report=report)
    try:
        return run_recipe(recipe, engine, report)
    finally:
        engine.close()


def main(argv: list[str]) -> int:
    """Exit code of one run: 0, or 2 for what the user can mend."""
    parser = argparse.ArgumentParser(prog="run_recipe.py", description="Run a recipe on Spark.")
    parser.add_argument("--conf", required=True, help="recipe: a shipped name, a path or a URI")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override; @FILE is its text")
    options = parser.parse_args(argv)

    def job() -> int:
        run(options.conf, options.set)
        return 0

    return main_of(job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
