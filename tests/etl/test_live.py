"""The line that moves: repainted on a terminal and cut to it, plain and rare without one; widths, durations, rates."""

import contextlib
import fcntl
import io
import os
import struct
import sys
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.columns import cut, width
from etl.live import LiveLine, amount, columns_of, duration, rate


class Clock:
    """Seconds that a test sets."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=40) | st.text(
    "日本a…é", max_size=40
)


@given(TEXTS, st.integers(0, 60))
def test_what_is_cut_has_the_columns_that_there_are_and_is_the_beginning(text, columns):
    shown = cut(text, columns)
    assert width(shown) <= columns
    assert shown == text if width(text) <= columns else text.startswith(shown[:-1].rstrip())
    # No more is left out than has to be: an ideograph is two columns, and the ellipsis one.
    if width(text) > columns and text.strip() == text and " " not in text:
        assert width(shown) >= columns - 2


def test_a_terminal_shows_one_line_that_is_repainted_cut_and_taken_away(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "10")
    screen = Screen()
    line = LiveLine(lambda: screen)
    line.show("1/2 a: 3 of 40 parts")
    line.show("done\x1b[2J\n")
    line.clear()
    line.clear()
    assert screen.getvalue() == "\r\x1b[2K1/2 a: 3…\r\x1b[2Kdone\\x1b…\r\x1b[2K"


def test_other_lines_are_written_where_the_live_line_was(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    line = LiveLine(lambda: screen)
    line.show("live")
    with line.aside():
        screen.write("plain\n")
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("sys.stdout", screen)
    with line.guarded():
        line.show("live")
        sys.stdout.write("a library\n")
        sys.stderr.write("another\n")
    assert screen.getvalue().replace("\r\x1b[2K", "|") == "|live|plain\n|live|a library\nanother\n"


@pytest.mark.parametrize("is_dumb", [False, True])
def test_without_a_terminal_a_plain_line_comes_when_the_screen_was_silent_for_long(monkeypatch, is_dumb):
    monkeypatch.setenv("TERM", "dumb")
    clock, stream = Clock(), Screen() if is_dumb else io.StringIO()
    line = LiveLine(lambda: stream, clock, pause_s=30)
    for now_s, other in ((1, None), (29, None), (30, None), (31, None), (59, "a stage\n"), (61, None), (89, None)):
        clock.now_s = now_s
        if other:
            with line.aside():
                stream.write(other)
        line.show(f"at {now_s}, {'long ' * 30}".strip())
    line.clear()
    assert [shown.split(",")[0] for shown in stream.getvalue().splitlines()] == ["at 30", "a stage", "at 89"]


def test_a_terminal_that_does_not_say_has_80_columns(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert columns_of(io.StringIO()) == 80
    monkeypatch.setenv("COLUMNS", "33")
    assert columns_of(io.StringIO()) == 33


def test_a_terminal_says_how_wide_it_is():
    leader, follower = os.openpty()
    with contextlib.closing(os.fdopen(follower, "w")) as terminal:
        fcntl.ioctl(terminal.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 24, 57, 0, 0))
        assert columns_of(terminal) == 57
    os.close(leader)


DURATIONS = {0: "0.0 s", 9.94: "9.9 s", 12.4: "12 s", 59.6: "1m 00s", 3599: "59m 59s", 3600: "1h 00m", 9e4: "1d 01h"}
AMOUNTS = {
    0: "0",
    9_999: "9,999",
    10_000: "10k",
    49_400: "49k",
    999_400: "999k",
    1.25e6: "1.2M",
    13e6: "13M",
    2e9: "2.0G",
}


def test_durations_and_amounts_are_short():
    assert {seconds: duration(seconds) for seconds in DURATIONS} == DURATIONS
    assert {number: amount(number) for number in AMOUNTS} == AMOUNTS


def test_a_rate_needs_time():
    assert (rate(300, 2), rate(3, 2), rate(0, 2), rate(3, 0)) == ("150", "1.5", "0", "-")
