"""No foreign text controls or clears the screen, and no value makes an error long."""

import io
import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from etl.console import ERR, OUT, main_of, report, run_app, warn
from etl.errors import ConfigError
from etl.storage.location import Location
from etl.terminal import PrintableFormatter, Terminal, message, one_line, printable, shown
from etl.yaml_text import load_argument
from jobs import cli
from tests.datasets import write_dataset
from tests.etl.storage.test_catalog import WORDS

HOSTILE = "a \x1b]0;owned\x07\x1b[2J\x9b2J\r\b\x7f\u202eb\u2066 [bold]c[/bold] :smile: \udcff\tz"
ESCAPED = r"a \x1b]0;owned\x07\x1b[2J\x9b2J\r\x08\x7f\u202eb\u2066 [bold]c[/bold] :smile: \udcff\tz"


def unseen(text: str) -> set[str]:
    return {sign for sign in text if not sign.isprintable()} - {"\n"}


@pytest.fixture
def terminal(monkeypatch):
    """What is written to a terminal that takes colours."""
    shown_there = io.StringIO()
    for console in (OUT, ERR):
        monkeypatch.setattr(console, "_file", shown_there)
    return shown_there


def test_s11_what_is_foreign_is_printed_as_escapes_and_its_markup_as_it_stands(terminal):
    report(HOSTILE)
    assert terminal.getvalue() == ESCAPED + "\n"
    warn(HOSTILE)
    assert terminal.getvalue() == f"{ESCAPED}\nwarning: {ESCAPED}\n"


def test_s11_a_line_of_a_report_stays_one(terminal):
    report("x\nok: nothing is wrong")
    assert terminal.getvalue() == "x\\nok: nothing is wrong\n"


def test_s11_an_error_keeps_its_lines_and_none_of_a_value_begins_as_its_own(terminal):
    def job():
        raise ConfigError(f"recipe:\n  output: no\nDataError: {HOSTILE}")

    assert main_of(job) == 2
    assert terminal.getvalue() == f"ConfigError: recipe:\n  output: no\n  DataError: {ESCAPED}\n"


def test_s11_tables_and_coloured_text_are_printable_too():
    written = io.StringIO()
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    screen = Terminal(file=written, force_terminal=True, color_system="truecolor", width=300)
    screen.print(table)
    screen.print(HOSTILE, style="red")
    plain = re.sub(r"\x1b\[\d*m", "", written.getvalue())
    assert unseen(plain) == set()
    assert "[bold]c[/bold] :smile:" in plain


def test_s11_logging_is_printable():
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "host %s", (HOSTILE,), None)
    assert PrintableFormatter().format(record) == f"host {ESCAPED}"


def test_s11_verify_of_an_object_whose_name_is_escapes(tmp_path, capsys):
    write_dataset(Location.of(tmp_path / "out"), "out", "WORDS", {"": WORDS})
    (tmp_path / "out" / "a \x1b]0;owned\x07\x1b[2J b\n").write_bytes(b"x")
    assert run_app(cli.app, ["verify", str(tmp_path / "out")], "stillhouse") in (0, 1)
    assert run_app(cli.app, ["sweep", str(tmp_path / "out")], "stillhouse") == 0
    said = capsys.readouterr()
    assert unseen(said.out + said.err) == set()


@given(st.text())
def test_any_text_becomes_printable_once_and_for_all(text):
    for form in (printable, one_line, message):
        made = form(text)
        assert not any(sign < " " or "\x7f" <= sign <= "\x9f" for sign in made if sign != "\n")
        assert printable(made) == made
        made.encode()
    assert "\n" not in one_line(text)
    assert all(line.startswith(" ") for line in message(text).split("\n")[1:])


@given(
    st.recursive(
        st.text() | st.integers() | st.floats(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_no_value_is_long_in_an_error(value):
    assert len(shown(value)) < 600


def test_what_is_short_is_shown_as_python_writes_it():
    for value in ("x", 3, None, [1, "a"], {"a": [1.5]}, "it's"):
        assert shown(value) == repr(value)
    assert shown(load_argument("[1, a]")) == "[1, 'a']"
