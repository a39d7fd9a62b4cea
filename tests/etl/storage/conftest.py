"""A folder on the local disk and one in fsspec's memory, so that what is promised is tried on both kinds."""

import uuid
from collections.abc import Iterator

import pytest

from etl.storage.location import Location


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path) -> Iterator[Location]:
    if request.param == "local":
        yield Location.of(tmp_path / "data")
        return
    place = Location.of(f"memory://{uuid.uuid4().hex}")
    yield place
    place.remove_tree()
