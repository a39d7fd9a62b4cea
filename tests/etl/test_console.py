"""Exit codes and the one line that a user reads, for commands, bad options and bad input."""

import subprocess
import sys
from typing import Annotated

import pytest
import typer

from etl.console import ConfFlag, Overrides, command, main_of, report, run_app, run_command
from etl.errors import DataError


@command
def job(name: ConfFlag, set_: Overrides, code: Annotated[int, typer.Option(min=0)] = 0) -> int:
    """Does what it is told."""
    if name == "absent":
        raise DataError("there is no 'absent'; name another one")
    if name == "bug":
        raise KeyError(name)
    if name == "stopped":
        raise KeyboardInterrupt
    if name == "stopped badly":
        try:
            raise KeyboardInterrupt
        finally:
            raise OSError("the JVM is gone")
    if name == "stopped and refused":
        try:
            raise KeyboardInterrupt
        finally:
            raise DataError("the lock is gone")
    report(f"{name} {set_}")
    return code


def call(*argv):
    return run_command(job, argv, "python -m jobs.toy")


def test_flags_arrive_and_the_code_of_the_job_is_returned(capsys):
    assert call("--conf", "demo", "--set", "a=-1", "--set=b=[x]", "--code", "1") == 1
    assert capsys.readouterr().out == "demo ['a=-1', 'b=[x]']\n"
    assert call("--conf=demo") == 0
    assert capsys.readouterr().out == "demo []\n"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--conf", "absent"], "DataError: there is no 'absent'; name another one\n"),
        ([], "ConfigError: Missing option '--conf'; `python -m jobs.toy --help` shows all options\n"),
        (["--conf", "demo", "--con", "x"], "ConfigError: No such option: --con"),
        (["--conf", "demo", "--code", "two"], "ConfigError: Invalid value for '--code': "),
        (["--conf", "demo", "--code", "-1"], "ConfigError: Invalid value for '--code': "),
        (["--conf", "demo", "more"], "ConfigError: Got unexpected extra argument"),
        (
            ["--conf", "demo", "--output", "x"],
            (
                "ConfigError: No such option: --output; a key of the configuration is set by --set output=VALUE; "
                "`python -m jobs.toy --help` shows all options\n"
            ),
        ),
        (
            ["--conf", "demo", "data.corpus=x"],
            (
                "ConfigError: Got unexpected extra argument(s) (data.corpus=x); a key of the configuration is set by "
                "--set data.corpus=x; `python -m jobs.toy --help` shows all options\n"
            ),
        ),
    ],
)
def test_bad_input_and_bad_options_are_one_line_and_exit_code_2(capsys, argv, line):
    assert call(*argv) == 2
    said = capsys.readouterr()
    assert said.err.startswith(line)
    assert (said.err.count("\n"), said.out) == (1, "")


def test_a_name_is_printed_as_it_is(capsys):
    name = f"a:on:b [bold]{'x' * 200}[/bold] 维基"
    assert call("--conf", name) == 0
    assert capsys.readouterr().out == f"{name} []\n"


def test_help_is_shown_with_exit_code_0(capsys):
    assert call("--help") == 0
    said = capsys.readouterr().out
    assert "Does what it is told." in said
    assert "--set" in said


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError):
        call("--conf", "bug")


@pytest.mark.parametrize("name", ["stopped", "stopped badly", "stopped and refused"])
def test_ctrl_c_is_one_line_also_where_cleaning_up_after_it_fails(capsys, name):
    assert call("--conf", name) == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C; run the same command again to resume\n"


def test_without_a_command_an_app_shows_its_commands(capsys):
    app = typer.Typer(no_args_is_help=True)
    app.command("first")(job)
    app.command("second")(job)
    assert run_app(app, [], "toys") == 2
    said = capsys.readouterr()
    assert "second" in said.out + said.err
    assert "ConfigError" not in said.err
    assert run_app(app, ["third"], "toys") == 2
    assert capsys.readouterr().err.startswith("ConfigError: No such command 'third'")


def test_none_is_0():
    assert main_of(lambda: None) == 0


def test_a_command_ends_without_a_search_for_garbage():
    # What is registered later runs earlier.
    code = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0)); import etl.console"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
