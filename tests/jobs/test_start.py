"""The console script: Ctrl-C from the first moment on."""

import pytest

from jobs import cli, start


@pytest.mark.parametrize("code", [0, 2])
def test_the_exit_code_is_the_command_lines(monkeypatch, code):
    monkeypatch.setattr(cli, "main", lambda: code)
    assert start.main() == code


def test_ctrl_c_before_a_command_has_begun_is_one_line_and_130(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupted)
    assert start.main() == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"
