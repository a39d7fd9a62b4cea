"""A server on loopback that answers `POST /v1/completions` with `prompt_logprobs`, as vLLM does, from a small model."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from etl.harmony.vocabulary import load_bpe
from training.teacher.teacher import Request, Teacher

Answer = tuple[int, bytes] | None
"""Status and body; None answers nothing until the server stops."""


@dataclass
class Server:
    """What it was asked, and what it does before it answers."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    spoil: Callable[[int, bytes], Answer] = lambda _, body: (200, body)
    """From the number of the request and the true body to what is answered."""


@contextmanager
def serving(teacher: Teacher) -> Iterator[Server]:
    """A running server; `teacher` (which gives at least 5 likely tokens) is asked by one thread at a time."""
    server, lock, stop = Server(), threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.asked)
                server.asked.append({"path": self.path, **asked})
                server.keys.append(self.headers["Authorization"])
                body = json.dumps(_answer(teacher, asked["prompt"], asked["prompt_logprobs"])).encode()
            answer = server.spoil(number, body)
            if answer is None:
                stop.wait(30)
                return
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(answer[1])))
            self.end_headers()
            self.wfile.write(answer[1])

        def log_message(self, *_: object) -> None:
            """Nothing on the console."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        http.shutdown()
        http.server_close()
        thread.join()


def _answer(teacher: Teacher, prompt: list[int], topk: int) -> dict[str, Any]:
    (scores,) = teacher.score([Request(np.array(prompt, np.int32), np.arange(1, len(prompt)))])
    entries: list[dict[str, Any] | None] = [None]
    for at, token in enumerate(prompt[1:]):
        ranked = zip(scores.topk_ids[at, :topk].tolist(), scores.topk_logp[at, :topk].tolist(), strict=True)
        told = {str(other): _told(other, logp) for other, logp in ranked}
        entries.append(told | {str(token): _told(token, float(scores.logp[at]))})
    return {"choices": [{"index": 0, "text": "", "prompt_logprobs": entries}]}


def _told(token: int, logp: float) -> dict[str, Any]:
    text = load_bpe().decode_single_token_bytes(token).decode("utf-8", "replace") if token < 199_998 else ""
    return {"logprob": logp, "rank": 1, "decoded_token": text or None}
