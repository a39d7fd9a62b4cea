"""A Dataflow service for tests: takes jobs over REST on 127.0.0.1 and, where asked, runs what was staged for them.

A real service checks a job, starts containers and installs what was staged; this one only keeps the request, and `work`
is called with it before the answer says in which state the job ended. `StagedWorker` is one such `work`: it runs the
staged pipeline in a process of its own that imports our code only from the staged package.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.services.gcs import Gcs

Job = dict[str, Any]


@dataclass
class Dataflow:
    """What came in."""

    endpoint: str = ""
    jobs: list[Job] = field(default_factory=list)
    """Bodies of the requests that created jobs, in order."""


@contextlib.contextmanager
def dataflow_service(work: Callable[[Job], str]) -> Iterator[Dataflow]:
    """The service; `work` gets each job and says in which state it ended, e.g. JOB_STATE_DONE."""
    service = Dataflow()
    states: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not re.fullmatch(r"/v1b3/projects/[^/]+/locations/[^/]+/jobs", self.path.partition("?")[0]):
                self.send_error(404)
                return
            service.jobs.append(body)
            states.append(work(body))
            self._answer(len(service.jobs) - 1)

        def do_GET(self) -> None:
            found = re.search(r"/jobs/job-(\d+)(/messages|/metrics)?$", self.path.partition("?")[0])
            if found is None:
                self.send_error(404)
            elif found.group(2):
                self._send({})
            else:
                self._answer(int(found.group(1)))

        def _answer(self, number: int) -> None:
            job = service.jobs[number]
            self._send({"id": f"job-{number}", "name": job["name"], "currentState": states[number]})

        def _send(self, body: Job) -> None:
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # Beam speaks REST to an endpoint that is called localhost, and gRPC to any other.
    service.endpoint = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class StagedWorker:
    """A `work` for the service: runs a job's staged pipeline with its staged wheel, in an empty working directory.

    Attributes:
        staged: names of what was staged for each job.
        logs: what each job's process said.
    """

    gcs: Gcs
    folder: Path
    staged: list[list[str]] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)

    def __call__(self, job: Job) -> str:
        return self.run(job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"])

    def run(self, pipeline_url: str) -> str:
        """Run what is beside a staged pipeline; the state in which the job ended."""
        import gcsfs

        here = self.folder / str(len(self.staged))
        empty = here / "empty"
        empty.mkdir(parents=True)
        store = gcsfs.GCSFileSystem(**self.gcs.options, skip_instance_cache=True)
        store.get(pipeline_url.rpartition("/")[0], str(here / "staged"), recursive=True)
        self.staged.append(sorted(path.name for path in (here / "staged").iterdir()))
        for wheel in (here / "staged").glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(here / "package")
        command = [
            sys.executable, str(Path(__file__).with_name("dataflow_worker.py")),
            str(here / "staged" / "pipeline.pb"), str(here / "package"),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(here / "package")}
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
        self.logs.append(done.stdout + done.stderr)
        return "JOB_STATE_DONE" if done.returncode == 0 else "JOB_STATE_FAILED"
