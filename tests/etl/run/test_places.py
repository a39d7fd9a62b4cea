"""An output in an input, and an input in an output, by path and through links; nothing is written before that."""

import uuid

import fsspec
import pytest

from etl.errors import ConfigError, SourceError
from etl.run.plan import plan_recipe
from tests.engines.inprocess import IdleEngine
from tests.etl.stages.toys import files, make_recipe, plain_rows, run, write_jsonl

INSIDE = r"output=.* is inside the input folder .* of sources\.toy\.path=.*; choose another output"
CLEARED = r"sources\.toy\.path=.* reads .*, a folder that the run clears before it writes to output="


@pytest.fixture
def data(tmp_path):
    write_jsonl(tmp_path / "data/sub/a.jsonl", plain_rows(2))
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "over").mkdir()
    (tmp_path / "over/to").symlink_to("../data")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "output"),
    [
        ("data", "data"), ("data", "data/out"), ("data", "data/sub/out/deep"), ("data", "data/_out"), ("data/", "link"),
        ("data", "link/out"), ("link", "data/out"), ("over", "data/out"), ("over", "data/sub"), ("data", "over/to/out"),
        ("data/**/*.jsonl", "data/out"), ("data/*/*/*", "data/sub"), ("data/*/*/**", "data/out"), ("d*/**", "data/x"),
        (".", "out"), ("data/sub/a.jsonl:data", "data/out"),
    ],
)  # fmt: skip
def test_an_output_in_an_input_folder_is_refused(data, path, output):
    recipe = make_recipe(data / output, {"toy": data / "data"})
    paths = tuple(str(data / one) for one in path.split(":"))
    if path == "data/*/*/*":
        write_jsonl(data / "data/sub/x/b.jsonl", plain_rows(1))
    source = recipe.sources["toy"].model_copy(update={"path": paths})
    recipe = recipe.model_copy(update={"sources": {"toy": source}})
    before = files(data)
    for refused in (lambda: run(recipe, IdleEngine()), lambda: plan_recipe(recipe)):
        with pytest.raises(ConfigError, match=INSIDE):
            refused()
    assert files(data) == before


@pytest.mark.parametrize(
    ("path", "output"),
    [("data/sub", "data/out"), ("data/sub/a.jsonl", "data/sub/out"), ("data/*/*.jsonl", "data/out"),
     ("data/sub/*.jsonl", "data/sub"), ("data", "data-out"), ("data/s*/a.jsonl", "data")],
)  # fmt: skip
def test_an_output_beside_the_input_is_not(data, path, output):
    for _ in range(2):
        run(make_recipe(data / output, {"toy": data / path}))
    assert (data / output / "ingest/_manifest.json").exists()


@pytest.mark.parametrize(
    "path", ["out/ingest", "out/ingest/*.parquet", "out/ingest/part.parquet", "link.parquet", "to"]
)
def test_an_input_that_would_be_cleared_is_refused(tmp_path, path):
    write_jsonl(tmp_path / "out/ingest/part.parquet", plain_rows(1))
    (tmp_path / "link.parquet").symlink_to("out/ingest/part.parquet")
    (tmp_path / "to").symlink_to("out/ingest")
    before = files(tmp_path)
    with pytest.raises(ConfigError, match=CLEARED):
        run(make_recipe(tmp_path / "out", {"toy": tmp_path / path}), IdleEngine())
    assert files(tmp_path) == before


def test_an_input_in_another_folder_of_the_output_stays(tmp_path):
    source = write_jsonl(tmp_path / "out/raw/a.jsonl", plain_rows(2))
    run(make_recipe(tmp_path / "out", {"toy": source.parent}))
    assert source.exists()


@pytest.mark.parametrize(("path", "output"), [("data", "data/out"), ("data/", "data"), ("data/**/*.jsonl", "data/out")])
def test_urls_are_compared(path, output):
    root = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").pipe_file(f"{root}/data/a.jsonl", b"")
    with pytest.raises(ConfigError, match=INSIDE):
        run(make_recipe(f"{root}/{output}", {"toy": f"{root}/{path}"}), IdleEngine())
    with pytest.raises(ConfigError, match=CLEARED):
        run(make_recipe(root, {"toy": f"{root}/ingest/{path}"}), IdleEngine())


def test_the_same_path_elsewhere_is_another_place(tmp_path):
    with pytest.raises(SourceError, match="no file"):
        run(make_recipe(f"memory://{tmp_path}/data/out", {"toy": tmp_path / "data"}), IdleEngine())


def test_what_cannot_be_listed_names_the_source(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").symlink_to("none")
    with pytest.raises(SourceError, match=r"source 'toy': .*a\.jsonl is a link to none"):
        run(make_recipe(tmp_path / "out", {"toy": tmp_path / "in"}), IdleEngine())
    assert not (tmp_path / "out").exists()
