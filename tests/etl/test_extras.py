"""Which extra is named for a package that is not there."""

import importlib
import sys

import pytest

from etl.console import main_of
from etl.extras import without_package


@pytest.mark.parametrize(("package", "extra"), [("kenlm", "score"), ("apache_beam", "beam"), ("torch", "models")])
def test_a_package_that_is_not_installed_is_one_line_and_exit_code_2(monkeypatch, capsys, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    assert main_of(lambda: importlib.import_module(package)) == 2
    assert capsys.readouterr().err == (
        f"ConfigError: this needs the package {package}, which is not installed: pip install 'stillhouse[{extra}]'\n"
    )


def test_a_part_of_a_package_counts_and_a_module_of_no_extra_is_a_bug():
    assert "stillhouse[models]" in str(without_package("No module named 'transformers.models'"))
    assert without_package("No module named 'etl.absent'") is None
    with pytest.raises(ModuleNotFoundError):
        main_of(lambda: importlib.import_module("etl.absent"))
