"""stillhouse.zip, which tests of spark-submit share."""

import pytest

from tests.wheel import build_wheel


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """The wheel under the name that `make dist` gives its copy."""
    wheel = build_wheel(tmp_path_factory.mktemp("source"))
    return wheel.rename(wheel.parent / "stillhouse.zip")
