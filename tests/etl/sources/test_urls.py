"""Paths of other file systems that fsspec serves: one rule for all, or an error that says what to do."""

import functools
import http.server
import json
import threading

import fsspec
import pytest

from etl.errors import ConfigError, SourceError
from etl.sources.files import list_source
from etl.sources.spec import Source
from tests.etl.sources.toyingest import COLUMNS, ingest

LINE = json.dumps({"q": "why?", "a": "so"}) + "\n"


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text(LINE * 3)
    return folder


@pytest.fixture
def web(data):
    """The folder behind http://, and the requests that were made."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(f"{self.command} {self.path}")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(data)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()
    thread.join()


def digest_of(folder, path):
    return ingest(folder, {"s": path}, COLUMNS)["s"].digest


def test_the_same_rows_from_every_scheme(tmp_path, data, web):
    url, _ = web
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/team/{name.name}": name.read_bytes() for name in data.iterdir()})
    wanted = digest_of(tmp_path / "disk", data)
    try:
        assert digest_of(tmp_path / "file", f"file://{data}/*.jsonl") == wanted
        assert digest_of(tmp_path / "memory", "memory://team/*.jsonl") == wanted
    finally:
        memory.rm("/team", recursive=True)
    assert digest_of(tmp_path / "glob", f"{url}/*.jsonl") == wanted
    assert digest_of(tmp_path / "list", f"{url}/") == wanted


def test_one_file_of_the_web_is_not_read_to_see_whether_it_is_a_folder(data, web):
    url, asked = web
    found = list_source("s", Source(spec="synth", path=f"{url}/a.jsonl"), {})
    assert [(file.relative, file.bytes) for file in found.files] == [("a.jsonl", 3 * len(LINE))]
    assert sum(line.startswith("GET") for line in asked) == 1, "one to see that it is there, without its bytes"
    with pytest.raises(SourceError, match=r"no file .* matches http://.*/none\.jsonl"):
        list_source("s", Source(spec="synth", path=f"{url}/none.jsonl"), {})


def test_a_scheme_that_is_not_there_or_not_installed():
    with pytest.raises(ConfigError, match="there is no storage scheme 'hfs://'"):
        list_source("s", Source(spec="synth", path="hfs://datasets/a/b"), {})
    with pytest.raises(ConfigError, match=r"sources\.s\.path: .*libarchive.* package that is not installed"):
        list_source("s", Source(spec="synth", path="libarchive://x.jsonl::file:///a.zip"), {})
