"""Beam's flags: unknown ones are errors, and they decide the runner."""

import argparse
import copy
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    PortableOptions,
    SetupOptions,
    StandardOptions,
)
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.runner import create_runner

from etl.errors import ConfigError


class WorkerOptions(PipelineOptions):
    """Our flags beside those of Beam."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--gpu_type", help="accelerator for stages that need GPUs, by Dataflow's name: nvidia-tesla-t4, nvidia-l4"
        )


class JobOptions(PipelineOptions):
    """Options that build each of their views only once: Beam asks for hundreds a job and builds a parser for each."""

    def view_as(self, cls: Any) -> Any:
        views: dict[Any, Any] = self.__dict__.setdefault("_views", {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        return views[cls]

    def __deepcopy__(self, memo: dict[int, Any]) -> "JobOptions":
        made = JobOptions(self._flags)
        made._all_options = copy.deepcopy(self._all_options, memo)
        return made


class _Parser(argparse.ArgumentParser):
    """Knows every flag of every options class; a wrong value raises an error of ours, without usage text or exit."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"Beam: {message}")


def pipeline_options(flags: Sequence[str]) -> PipelineOptions:
    """Command line flags as Beam's options; Beam itself would only warn of a flag that it does not know.

    Raises:
        ConfigError: a flag is unknown, its value is refused, or one that the runner needs is missing.
    """
    parser: Any = _Parser(add_help=False, allow_abbrev=False)
    for options in sorted(set(PipelineOptions.__subclasses__()), key=lambda options: options.__name__):
        options._add_argparse_args(parser)
    _, unknown = parser.parse_known_args(list(flags))
    for flag in unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        near = difflib.get_close_matches(flag.partition("=")[0], known, 1)
        raise ConfigError(f"Beam has no flag {flag}" + (f"; did you mean {near[0]}?" if near else ""))
    made = JobOptions(list(flags))
    setup = made.view_as(SetupOptions)
    if setup.save_main_session is None:
        # Dataflow pickles __main__ by default, but all that our workers run is in packages.
        setup.save_main_session = False
    wrong = PipelineOptionsValidator(made, runner_of(made)).validate()
    if wrong:
        raise ConfigError("Beam: " + "; ".join(wrong))
    return made


def runner_name(options: PipelineOptions) -> str:
    """`direct`, `portable`, `dataflow` …: the value of --runner without its package and its suffix."""
    name: str = options.view_as(StandardOptions).runner or "DirectRunner"
    return name.rpartition(".")[2].lower().removesuffix("runner")


def runner_of(options: PipelineOptions) -> Any:
    """The runner that the options name.

    DirectRunner is the in-process FnApiRunner: what Beam itself chooses under that name starts by downloading Prism.
    """
    if runner_name(options) in ("direct", "fnapi"):
        return FnApiRunner()
    try:
        return create_runner(options.view_as(StandardOptions).runner)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"Beam: {error}") from error


def runs_here(options: PipelineOptions) -> bool:
    """True when workers are on this machine and see its disk."""
    local = ("direct", "fnapi", "bundlebaseddirect", "prism")
    return runner_name(options) in local or options.view_as(PortableOptions).environment_type == "LOOPBACK"


def is_one_worker(options: PipelineOptions) -> bool:
    """True when this process does every task itself, in sequence."""
    in_process = runner_name(options) in ("direct", "fnapi")
    return in_process and bool(options.view_as(DirectOptions).direct_num_workers == 1)
