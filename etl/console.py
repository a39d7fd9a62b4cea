"""Shared by every entry point: the two streams, errors as one line and an exit code, and typer commands.

A command is a function that returns its exit code, or None for 0. `@command` turns bad input, and a package that is
not installed, into one line and exit code 2. `run_app` and `run_command` do the same for bad options, turn Ctrl-C into
one line and exit code 130, and return the code where typer would end the process. Anything else keeps its traceback.
Costs the import of typer and rich, 0.1 s.

In a process that imports this, Python looks for garbage in cycles less often, and not at its end. The 300,000 objects
of our imports and kernels are no garbage, and searching them took 1 of the 8 CPU-seconds of a small run.
"""

import atexit
import functools
import gc
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ParamSpec

import typer

from etl.errors import ConfigError, StillhouseError
from etl.extras import without_package
from etl.terminal import PrintableFormatter, Terminal, message, one_line

P = ParamSpec("P")

gc.set_threshold(50_000, 20, 20)
atexit.register(gc.freeze)

OUT = Terminal(soft_wrap=True)
ERR = Terminal(stderr=True, soft_wrap=True)
"""Prints lines as they are, without cutting or wrapping; etl/terminal.py escapes their control characters."""

ConfFlag = Annotated[
    str, typer.Option("--conf", metavar="CONF", help="A shipped configuration's name, a path or a URI.")
]
"""For a job that is started by its file; a command of `stillhouse` takes it as an argument."""
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        default_factory=list,
        show_default=False,
        help="Override one setting, e.g. --set dedup.near.threshold=0.7. Repeatable. KEY=@FILE takes the value from a "
        "file.",
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also show internals: every dataset, the engine, how steps are set up.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object; all else goes to standard error.")
]
AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Allow code from outside the package in a configuration from a URI, or in the files of a run. It runs "
        "here, with your rights.",
    ),
]


def examples(*lines: str) -> str:
    """The end of a command's help: commands as a user types them, one per line."""
    return "\n\n".join([f"Example{'s' * (len(lines) > 1)}:", *lines])


def report(line: str) -> None:
    """One line for the user; line feeds in the text are escaped."""
    OUT.print(one_line(line))


def report_json(result: Any) -> None:
    """The result of a command for scripts: one line of JSON on standard output."""
    OUT.print(json.dumps(result, ensure_ascii=False))


def warn(line: str) -> None:
    """One warning line for the user, on standard error."""
    ERR.print(one_line(f"warning: {line}"), style="yellow" if sys.stderr.isatty() else None)


def note(line: str) -> None:
    """One line about the progress of a long run, on standard error, apart from results."""
    ERR.print(one_line(line))


def main_of(run: Callable[[], int | None]) -> int:
    """The exit code of a job: its own, or 2 after one line about bad input or a package that is not installed."""
    try:
        return run() or 0
    except StillhouseError as error:
        if _is_ctrl_c(error):
            raise
        return _refused(error)
    except ModuleNotFoundError as error:
        refusal = without_package(str(error))
        if refusal is None:
            raise
        return _refused(refusal)


def _refused(error: StillhouseError) -> int:
    ERR.print(message(error.to_text()), style="red" if sys.stderr.isatty() else None)
    return 2


def command(function: Callable[P, int | None]) -> Callable[P, None]:
    """The function as a typer command, which ends with the exit code of `main_of`."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        raise typer.Exit(main_of(lambda: function(*args, **kwargs)))

    return run


def run_app(app: typer.Typer, argv: Sequence[str], program: str) -> int:
    """The exit code of a command line.

    Args:
        app: its commands, each decorated with `command`.
        argv: the words after the program's name.
        program: what a user types to start it, for help and errors.
    """

    def run() -> int:
        try:
            with typer.main.get_command(app).make_context(program, list(argv)) as context:
                context.command.invoke(context)
        except typer.Exit as ended:
            return ended.exit_code
        except typer.TyperException as error:
            message = " ".join(error.format_message().replace("Value error, ", "").split())
            if not message:
                # The help was printed in its place.
                return 2
            of: typer.Context | None = getattr(error, "ctx", None)
            path = program if of is None else of.command_path
            hint = _hint(message, of)
            raise ConfigError(f"{message.rstrip('.')}; {hint}`{path} --help` shows all options") from error
        return 0

    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())
    try:
        return main_of(run)
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and _has_no_reader():
            return 1
        if not _is_ctrl_c(error):
            raise
        ERR.print("stopped by Ctrl-C; run the same command again to resume")
        return 128 + signal.SIGINT


def _hint(message: str, context: typer.Context | None) -> str:
    """How to set a key of a configuration, if one was given as an option or an argument."""
    key = re.match(r"No such option: --([\w.]+)|Got unexpected extra argument.*? \(([\w.]+)=(\S*)\)", message)
    if key is None or context is None or not any("--set" in parameter.opts for parameter in context.command.params):
        return ""
    name, value = (key[1], "VALUE") if key[1] else (key[2], key[3])
    return f"a key of the configuration is set by --set {name}={value}; "


def _has_no_reader() -> bool:
    """Whether nobody reads standard output any more, as behind `| head`; then nothing more is written to it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _is_ctrl_c(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C, or an error raised while a library or we cleaned up after it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def run_command(
    function: Callable[..., None], argv: Sequence[str], program: str, settings: Mapping[str, Any] | None = None
) -> int:
    """The exit code of a program that is one command.

    Args:
        function: decorated with `command`; the first lines of its docstring are the help.
        argv: the words after the program's name.
        program: what a user types to start it.
        settings: typer's `context_settings`.
    """
    app = typer.Typer(add_completion=False)
    app.command(context_settings=dict(settings or {}))(function)
    return run_app(app, argv, program)
