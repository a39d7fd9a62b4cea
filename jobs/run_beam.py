"""Run a recipe on Beam: `python -m jobs.run_beam --conf RECIPE --set output=DIR -- --runner=…`; no JVM, no pyspark.

Unknown flags are passed to Beam; without --runner the jobs run in this process. docs/how-to/dataflow.md describes
Dataflow.
"""

import contextlib
import sys

import typer

from etl import conf
from etl.console import AllowCode, ConfFlag, Overrides, Verbose, command, report, run_command
from etl.engines.beam_import import import_beam_without_clouds, import_clouds
from etl.errors import ConfigError
from etl.library_log import libraries_aside
from etl.run.recipe import Recipe
from etl.run.run import RunResult, run_recipe
from etl.sources.files import SAMPLE
from etl.voice import Voice, voice_of


def run(
    name_or_path: str, overrides: list[str], flags: list[str], allow_code: bool = False, voice: Voice | None = None
) -> RunResult:
    """Load a recipe with its overrides (etl.conf.load) and run it with Beam's flags.

    Raises:
        ConfigError: a flag of Beam is wrong, or the recipe names a place that remote workers cannot reach.
        JobNotRun: the flags ask only for a description of the jobs.
    """
    _load_beam(flags)
    from etl.engines.beam import BeamEngine
    from etl.engines.beam_options import pipeline_options, runs_here

    recipe = conf.load(Recipe, name_or_path, "recipes", overrides, allow_code)
    options = pipeline_options(flags)
    if not runs_here(options):
        _check_reach(recipe)
    voice = voice or voice_of()
    with libraries_aside(), contextlib.closing(BeamEngine(options, voice, recipe.place)) as engine:
        return run_recipe(recipe, engine, voice)


def _load_beam(flags: list[str]) -> None:
    """Beam's options from the flags; without flags the jobs run in this process."""
    if flags:
        import_clouds()
    else:
        import_beam_without_clouds()


def _check_reach(recipe: Recipe) -> None:
    """Refuse local paths, as remote workers do not see this machine's disk."""
    places = [("output", recipe.place)]
    for name, source in recipe.sources.items():
        for pattern in source.patterns:
            if pattern.startswith(SAMPLE):
                raise ConfigError(f"sources.{name}.path={pattern} is on this machine's disk; remote workers need a URL")
            places.append((f"sources.{name}.path", source.locate(pattern, recipe.storage)))
    for key, place in places:
        if place.is_local:
            raise ConfigError(
                f"{key}={place} is on this machine's disk, which remote workers cannot reach; "
                f"--set {key}=URL, such as gs://bucket/folder"
            )


def main(argv: list[str]) -> int:
    """Exit code of one run: 0, or 2 for an error that the user can fix."""
    beams_flags_pass = {"allow_extra_args": True, "ignore_unknown_options": True}
    return run_command(_job, argv, "python -m jobs.run_beam", beams_flags_pass)


@command
def _job(
    context: typer.Context, name: ConfFlag, set_: Overrides, allow_code: AllowCode = False, verbose: Verbose = False
) -> None:
    """Run a recipe on Beam. Other flags are passed to Beam; they can follow `--`."""
    _load_beam(context.args)
    from etl.engines.beam import JobNotRun

    try:
        run(name, set_, context.args, allow_code, voice_of(verbose))
    except JobNotRun as described:
        for line in str(described).splitlines():
            report(line)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
