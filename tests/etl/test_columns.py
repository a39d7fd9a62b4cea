"""Text in columns of a terminal."""

import pytest

from etl.columns import left, right, width


@pytest.mark.parametrize(("text", "columns"), [("", 0), ("abc", 3), ("日本", 4), ("e\u0301", 1), ("ｱ", 1), ("Ａ", 2)])
def test_padding_counts_columns_and_cuts_nothing(text, columns):
    assert width(text) == columns
    assert left(text, 6) == text + " " * (6 - columns)
    assert right(text, 6) == " " * (6 - columns) + text
    assert left("日本語", 2) == right("日本語", 2) == "日本語"
