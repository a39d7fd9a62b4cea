"""What libraries write goes to a file: file descriptors, logging, the errors that name it, and when it is removed."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from etl.errors import DataError
from etl.library_log import libraries_aside, log_path, screen


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_libraries_and_child_processes_write_to_the_file_and_we_to_the_screen(capfd, tmp_path):
    with libraries_aside():
        os.write(2, b"from C\n")
        subprocess.run([sys.executable, "-c", "import sys; print('from a child', file=sys.stderr)"], check=True)
        print("from us", file=screen())
        path = log_path()
    os.write(2, b"afterwards\n")
    assert path.read_text() == "from C\nfrom a child\n"
    assert capfd.readouterr().err == "from us\nafterwards\n"
    assert list(tmp_path.iterdir()) == [path]


def fail(error, said):
    with libraries_aside():
        os.write(2, said)
        raise error


def test_an_error_names_a_file_that_has_lines():
    with pytest.raises(DataError) as caught:
        fail(DataError("it failed"), b"the reason\n")
    path = Path(re.fullmatch("it failed; log: (.+)", str(caught.value)).group(1))
    assert path.read_text() == "the reason\n"
    with pytest.raises(ZeroDivisionError) as caught:
        fail(ZeroDivisionError(), b"the reason\n")
    assert "Output of libraries: " in caught.value.__notes__[0]


def test_an_error_without_lines_is_as_it_was_and_no_file_stays(tmp_path):
    with pytest.raises(DataError, match=r"^it failed$"), libraries_aside():
        fail(DataError("it failed"), b"")
    with libraries_aside():
        os.write(2, b"chatter of a run that ends well\n")
    assert list(tmp_path.iterdir()) == []
    assert (log_path(), screen()) == (None, sys.stderr)


def test_logging_that_somebody_set_up_stays_on_the_screen():
    # Of a process of its own, whose stderr is the descriptor 2.
    code = (
        "import logging, os; from etl.library_log import libraries_aside\n"
        "logging.basicConfig(format='%(message)s')\n"
        "with libraries_aside():\n"
        "    os.write(2, b'a bar')\n"
        "    logging.warning('mine')\n"
        "logging.warning('mine again')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "mine\nmine again\n")
