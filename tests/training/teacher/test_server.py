"""A teacher behind HTTP: the same scores as the model itself, and every wrong answer is refused."""

import json
import time
import traceback

import numpy as np
import pytest

from etl.errors import ConfigError, DataError, SourceError
from tests.training.teacher_server import serving
from tests.training.teachers import save_teacher
from training.teacher.local import LocalTeacher
from training.teacher.server import ServerTeacher, ServerTeacherConfig
from training.teacher.stats import LEAST_LOGP
from training.teacher.teacher import LocalTeacherConfig, Request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_teacher(tmp_path_factory.mktemp("teacher"))
    return LocalTeacher(LocalTeacherConfig(model=str(folder)), 1.0, 5, "cpu")


@pytest.fixture
def server(model):
    with serving(model) as running:
        yield running


def config(server, **more):
    wanted = {"url": server.url, "model": "m", "digest": "d", "max_tokens": 512, "timeout_s": 20, "backoff_s": 0.0}
    return ServerTeacherConfig(**{**wanted, **more})


def requests(sizes):
    generator = np.random.default_rng(0)
    return [
        Request(generator.integers(0, 199_000, size).astype(np.int32), np.arange(size // 2, size)) for size in sizes
    ]


def ask(server, sizes=(9,), topk=0, **more):
    teacher = ServerTeacher(config(server, **more), topk)
    try:
        return teacher.score(requests(sizes))
    finally:
        teacher.close()


def test_scores_are_those_of_the_model(server, model):
    sizes = (9, 4, 20, 6)
    for theirs, ours in zip(ask(server, sizes, topk=3, concurrency=3), model.score(requests(sizes)), strict=True):
        np.testing.assert_allclose(theirs.logp, ours.logp, atol=1e-5)
        assert theirs.topk_ids.tolist() == ours.topk_ids[:, :3].tolist()
        np.testing.assert_allclose(theirs.topk_logp, ours.topk_logp[:, :3], atol=1e-5)
    assert {asked["path"] for asked in server.asked} == {"/v1/completions"}
    assert {(asked["model"], asked["max_tokens"], asked["prompt_logprobs"]) for asked in server.asked} == {("m", 1, 3)}
    prompts = [request.input_ids.tolist() for request in requests(sizes)]
    assert all(prompt in [asked["prompt"] for asked in server.asked] for prompt in prompts)


def test_a_key_comes_from_the_environment_and_is_never_said(server, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "s3cret")
    server.spoil = lambda number, body: (200, body) if number == 0 else (401, b"who are you")
    with pytest.raises(ConfigError, match="status 401: who are you") as caught:
        ask(server, api_key_env="TEACHER_KEY")
    assert set(server.keys) == {"Bearer s3cret"}
    assert "s3cret" not in str(caught.value)
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(ConfigError, match="TEACHER_KEY, which is not set"):
        ask(server, api_key_env="TEACHER_KEY")


def test_a_busy_server_is_asked_again(server, model):
    server.spoil = lambda number, body: (503, b"busy") if number in (0, 2, 3) else (200, body)
    (scores,) = ask(server, attempts=3)
    np.testing.assert_allclose(scores.logp, model.score(requests((9,)))[0].logp, atol=1e-5)
    assert len(server.asked) == 5


def test_a_server_that_stays_busy_ends_the_run(server):
    server.spoil = lambda number, body: (200, body) if number == 0 else (503, b"busy")
    with pytest.raises(SourceError, match=r"no answer in 3 attempts .*status 503"):
        ask(server, attempts=3)
    assert len(server.asked) == 4


def test_a_server_that_does_not_answer_ends_the_run(server):
    server.spoil = lambda number, body: (200, body) if number == 0 else None
    began = time.monotonic()
    teacher = ServerTeacher(config(server), 0)
    teacher.close()
    with pytest.raises(SourceError, match="ReadTimeout"):
        ask(server, attempts=2, timeout_s=0.5)
    assert time.monotonic() - began < 15


def test_no_server_ends_the_run(model):
    with serving(model) as gone:
        pass
    with pytest.raises(SourceError, match="ConnectError"):
        ask(gone, attempts=2)


def spoiled(change):
    """The first request (the probe) is answered truly, the others after `change(answer)`."""

    def spoil(number, body):
        answer = json.loads(body)
        if number > 0:
            answer = change(answer)
        return 200, json.dumps(answer).encode()

    return spoil


def entries(answer):
    return answer["choices"][0]["prompt_logprobs"]


def other_tokens(answer):
    entries(answer)[5] = {"17": {"logprob": -1.0}}
    return answer


def fewer_tokens(answer):
    entries(answer).pop()
    return answer


def not_a_number(answer):
    entries(answer)[6] = {token: {"logprob": None} for token in entries(answer)[6]}
    return answer


def more_than_one(answer):
    entries(answer)[6] = {token: {"logprob": 0.5} for token in entries(answer)[6]}
    return answer


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (other_tokens, DataError, r"token 5 of a row is \d+ and the answer is about \['17'\]"),
        (fewer_tokens, DataError, "asked about 9 tokens and answered about 8"),
        (not_a_number, DataError, "log-probability None for token 6"),
        (more_than_one, DataError, "log-probability 0.5 for token 6"),
        (lambda _: {"choices": [{"text": "x"}]}, ConfigError, "without prompt_logprobs"),
        (lambda _: ["what"], ConfigError, "without prompt_logprobs"),
    ],
)
def test_wrong_answers_are_refused(server, change, error, message):
    server.spoil = spoiled(change)
    with pytest.raises(error, match=message):
        ask(server)
    assert len(server.asked) == 2


def test_an_answer_that_is_not_json_is_refused(server):
    server.spoil = lambda number, body: (200, body if number == 0 else b"<html>")
    with pytest.raises(DataError, match="not JSON"):
        ask(server)


def test_a_server_with_another_tokenizer_is_refused(server):
    server.spoil = lambda _, body: (200, body.replace(b'"decoded_token": "', b'"decoded_token": "x'))
    with pytest.raises(ConfigError, match=r"on the server and .*201,088"):
        ask(server)


def test_probability_zero_is_the_least_float16(server):
    def impossible(answer):
        entries(answer)[6] = {token: {"logprob": -float("inf")} for token in entries(answer)[6]}
        return answer

    server.spoil = spoiled(impossible)
    assert ask(server)[0].logp[2] == LEAST_LOGP == np.finfo(np.float16).min


def test_too_few_likely_tokens_are_refused(server):
    with pytest.raises(ConfigError, match="6 likely tokens, not topk=7"):
        ask(server, topk=7)


def test_a_teacher_that_nobody_holds_closes_its_threads(server):
    teacher = ServerTeacher(config(server), 0)
    pool = teacher._pool
    assert pool.submit(int).result() == 0
    del teacher
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int)


KEY = "sk-s3cr3tZx9w8e7"


@pytest.mark.parametrize("key", [f"bad\n{KEY}", f"{KEY}\r\nX-A: b", f"{KEY}\u00e9", f"{KEY} more", " \n", f"{KEY}\x1b"])
def test_s7_a_key_that_no_header_can_hold_is_one_error_without_it(server, monkeypatch, key):
    monkeypatch.setenv("TEACHER_KEY", key)
    with pytest.raises(ConfigError, match=r"the key in TEACHER_KEY is empty, or contains") as raised:
        ask(server, api_key_env="TEACHER_KEY")
    assert KEY not in "".join(traceback.format_exception(raised.value))
    assert server.asked == []


def test_s7_the_last_line_feed_of_a_key_is_no_part_of_it(server, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", f"{KEY}\n")
    assert ask(server, api_key_env="TEACHER_KEY")[0].logp.size
    assert set(server.keys) == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    ("url", "count"),
    [
        ("http://teacher:8000/v1", 1),
        ("http://10.0.0.1/v1", 1),
        ("https://teacher/v1", 0),
        ("http://localhost:8000/v1", 0),
        ("http://127.0.0.2/v1", 0),
        ("http://[::1]:80/v1", 0),
    ],
)
def test_s7_a_key_without_tls_to_another_machine_is_warned_of(server, url, count):
    said = config(server, url=url, api_key_env="TEACHER_KEY").warnings()
    assert len(said) == count
    assert all("TEACHER_KEY" in line and "https" in line for line in said)
    assert config(server, url=url).warnings() == []
