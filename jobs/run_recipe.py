"""Run a recipe on Spark: `spark-submit --py-files stillhouse.zip jobs/run_recipe.py --conf RECIPE --set output=DIR`.

`--stage LABEL` runs only one stage, for a scheduler that starts them one by one. The files jobs/stage_*.py do the same
for the built-in kinds; there `--stage NAME` selects a named stage.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from etl import conf
from etl.console import AllowCode, ConfFlag, Overrides, Verbose, command, run_command
from etl.engines.spark import SparkEngine
from etl.engines.spark_daemon import VOCABULARY
from etl.harmony.vocabulary import vocabulary_file
from etl.library_log import libraries_aside
from etl.run.recipe import Recipe
from etl.run.run import RunResult, label_of, run_recipe, run_stage
from etl.stages.tokens import Tokenize
from etl.voice import Voice, voice_of

LabelFlag = Annotated[
    str | None,
    typer.Option("--stage", metavar="LABEL", help="Run only this stage, named as `stillhouse plan` shows it."),
]
StageFlag = Annotated[
    str | None,
    typer.Option(
        "--stage", metavar="NAME", help="Run the stage with this name, if the recipe has several of the kind."
    ),
]


def run(name_or_path: str, overrides: list[str], allow_code: bool = False, voice: Voice | None = None) -> RunResult:
    """Load a recipe with its overrides (etl.conf.load) and run it in the active session, or else a local one."""
    voice = voice or voice_of()
    with _ready(name_or_path, overrides, allow_code, voice) as (recipe, engine):
        return run_recipe(recipe, engine, voice)


@contextlib.contextmanager
def _ready(
    name_or_path: str, overrides: list[str], allow_code: bool, voice: Voice
) -> Iterator[tuple[Recipe, SparkEngine]]:
    recipe = conf.load(Recipe, name_or_path, "recipes", overrides, allow_code)
    for stage in recipe.stages:
        if isinstance(stage, Tokenize):
            # An unusable vocabulary is reported here as the user's error; the daemon would just exit.
            vocabulary_file(stage.harmony.vocabulary)
            os.environ[VOCABULARY] = stage.harmony.vocabulary
    with libraries_aside(), contextlib.closing(SparkEngine(report=voice, detail=voice.detail)) as engine:
        yield recipe, engine


def main(argv: list[str]) -> int:
    """Exit code of one run: 0, or 2 for an error that the user can fix."""

    @command
    def job(
        name: ConfFlag,
        set_: Overrides,
        stage: LabelFlag = None,
        allow_code: AllowCode = False,
        verbose: Verbose = False,
    ) -> None:
        """Run a recipe, or one of its stages, on Spark."""
        voice = voice_of(verbose)
        if stage is None:
            run(name, set_, allow_code, voice)
            return
        with _ready(name, set_, allow_code, voice) as (recipe, engine):
            run_stage(recipe, engine, voice, stage)

    return run_command(job, argv, "run_recipe.py")


def main_of_stage(kind: str, argv: list[str]) -> int:
    """Exit code of one stage of a recipe; earlier stages must be committed."""

    @command
    def job(
        name: ConfFlag,
        set_: Overrides,
        stage: StageFlag = None,
        allow_code: AllowCode = False,
        verbose: Verbose = False,
    ) -> None:
        """Run one stage of a recipe on Spark; earlier stages must be committed."""
        voice = voice_of(verbose)
        with _ready(name, set_, allow_code, voice) as (recipe, engine):
            run_stage(recipe, engine, voice, label_of(recipe, kind, stage))

    return run_command(job, argv, f"stage_{kind}.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
