"""A teacher behind an OpenAI-compatible server that returns log-probabilities of a prompt (vLLM's `prompt_logprobs`).

A row is one `POST <url>/completions` with its token ids as the prompt, so the server tokenizes nothing, and one token
to generate. An answer counts only when it has an entry for every token and each entry knows our token id. Connections,
time-outs, 408, 429 and 5xx are tried again; other refusals and wrong answers end the run. Rows of a batch are asked
for by `concurrency` threads.
"""

import ipaddress
import itertools
import math
import os
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import numpy as np
import tenacity
from pydantic import Field

from etl.config import Config
from etl.errors import ConfigError, DataError, SourceError, StillhouseError, said
from etl.harmony.vocabulary import NUM_TEXT_TOKENS, VOCAB_SIZE, load_bpe
from etl.terminal import shown
from training.data.teacher_table import LOGP_ROUNDING
from training.teacher.stats import LEAST_LOGP
from training.teacher.teacher import Request, Scores

_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_PROBES = 64


class ServerTeacherConfig(Config):
    """An OpenAI-compatible server. It returns log-probabilities at temperature 1."""

    kind: Literal["server"] = "server"
    url: str = Field(pattern=r"^https?://")
    """URL of the server, up to and including /v1."""
    model: str
    """Name of the model on the server."""
    digest: str = Field(min_length=1)
    """Name that you give the weights, e.g. their digest, since a server does not report one. It is stored in every row
    and is part of the fingerprint."""
    max_tokens: int = Field(ge=2)
    """Longest row that the server accepts: one token less than its `--max-model-len`."""
    api_key_env: str | None = None
    """Name of the environment variable with the API key; null: no key."""
    timeout_s: float = Field(default=300.0, gt=0)
    """Seconds to wait for an answer of the server."""
    attempts: int = Field(default=6, ge=1)
    """Number of attempts per row before the run fails."""
    backoff_s: float = Field(default=1.0, ge=0)
    """Seconds to wait before the second attempt; doubles each time, up to 60 s."""
    concurrency: int = Field(default=16, ge=1)
    """Number of concurrent requests (one row each) per process."""
    batch_tokens: int = Field(default=262_144, ge=1)
    """Tokens to request before checking whether a checkpoint is due."""

    def warnings(self) -> list[str]:
        """What may not be meant, a line each: a key that everybody on the way to the server can read."""
        place = urlsplit(self.url)
        if self.api_key_env is None or place.scheme == "https" or _is_here(place.hostname or ""):
            return []
        return [
            f"teacher.url={self.url} has no TLS, so the key in {self.api_key_env} is sent for all to read; use https"
        ]


class _AgainError(Exception):
    """An answer after which it is worth asking again."""


class ServerTeacher:
    """One connection pool, closed with `close`, or when the last reference to it goes.

    Args:
        config: which server.
        topk: most likely tokens that are returned for each position; the server must allow as many (`--max-logprobs`).

    Raises:
        ConfigError: the environment variable of the key is not set, or the server's tokenizer is not the corpus's.
        SourceError: the server does not answer.
    """

    def __init__(self, config: ServerTeacherConfig, topk: int) -> None:
        self.max_tokens, self.batch_tokens = config.max_tokens, config.batch_tokens
        self._config, self._topk = config, topk
        self._client = httpx.Client(headers=_headers(config), timeout=config.timeout_s)
        self._pool = ThreadPoolExecutor(config.concurrency, "stillhouse-teacher")
        self._close = weakref.finalize(self, _close, self._pool, self._client)
        try:
            self._check_tokens()
        except StillhouseError:
            self.close()
            raise

    def score(self, requests: Sequence[Request]) -> list[Scores]:
        """See `Teacher.score`."""
        return list(self._pool.map(self._score, requests))

    def close(self) -> None:
        """Close the connections; rows that were not asked for yet are dropped."""
        self._close()

    def _check_tokens(self) -> None:
        """Ask for the texts of ids all over the vocabulary and compare them with the server's."""
        ids = np.linspace(0, NUM_TEXT_TOKENS - 1, min(_PROBES, self.max_tokens)).astype(int).tolist()
        bpe = load_bpe()
        for token, entry in zip(ids[1:], self._ask(ids)[1:], strict=True):
            theirs = entry[str(token)].get("decoded_token")
            ours = bpe.decode_single_token_bytes(token).decode("utf-8", "replace")
            if theirs is not None and "\ufffd" not in ours + theirs and theirs != ours:
                raise ConfigError(
                    f"teacher.model={self._config.model}: token {token} is {shown(theirs)} on the server and "
                    f"{ours!r} in the corpus (o200k_harmony, {VOCAB_SIZE:,} tokens); a teacher must share the "
                    "student's tokenizer"
                )

    def _score(self, request: Request) -> Scores:
        ids = request.input_ids.tolist()
        answer = self._ask(ids)
        logp = np.empty(len(request.positions), np.float32)
        top_ids = np.empty((len(logp), self._topk), np.int32)
        top_logp = np.empty((len(logp), self._topk), np.float32)
        for row, at in enumerate(request.positions.tolist()):
            entry = answer[at]
            logp[row] = self._logp(entry[str(ids[at])], at)
            if self._topk:
                ranked = sorted((-self._logp(value, at), int(token)) for token, value in entry.items())[: self._topk]
                if len(ranked) < self._topk:
                    raise ConfigError(
                        f"the server returned {len(ranked)} likely tokens, not topk={self._topk}; start it with "
                        f"--max-logprobs {self._topk} or more"
                    )
                top_ids[row] = [token for _, token in ranked]
                top_logp[row] = [-value for value, _ in ranked]
        return Scores(logp, top_ids, top_logp)

    def _logp(self, found: Any, at: int) -> float:
        value = found.get("logprob") if isinstance(found, dict) else None
        if not isinstance(value, int | float) or math.isnan(value) or value > LOGP_ROUNDING:
            raise DataError(
                f"{self._place} returned the log-probability {shown(value)} for token {at} of a row; {_SERVER_HINT}"
            )
        return max(min(float(value), 0.0), LEAST_LOGP)

    @property
    def _place(self) -> str:
        return f"{self._config.url.rstrip('/')}/completions"

    def _ask(self, ids: list[int]) -> list[Any]:
        """The entries of all tokens of a prompt, each (but the first) checked to know the token.

        Raises:
            SourceError: no answer after all attempts.
            ConfigError: the server refuses the request.
            DataError: the answer is not about these tokens.
        """
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._config.attempts),
            wait=tenacity.wait_exponential(self._config.backoff_s, max=60),
            retry=tenacity.retry_if_exception_type((_AgainError, httpx.TransportError)),
            reraise=True,
        )
        try:
            answer = retrying(self._post, ids)
        except (_AgainError, httpx.TransportError) as error:
            raise SourceError(
                f"{self._place} gave no answer in {self._config.attempts} attempts "
                f"({self._without_key(said(error))}); check the server and run again, which resumes from here"
            ) from error
        return self._checked(answer, ids)

    def _without_key(self, text: str) -> str:
        """What a server or a library says, which may repeat the header."""
        key = self._client.headers.get("Authorization", "").removeprefix("Bearer ")
        return text.replace(key, "***") if key else text

    def _post(self, ids: list[int]) -> Any:
        body = {
            "model": self._config.model,
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": max(1, self._topk),
        }
        response = self._client.post(self._place, json=body)
        if response.status_code in _AGAIN:
            raise _AgainError(f"status {response.status_code}")
        if response.status_code != 200:
            raise ConfigError(
                f"{self._place} refused a row of {len(ids)} tokens with status {response.status_code}: "
                f"{self._without_key(response.text)[:300]}; see teacher.url, teacher.model, teacher.max_tokens and "
                "teacher.api_key_env"
            )
        try:
            return response.json()
        except ValueError as error:
            raise DataError(f"{self._place} answered something that is not JSON; {_SERVER_HINT}") from error

    def _checked(self, answer: Any, ids: list[int]) -> list[Any]:
        choices = answer.get("choices") if isinstance(answer, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else {}
        entries = choice.get("prompt_logprobs") if isinstance(choice, dict) else None
        if not isinstance(entries, list):
            raise ConfigError(f"{self._place} answered without prompt_logprobs; {_SERVER_HINT}")
        if len(entries) != len(ids):
            raise DataError(f"{self._place} was asked about {len(ids)} tokens and answered about {len(entries)}")
        for at, (entry, token) in enumerate(itertools.islice(zip(entries, ids, strict=True), 1, None), 1):
            if not isinstance(entry, dict) or str(token) not in entry:
                known = sorted(entry)[:5] if isinstance(entry, dict) else entry
                raise DataError(
                    f"{self._place}: token {at} of a row is {token} and the answer is about {known}; its tokens are "
                    "not ours, so nothing of it is stored"
                )
        return entries


_SERVER_HINT = "serve the teacher with vLLM, or another server that answers `prompt_logprobs` for token ids"


def _close(pool: ThreadPoolExecutor, client: httpx.Client) -> None:
    pool.shutdown(cancel_futures=True)
    client.close()


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _headers(config: ServerTeacherConfig) -> dict[str, str]:
    if config.api_key_env is None:
        return {}
    key = os.environ.get(config.api_key_env)
    if not key:
        raise ConfigError(f"teacher.api_key_env names {config.api_key_env}, which is not set; export the key there")
    return {"Authorization": f"Bearer {_checked_key(key, config.api_key_env)}"}


def _checked_key(key: str, name: str) -> str:
    """The key without spaces and line feeds around it, such as the last one of a file.

    Raises:
        ConfigError: it has signs that no header may hold; none of it is repeated.
    """
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"teacher.api_key_env: the key in {name} is empty, or contains a space, a line feed or a non-ASCII "
            "character; export only the key"
        )
    return key
