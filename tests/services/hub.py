"""A small Hugging Face hub for tests: the requests by which huggingface_hub lists and reads data sets, on loopback.

Revisions, trees in pages with a `Link` to the next, `resolve` with a redirect, ETags, X-Repo-Commit and ranges, gated
data sets, and answers that fail a number of times. A thread of the test's own process, gone when the block ends.
"""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_only_for_tests"


@dataclass
class Dataset:
    """One data set: its commits, and what its branches refer to."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Files as a new commit, at the head of a branch; its name."""
        names = "".join(f"{path}{hashlib.sha1(data).hexdigest()}" for path, data in sorted(files.items()))
        sha = hashlib.sha1(f"{len(self.commits)}{names}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        """The commit of a revision."""
        return revision if revision in self.commits else self.branches.get(revision)


@dataclass
class Hub:
    """Where the server is, what it holds, and what it was asked."""

    datasets: dict[str, Dataset] = field(default_factory=dict)
    page: int = 1000
    """Entries of a page of a tree."""
    failures: list[tuple[str, int]] = field(default_factory=list)
    """(part of a path, status): each answers one request for it so."""
    asked: list[str] = field(default_factory=list)
    """Method and path of every request."""
    endpoint: str = ""

    @property
    def options(self) -> dict[str, str]:
        """Options for fsspec's hf://."""
        return {"endpoint": self.endpoint}

    def put(self, name: str, folder: Path, **more: bytes) -> str:
        """The files below a folder as a commit of a data set; its name."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.datasets.setdefault(name, Dataset()).commit(files | more)


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    """The server while the block lasts."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.hub.asked.append(f"{self.command} {unquote(url.path)}")
        for failure in self.hub.failures:
            if failure[0] in self.path:
                self.hub.failures.remove(failure)
                return self._send(failure[1])
        match url.path.strip("/").split("/"):
            case ["cdn", digest]:
                return self._send_bytes(digest)
            case ["api", "datasets", owner, name, *rest]:
                return self._api(f"{owner}/{name}", [unquote(piece) for piece in rest], parse_qs(url.query))
            case ["datasets", owner, name, "resolve", revision, *path]:
                return self._resolve(f"{owner}/{name}", unquote(revision), unquote("/".join(path)))
        return self._send(404)

    def _found(self, name: str) -> Dataset | None:
        """A data set; what is not there, or not for everybody, is refused as the hub does it."""
        found = self.hub.datasets.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None:
            self._send(401, {"X-Error-Code": "RepoNotFound"})
        elif found.gated and not allowed:
            self._send(403 if self.headers.get("Authorization") else 401, {"X-Error-Code": "GatedRepo"})
            return None
        return found

    def _api(self, name: str, rest: list[str], query: dict[str, list[str]]) -> None:
        found = self._found(name)
        if found is None:
            return
        kind, revision, *path = rest or ["revision", "main"]
        commit = found.find(revision)
        if commit is None:
            self._send(404, {"X-Error-Code": "RevisionNotFound"})
        elif kind == "revision":
            self._send_json({"id": name, "sha": commit, "siblings": []})
        else:
            self._tree(found.commits[commit], unquote("/".join(path)), query)

    def _tree(self, files: dict[str, bytes], folder: str, query: dict[str, list[str]]) -> None:
        prefix = f"{folder}/" if folder else ""
        below = {path: data for path, data in files.items() if path.startswith(prefix)}
        if not below:
            self._send(404, {"X-Error-Code": "EntryNotFound"})
            return
        entries = [_file(path, data) for path, data in below.items()]
        folders = {str(parent) for path in below for parent in Path(path).parents if str(parent) != "."}
        entries += [{"type": "directory", "path": one, "size": 0, "oid": "0" * 40} for one in folders]
        if query.get("recursive", ["false"])[0].lower() != "true":
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(prefix)]
        entries = sorted(
            (entry for entry in entries if entry["path"].startswith(prefix)), key=lambda entry: entry["path"]
        )
        start = int(query.get("cursor", ["0"])[0])
        end = start + self.hub.page
        headers = {}
        if end < len(entries):
            more = f"recursive={query['recursive'][0]}&expand=False&cursor={end}"
            headers["Link"] = f'<{self.hub.endpoint}{urlsplit(self.path).path}?{more}>; rel="next"'
        self._send_json(entries[start:end], headers)

    def _resolve(self, name: str, revision: str, path: str) -> None:
        found = self._found(name)
        if found is None:
            return
        commit = found.find(revision)
        data = found.commits[commit].get(path) if commit is not None else None
        if data is None or commit is None:
            self._send(404, {"X-Error-Code": "EntryNotFound" if commit else "RevisionNotFound"})
            return
        digest = hashlib.sha256(data).hexdigest()
        about = {"X-Repo-Commit": commit, "X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        self._send(302, {**about, "Location": f"{self.hub.endpoint}/cdn/{digest}"})

    def _send_bytes(self, digest: str) -> None:
        commits = [files for one in self.hub.datasets.values() for files in one.commits.values()]
        data = next(data for files in commits for data in files.values() if hashlib.sha256(data).hexdigest() == digest)
        headers = {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if not asked:
            self._send(200, headers, data)
            return
        start, end = (int(part) for part in asked.split("-"))
        if start >= len(data):
            self._send(416, headers)
            return
        part = data[start : end + 1]
        where = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        self._send(206, {**headers, "Content-Range": where}, part)

    def _send_json(self, tree: object, headers: dict[str, str] | None = None) -> None:
        self._send(200, {"Content-Type": "application/json", **(headers or {})}, json.dumps(tree).encode())

    def _send(self, status: int, headers: dict[str, str] | None = None, data: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _file(path: str, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    pointer = hashlib.sha1(f"lfs {digest}".encode()).hexdigest()
    lfs = {"oid": digest, "size": len(data), "pointerSize": 134}
    return {"type": "file", "path": path, "size": len(data), "oid": pointer, "lfs": lfs}
