"""What libraries report about the bytes that they decode."""

import pytest

from etl.errors import ConfigError, SourceError, decoding


@pytest.mark.parametrize(
    "error",
    [
        OSError("bad\npage"),
        KeyError("x"),
        OverflowError(),
        AssertionError("theirs"),
        LookupError("y" * 900),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_library_raises_is_one_line_about_the_file(error):
    with pytest.raises(SourceError) as caught, decoding("a.parquet: row group 3"):
        raise error
    told = str(caught.value)
    assert told.startswith(f"a.parquet: row group 3 cannot be read ({type(error).__name__}")
    assert told.endswith("); replace or remove it")
    assert "\n" not in told
    assert len(told) < 400
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), ConfigError("ours")], ids=repr)
def test_what_is_not_about_the_file_stays_as_it_is(error):
    with pytest.raises(type(error)) as caught, decoding("a.parquet"):
        raise error
    assert caught.value is error
