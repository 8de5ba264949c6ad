"""A stand-in for the server behind the page: tells a given story at a given pace, and fails in given ways.

It speaks the part of the API that the page uses, over real connections, with one thread for each.
"""

import json
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log
from pathlib import Path
from typing import Any

import smallgpt.interfaces.http

PAGE = Path(smallgpt.interfaces.http.__file__).parent / "page"
POLICY = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript"}


@dataclass(frozen=True)
class Told:
    """A token as the server tells it: its name, its probability, and other tokens with theirs."""

    token: str
    probability: float = 0.5
    others: dict[str, float] = field(default_factory=dict)

    def chunk(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        """The event that shows `text` when this token is drawn."""
        likely = {self.token: log(self.probability)} | {other: log(p) for other, p in self.others.items()}
        logprobs = {
            "tokens": [self.token],
            "token_logprobs": [log(self.probability)],
            "top_logprobs": [likely],
            "text_offset": [0],
        }
        choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        return {"id": "cmpl-1", "object": "text_completion", "created": 0, "model": "tales", "choices": [choice]}


@dataclass
class Plan:
    """What the server does with the requests for a story; a test changes it as it goes."""

    story: list[Told]
    texts: list[str] | None = None
    """The text of each chunk, where it is not its token's."""
    hold_after: int | None = None
    """So many tokens come at once; the next ones wait for `go`."""
    go: threading.Event = field(default_factory=threading.Event)
    break_after: int | None = None
    """After so many tokens the connection ends in the middle of the answer. (What a browser has not read by then it drops.)"""
    error_after: int | None = None
    """After so many tokens comes an event with an error."""
    cut: int | None = None
    """Send pieces of so many bytes, wherever that cuts."""
    newline: str = "\n"
    refusal: tuple[int, str, dict[str, str]] | None = None
    """Answer with this status, message and these headers instead."""
    key: str | None = None
    """Answer 401 to whoever does not give this key."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    """The bodies of the requests for a story."""
    paths: list[str] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    """The client closed the connection before the answer ended."""


STORY = [
    Told(" girl", 0.7, {" boy": 0.2, " dog": 0.05}),
    Told(" named", 0.97, {" called": 0.02}),
    Told(" Mia", 0.1, {" Lily": 0.4, " Anna": 0.2, " Sue": 0.05}),
    Told(".", 0.6),
    Told("\n\n", 0.3, {" She": 0.5}),
    Told("She", 0.9),
    Told(" roared", 0.001, {" loved": 0.3, " had": 0.3}),
    Told(".", 0.4),
]
CONTINUATION = "".join(told.token for told in STORY)
BEGINNING = "Once upon a time, there was a little"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    plan: Plan

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.plan.paths.append(self.path)
        name = "index.html" if self.path == "/" else self.path[1:]
        if self.path == "/v1/models":
            if self._may_enter():
                self._answer(200, json.dumps({"object": "list", "data": [{"id": "tales", "object": "model"}]}).encode())
        elif name in {path.name for path in PAGE.iterdir()}:
            self._answer(200, (PAGE / name).read_bytes(), {"Content-Type": KINDS[Path(name).suffix]})
        else:
            self._answer(404, b"{}")

    def do_POST(self) -> None:
        self.plan.paths.append(self.path)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._may_enter():
            return
        self.plan.requests.append(body)
        if self.plan.refusal is not None:
            status, message, headers = self.plan.refusal
            self._refuse(status, message, headers)
            return
        self._begin(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        try:
            self._tell()
        except (BrokenPipeError, ConnectionResetError):
            self.plan.left.set()

    def _tell(self) -> None:
        plan = self.plan
        for number, told in enumerate(plan.story):
            if number == plan.hold_after:
                self._wait_for_go()
            if number == plan.break_after:
                return
            if number == plan.error_after:
                self._event(
                    {"error": {"message": "out of memory", "type": "server_error", "param": None, "code": None}}
                )
                break
            last = number + 1 == len(plan.story)
            text = told.token if plan.texts is None else plan.texts[number]
            self._event(told.chunk(text, "length" if last else None))
        else:
            self._send(f"data: [DONE]{plan.newline * 2}".encode())
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, value: dict[str, Any]) -> None:
        end = self.plan.newline
        data = json.dumps(value, ensure_ascii=False)
        self._send(f": still here{end}{end}data: {data}{end}{end}".encode())

    def _send(self, data: bytes) -> None:
        size = self.plan.cut or len(data)
        for at in range(0, len(data), size):
            part = data[at : at + size]
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")

    def _wait_for_go(self) -> None:
        """Raises ConnectionResetError when the client leaves meanwhile."""
        while not self.plan.go.wait(0.02):
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionResetError

    def _may_enter(self) -> bool:
        if self.plan.key is None or self.headers["Authorization"] == f"Bearer {self.plan.key}":
            return True
        self._refuse(401, "a key is needed", {})
        return False

    def _refuse(self, status: int, message: str, headers: dict[str, str]) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        self._answer(status, json.dumps({"error": error}).encode(), headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        kind = {"Content-Type": "application/json"}
        self._begin(status, kind | (headers or {}) | {"Content-Length": str(len(body))})
        self.wfile.write(body)

    def _begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes in the middle of a file is no news."""


@dataclass
class StandIn:
    """A running server: where it is, and what it does."""

    url: str
    plan: Plan
    server: _Server

    def stop(self) -> None:
        """Answer no more: new connections are refused."""
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def serving(story: list[Told]) -> Iterator[StandIn]:
    """A server on a free port of this machine, until the block ends."""
    plan = Plan(story)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"plan": plan}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    stand_in = StandIn(f"http://127.0.0.1:{server.server_address[1]}", plan, server)
    try:
        yield stand_in
    finally:
        plan.go.set()
        with suppress(OSError):
            stand_in.stop()
        thread.join()
