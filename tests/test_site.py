"""The documentation's site: a strict build, its pages, and how a browser shows them."""

import functools
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[1]
DOCS = PROJECT / "docs"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
MOVED = re.compile(r"This page is now \[[\w/-]+\]\(([\w/-]+\.md)\)\.\n")
# A screenshot of the top of a page: width and height.
WIDTH, HEIGHT = 1280, 900


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; `strict` refuses a dead link, a dead anchor and a page without a place."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", PROJECT / ".mkdocs.yml", "-d", folder],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, text=True, capture_output=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return folder


def pages_of(entry):
    """The pages of a navigation's entry."""
    if isinstance(entry, str):
        return [entry]
    return [page for each in (entry.values() if isinstance(entry, dict) else entry) for page in pages_of(each)]


def test_every_page_has_one_place_and_the_old_paths_are_one_line(site):
    in_order = pages_of(yaml.safe_load((PROJECT / ".mkdocs.yml").read_text("utf-8"))["nav"])
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    moved = {name for name in written if "/" not in name} - {"index.md"}
    assert sorted(in_order) == sorted(written - moved)
    for name in moved:
        found = MOVED.fullmatch((DOCS / name).read_text("utf-8"))
        assert found, f"docs/{name} names the page that took its place, in one line"
        assert found[1] in in_order
    assert {page.removesuffix(".md") for page in written} <= {
        page.relative_to(site).as_posix().removesuffix(".html") for page in site.rglob("*.html")
    }


def test_a_page_asks_no_other_host(site):
    asked = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(https?:)?//[^>]*>")
    for page in site.rglob("*.html"):
        assert not asked.search(page.read_text("utf-8")), page


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *args):
        pass


@pytest.fixture
def served(site):
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def look(url, picture):
    """The lines of the browser's console at a page, and the size of the picture that it took."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    told = subprocess.run(
        [BROWSER, *options, "--enable-logging=stderr", "--virtual-time-budget=5000", f"--screenshot={picture}",
         f"--window-size={WIDTH},{HEIGHT}", f"--user-data-dir={picture.parent / 'profile'}", url],
        text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    size = struct.unpack(">II", picture.read_bytes()[16:24])
    return [line for line in told.stderr.splitlines() if ":CONSOLE" in line], size


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH (Debian's package chromium)")
def test_a_browser_shows_the_site_without_a_word_on_its_console(site, served, tmp_path):
    for page in ("index.html", "reference/configuration.html"):
        assert look(f"{served}/{page}", tmp_path / "page.png") == ([], (WIDTH, HEIGHT))
    # What would be found: a script that fails.
    (site / "broken.html").write_text("<script>undefined_name()</script>", "utf-8")
    console, _ = look(f"{served}/broken.html", tmp_path / "page.png")
    assert len(console) == 1
    assert "undefined_name is not defined" in console[0]
