"""Bodies that no client should send: each is told what is wrong, none gets a 5xx, and the server goes on."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from smallgpt.interfaces.http.bodies import FIELDS, CompletionBody, parse
from smallgpt.interfaces.http.errors import ApiError
from smallgpt.interfaces.http.limits import BODY_BYTES, PROMPT_BLOCKS
from tests.loopback.model_server import CONFIG, ModelServer, model_server

DRAIN = 0.5  # seconds; clients on this machine read their answer sooner


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smallgpt.interfaces.http.guard.DRAIN_SECONDS", DRAIN)
        yield from running_server()


def running_server() -> Iterator[ModelServer]:
    with model_server() as running:
        yield running
        assert running.complete().status_code == 200  # after everything that was done to it
        assert running.figure("smallgpt_active_streams") == 0


def refused(server: ModelServer, body: bytes, status: int = 400, kind: str = "application/json") -> str:
    """POST /v1/completions must end like that; gives the message."""
    with server.client() as client:
        answer = client.post("/v1/completions", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 400
    return str(error["message"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"not json", "not JSON"),
        (b'{"prompt": "a"} {}', "not JSON"),
        (b"\xff\xfe", "byte 0 of the body is not UTF-8"),
        (b'{"prompt": "caf\xe9"}', "byte 15 of the body is not UTF-8"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"[" * 500_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"prompt": "a", "prompt": "b"}', '"prompt" is there twice'),
        (b'{"temperature": NaN}', "NaN is not a JSON number"),
        (b'{"max_tokens": Infinity}', "Infinity is not a JSON number"),
        (b'{"temperature": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"temperature": 1e999}', "temperature is Infinity"),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"prompt": "\\ud800", "stop": "\\ud800"}', "stop"),
    ],
)
def test_what_is_not_a_json_object(server: ModelServer, body: bytes, words: str) -> None:
    assert words in refused(server, body)


@pytest.mark.parametrize("last", ["x", "k99998"], ids=["all different", "one twice"])
def test_100_000_fields_are_refused_in_no_time(last: str) -> None:
    names = [f"k{number}" for number in range(99_999)]
    body = "{" + ",".join(f'"{name}":1' for name in [*names, last]) + "}"
    began = time.perf_counter()
    with pytest.raises(ApiError, match=rf"of 100000 fields; at most {FIELDS}|is there twice"):
        parse(CompletionBody, body.encode())
    assert time.perf_counter() - began < 0.5  # 0.05 s on a slow machine


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_a_content_type_that_a_form_of_another_site_could_send(server: ModelServer, kind: str) -> None:
    assert "send application/json" in refused(server, b'{"prompt": "a"}', 415, kind)


def test_a_body_may_say_its_character_set(server: ModelServer) -> None:
    with server.client() as client:
        kind = {"Content-Type": "Application/JSON; charset=utf-8"}
        assert client.post("/v1/completions", content=b'{"max_tokens": 1}', headers=kind).status_code == 200


LONGEST = PROMPT_BLOCKS * CONFIG.block_size


def each(name: str, *values: Any, words: str = "") -> list[tuple[dict[str, Any], str]]:
    """A body for each of these values, and what the message must say."""
    return [({name: value}, words or name) for value in values]


WRONG: list[tuple[dict[str, Any], str]] = [
    *each("max_tokens", -1, 0, 10**9, 1e9, "10", 1.5, True, [], 10**30),
    *each("temperature", -1, -0.1, "1", 1e300, True, {}),
    *each("top_k", 0, -1, 1.5, "5"),
    *each("top_p", 0, 2, -1, "x"),
    *each("min_p", -1, 2),
    *each("repetition_penalty", 0, -1, 1e300, 1e-300),
    *each("n", 0, -1, 10**6, "2", words="n "),
    *each("seed", -1, 2**63, 1.5, "a"),
    *each("logprobs", -1, 21, True),
    *each("stop", "", [""], ["x"] * 10_000, "x" * 10_000, 5, [5], ["a", None]),
    *each("prompt", 5, [], [[]], [1, "a"], ["a", 1], [[1], "a"], {}, ["a"] * 1000, True),
    *each("prompt", [257], [[1, 2**30]], words="257 ids"),
    *each("prompt", [-1], [2**31], [2**70], [1.5]),
    ({"prompt": "x" * (LONGEST + 1)}, f"{LONGEST + 1} tokens; at most {LONGEST}"),
    ({"prompt": [1] * (LONGEST + 1)}, f"{LONGEST + 1} tokens; at most {LONGEST}"),
    ({"prompt": ["a"] * 16, "n": 16}, "16 prompts times n = 16 are too many"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens is 5; it must be at most max_tokens, 4"),
    ({"n": 16, "max_tokens": 1000, "logprobs": 20}, "is 336000; it must be at most 262144"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"echo": True, "logprobs": 1}, "leave one of them out"),
    ({"stream_options": {"include_usage": True}}, "set stream to true"),
    ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"model": 5}, "model"),
    ({"presence_penalty": 1}, "presence_penalty is 1: not supported; leave it out, or give repetition_penalty"),
    ({"frequency_penalty": -0.5}, "frequency_penalty is -0.5: not supported; leave it out"),
    ({"frequency_penalty": "1"}, 'frequency_penalty is "1": not supported; leave it out'),
    ({"logit_bias": {"5": 1}}, "logit_bias is an object: not supported; leave it out"),
    ({"logit_bias": [5]}, "logit_bias is a list: not supported; leave it out"),
    ({"best_of": 3}, "best_of"),
    ({"max_token": 5}, "did you mean max_tokens?"),
    ({"x" * 100_000: 5}, "is not a field"),
]


@pytest.mark.parametrize(("fields", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_a_field_that_cannot_be(server: ModelServer, fields: dict[str, Any], words: str) -> None:
    body = {"prompt": "Once", "max_tokens": 2, **fields}
    assert words in refused(server, json.dumps(body).encode())


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 1e-9},
        {"temperature": 100},
        {"top_k": 10**12},
        {"top_p": 1e-300},
        {"top_p": 1},
        {"min_p": 1},
        {"min_p": 0},
        {"repetition_penalty": 0.1, "temperature": 0.01},
        {"repetition_penalty": 10},
        {"seed": 2**62 - 1, "n": 2},
        {"prompt": ""},
        {"prompt": None},
        {"prompt": [256]},
        {"prompt": "\ud800 \x00 <|endoftext|> \U0001f600"},
        {"prompt": "x" * LONGEST},
        {"stop": []},
        {"stop": None},
        {"stop": ["x" * 256] * 16},
        {"max_tokens": None, "n": None, "temperature": None, "seed": None, "stream": None, "logprobs": None},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "best_of": 1, "suffix": "", "user": "me"},
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_extreme_that_can_be(server: ModelServer, fields: dict[str, Any]) -> None:
    body = json.dumps({"prompt": "Once", "max_tokens": 2, **fields}).encode()
    with server.client() as client:
        answer = client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    assert all(choice["finish_reason"] in ("stop", "length") for choice in answer.json()["choices"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "messages is missing"),
        ({"messages": []}, "messages"),
        ({"messages": "Once"}, "messages"),
        ({"messages": [{"role": "king", "content": "Once"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}, "set logprobs to true"),
        ({"messages": [{"role": "user", "content": "a"}], "logprobs": 2}, "logprobs"),
        ({"messages": [{"role": "user", "content": "a"}], "prompt": "a"}, "is not a field"),
        ({"messages": [{"role": "user", "content": "a"}] * 1001}, "messages"),
    ],
)
def test_a_chat_that_cannot_be(server: ModelServer, fields: dict[str, Any], words: str) -> None:
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=fields)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_a_message_without_text_adds_nothing(server: ModelServer) -> None:
    messages = [{"role": "assistant", "content": None}, {"role": "user", "content": "Once"}]
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 2})
    assert answer.status_code == 200
    assert answer.json()["usage"]["prompt_tokens"] == len("Once")


def test_a_body_of_100_mb_is_refused_by_its_length(server: ModelServer) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n"
    answer = server.raw(head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100000000 bytes; at most 1048576" in answer
    with server.client() as client:
        answered = client.post("/v1/completions", content=b"x" * 100_000_000)
    assert answered.status_code == 413


def test_chunks_without_an_end_are_refused_when_they_are_too_many(server: ModelServer) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    answer = server.raw(head, *[chunk] * (BODY_BYTES // 0x10000 + 8))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer


def test_a_body_of_the_largest_size_is_read(server: ModelServer) -> None:
    body = b'{"prompt": "' + b"x" * (BODY_BYTES - 14) + b'"}'
    assert len(body) == BODY_BYTES
    assert "tokens; at most" in refused(server, body)
    assert "bytes; at most" in refused(server, body + b" ", 413)


@pytest.mark.parametrize("length", [b"-1", b"x", b"1, 2", b"+5", b"9" * 30])
def test_a_content_length_that_is_none(server: ModelServer, length: bytes) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + length + b"\r\n\r\n"
    answer = server.raw(head)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "tiny%00", "."]
)
def test_a_model_that_is_a_path_is_only_an_unknown_name(server: ModelServer, name: str) -> None:
    answer = server.raw(f"GET /v1/models/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"root:" not in answer
    assert server.complete(model=name).status_code == 404
    page = server.raw(f"GET /page.css/../{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert page.startswith(b"HTTP/1.1 404 ")
