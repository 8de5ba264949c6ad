"""Clients that are slow, leave, or never say anything."""

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from smallgpt.application.engine import Engine
from smallgpt.application.streams import Stream, Token
from smallgpt.interfaces.http.connections import Connection
from smallgpt.interfaces.http.limits import Limits
from tests.loopback.model_server import PATIENCE, ModelServer, SlowEngine, model_server

SHORT = Limits(streams=2, queue=8, max_new_tokens=100_000, timeout=30, grace=0, body_seconds=0.4, header_seconds=0.4)
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
ENDLESS = {"prompt": "Once", "max_tokens": 100_000, "min_tokens": 100_000, "seed": 1}
DRAIN = 0.5  # seconds; clients on this machine read their answer sooner


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smallgpt.interfaces.http.guard.DRAIN_SECONDS", DRAIN)
        yield from running_server()


def running_server() -> Iterator[ModelServer]:
    with model_server(SHORT, engine=SlowEngine) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left(server: ModelServer) -> Iterator[None]:
    """After every one of these, all streams are free, and the server answers."""
    yield
    server.wait_for(lambda: server.figure("smallgpt_active_streams") == 0)
    assert server.figure("smallgpt_waiting") == 0
    assert server.complete().status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        (),
        (b"G",),
        (b"GET /health HTTP/1.1\r\n", b"Host: localhost\r\n"),
        tuple(b"X-%d: y\r\n" % n if n else b"GET /health HTTP/1.1\r\n" for n in range(40)),
    ],
    ids=["silent", "one byte", "unfinished", "trickling"],
)
def test_headers_that_do_not_come_in_time_end_the_connection(server: ModelServer, sent: tuple[bytes, ...]) -> None:
    began = time.monotonic()
    assert server.raw(*sent, pause=0.02) == b""
    assert time.monotonic() - began > 0.35


def test_the_second_request_of_a_connection_must_come_in_time_too(server: ModelServer) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = request[:-2] + b"Connection: close\r\n\r\n"
    assert server.raw(request, request[:10], pause=0.1).count(b"HTTP/1.1 200 OK") == 1
    assert server.raw(request, request, last, pause=0.3).count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize("length", [b"Content-Length: 50\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_body_that_trickles_is_cut(server: ModelServer, length: bytes) -> None:
    answer = server.raw(POST + length + b"\r\n", *[b"1\r\n{\r\n"[: 6 if b"chunk" in length else 1]] * 6, pause=0.1)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 0.4 s" in answer


def test_headers_of_any_length_are_not_kept(server: ModelServer) -> None:
    answer = server.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n", *[b"X: " + b"y" * 8000 + b"\r\n"] * 20)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")  # the end may overtake the words


@pytest.mark.parametrize(
    "words", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"\x00" * 100, b"GET / HTTP/9.9\r\n\r\n"]
)
def test_what_is_not_http_is_refused(server: ModelServer, words: bytes) -> None:
    answer = server.raw(words)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 403 "))


def test_a_client_that_leaves_its_stream_frees_it(server: ModelServer) -> None:
    before = server.figure("smallgpt_sequences_total", outcome="left")
    with (
        server.client() as client,
        client.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as stream,
    ):
        lines = stream.iter_lines()
        assert next(lines).startswith("data: {")
        assert server.figure("smallgpt_active_streams") == 1
    server.wait_for(lambda: server.figure("smallgpt_active_streams") == 0)
    assert server.figure("smallgpt_sequences_total", outcome="left") == before + 1


def asked(server: ModelServer, fields: dict[str, object]) -> socket.socket:
    """A connection on which a completion was asked for."""
    body = json.dumps(fields).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return connection


def test_a_client_that_leaves_before_its_answer_frees_its_streams(server: ModelServer) -> None:
    with asked(server, {**ENDLESS, "n": 2}):
        server.wait_for(lambda: server.figure("smallgpt_active_streams") == 2)
    server.wait_for(lambda: server.figure("smallgpt_active_streams") == 0)


def test_a_client_that_leaves_the_queue_is_not_written_for(server: ModelServer) -> None:
    with asked(server, {**ENDLESS, "n": 2}):
        server.wait_for(lambda: server.figure("smallgpt_active_streams") == 2)
        read = server.figure("smallgpt_prompt_tokens_total")
        with asked(server, ENDLESS):
            server.wait_for(lambda: server.figure("smallgpt_waiting") == 1)
        server.wait_for(lambda: server.figure("smallgpt_waiting") == 0)
        assert server.figure("smallgpt_active_streams") == 2
        assert server.figure("smallgpt_prompt_tokens_total") == read


def is_full(connection: object) -> bool:
    """Does the server wait until its client reads?"""
    return isinstance(connection, Connection) and connection.flow.write_paused


@pytest.mark.parametrize("limits", [SHORT, Limits(timeout=0.1, grace=0, body_seconds=0.1)], ids=["waits", "over"])
def test_a_client_that_does_not_read_is_cut_off(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when its request's time is over first: the connection cannot be closed before its bytes are gone."""
    monkeypatch.setattr("smallgpt.interfaces.http.connections.READ_SECONDS", 0.4)
    with model_server(limits) as server:
        connections = server.running.server_state.connections
        before = len(os.listdir("/proc/self/fd"))
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", server.port))
            deaf.sendall(b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
            server.wait_for(lambda: any(is_full(one) for one in list(connections)))
            assert server.complete().status_code == 200
            server.wait_for(lambda: not connections)
            server.wait_for(lambda: len(os.listdir("/proc/self/fd")) == before + 1)  # deaf's own


def test_a_client_that_reads_slowly_is_sent_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 12_000_000
    (tmp_path / "long").write_bytes(b"x" * size)
    monkeypatch.setattr("smallgpt.interfaces.http.app.PAGE", {"/page.js": (str(tmp_path / "long"), "text/plain")})
    monkeypatch.setattr("smallgpt.interfaces.http.connections.READ_SECONDS", 0.3)
    with model_server() as server, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(b"GET /page.js HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        received = bytearray()
        while part := slow.recv(1 << 16):
            received += part
            time.sleep(0.005)
    assert len(received) > size
    assert received.endswith(b"x")


def test_a_request_ends_with_what_is_written_when_its_time_is_over() -> None:
    limits = Limits(streams=1, queue=4, max_new_tokens=100_000, timeout=0.5, grace=0)
    with model_server(limits, engine=SlowEngine) as hurried:
        answer = hurried.complete(**{**ENDLESS, "max_tokens": 100_000})
        choice = answer.json()["choices"][0]
        assert (answer.status_code, choice["finish_reason"]) == (200, "length")
        assert 1 <= answer.json()["usage"]["completion_tokens"] < 100


class StuckEngine(Engine):
    """Takes longer over a step than a request may take."""

    def step(self) -> list[tuple[Stream, list[Token]]]:
        time.sleep(1.5)
        return super().step()


def test_a_request_that_had_no_turn_in_its_time_is_told_so() -> None:
    with model_server(Limits(streams=1, queue=4, timeout=0.5, grace=0), engine=StuckEngine) as stuck:
        with asked(stuck, {"max_tokens": 50, "min_tokens": 50}):
            stuck.wait_for(lambda: stuck.figure("smallgpt_active_streams") == 1)
            late = stuck.complete(stream=True)
        assert late.status_code == 503
        assert late.headers["retry-after"]
        assert "no stream became free within 0.5 s" in late.json()["error"]["message"]


def test_a_connection_is_used_again(server: ModelServer) -> None:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        for _ in range(3):
            assert client.get("/health").status_code == 200
            assert client.post("/v1/completions", json={"max_tokens": 2}).status_code == 200
            assert client.post("/v1/completions", json={"max_tokens": -2}).status_code == 400
