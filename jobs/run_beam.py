"""Run a recipe on Beam: `python -m jobs.run_beam --conf RECIPE --set output=DIR -- --runner=…`; no JVM, no pyspark.

Every flag that is not ours is one of Beam's; without --runner the jobs run in this process. docs/dataflow.md says how
it runs on Dataflow.
"""

import argparse
import sys

from etl import conf
from etl.engines.beam import BeamEngine, JobNotRun, pipeline_options, runs_here
from etl.errors import ConfigError
from etl.recipe import Recipe
from etl.run.run import RunResult, run_recipe
from etl.sources.files import SAMPLE
from jobs.entry import add_recipe_flags, main_of, report


def run(name_or_path: str, overrides: list[str], flags: list[str]) -> RunResult:
    """Load a recipe with its overrides and run it with Beam's flags.

    Raises:
        ConfigError: a flag of Beam's is wrong, or the recipe names a place that workers elsewhere do not reach.
        JobNotRun: the flags say that jobs are described only.
    """
    recipe = conf.load(Recipe, name_or_path, "recipes", overrides)
    options = pipeline_options(flags)
    if not runs_here(options):
        _check_reach(recipe)
    engine = BeamEngine(options, report, recipe.place)
    try:
        return run_recipe(recipe, engine, report)
    finally:
        engine.close()


def _check_reach(recipe: Recipe) -> None:
    """Workers elsewhere do not see this machine's disk."""
    places = [("output", recipe.place)]
    for name, source in recipe.sources.items():
        for pattern in source.patterns:
            if pattern.startswith(SAMPLE):
                raise ConfigError(f"sources.{name}.path={pattern} is on this machine's disk alone; name files by URL")
            places.append((f"sources.{name}.path", source.locate(pattern)))
    for key, place in places:
        if place.is_local:
            raise ConfigError(
                f"{key}={place} is on this machine's disk, which the workers of that runner do not reach; "
                f"--set {key}=URL, such as gs://bucket/folder"
            )


def main(argv: list[str]) -> int:
    """Exit code of one run: 0, or 2 for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.run_beam", description="Run a recipe on Beam.", allow_abbrev=False,
        usage="%(prog)s [-h] --conf RECIPE [--set KEY=VALUE ...] [-- FLAGS OF BEAM]",
    )  # fmt: skip
    add_recipe_flags(parser)
    options, flags = parser.parse_known_args(argv)

    def job() -> int:
        try:
            run(options.conf, options.set, [flag for flag in flags if flag != "--"])
        except JobNotRun as described:
            report(str(described))
        return 0

    return main_of(job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
